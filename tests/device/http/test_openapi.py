"""The description of the API has exactly the server's routes, and their answers match it."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from edgecnn.device.http.app import all_routes
from edgecnn.device.http.auth import PUBLIC
from edgecnn.device.http.link import Opening
from edgecnn.device.http.openapi import FILE
from edgecnn.device.http.serve import make_site
from edgecnn.device.http.viewers import Viewers

CAMERA = "synthetic:64x48?fps=30&pattern=noise"
TOKEN = "a-token-of-some-length"

ENDLESS = {("/v1/events", "get"), ("/v1/stream.mjpeg", "get")}


def test_it_has_exactly_the_servers_routes():
    facts = {
        "name": "m",
        "serial": 0,
        "sha256": "",
        "engine": "",
        "precision": "",
        "accuracy": None,
        "labels": ["a", "b"],
    }
    site = make_site(Opening(port=80, token=TOKEN, model={**facts, "shape": [2, 2, 3]}), Viewers(None, bool), None)
    routes = {
        (route.path.replace(":path", ""), method.lower()) for route in all_routes(site) for method in route.methods
    }
    described = json.loads(FILE.read_bytes())
    operations = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert operations == {(path, method) for path, method in routes if method != "head"}
    for kind in ("schemas", "responses"):
        used = set(re.findall(rf"#/components/{kind}/(\w+)", json.dumps(described)))
        assert used == set(described["components"][kind])
    for schema in described["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for path, methods in described["paths"].items():
        named = [parameter["name"] for found in methods.values() for parameter in found.get("parameters", [])]
        assert named == re.findall(r"{(\w+)}", path)
        assert all((found.get("security") == []) == (path in PUBLIC) for found in methods.values()), path


class Described:
    """A server and its /openapi.json."""

    def __init__(self, serving):
        self.serving = serving
        status, _, body = serving.ask("/openapi.json", Authorization=f"Bearer {TOKEN}")
        assert status == 200
        self.document = json.loads(body)
        self.left = {(path, method) for path, methods in self.document["paths"].items() for method in methods}

    def ask(self, path, data=None, as_path=None, **headers):
        """Send a request and check the answer against the description; return its status."""
        described, method = as_path or path, "get" if data is None else "post"
        self.left.discard((described, method))
        operation = self.document["paths"][described][method]
        token = {} if operation.get("security") == [] else {"Authorization": f"Bearer {TOKEN}"}
        status, heads, body = self.serving.ask(path, data, **token, **headers)
        answers = operation["responses"]
        answer = answers.get(str(status), answers["default"])
        if "$ref" in answer:
            answer = self.document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        content = answer["content"]
        media = heads["content-type"].partition(";")[0]
        assert media in content, (path, status, media)
        if media == "application/json":
            schema = {**content[media]["schema"], "components": self.document["components"]}
            Draft202012Validator(schema).validate(json.loads(body))
        return status


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path


def test_answers_match_the_description(serve, token_file, photo, schema_of):
    of = Described(
        serve(CAMERA, "--json", "--http-token-file", str(token_file), "--keep", "kept", "--keep-random", "0").ready()
    )
    for path, method in sorted(of.left - ENDLESS):
        if method == "get" and "{" not in path:
            assert of.ask(path) == 200, path
    data = photo.read_bytes()
    assert of.ask("/v1/classify", data) == 200 and of.ask("/v1/classify", b"GIF") == 400
    _, _, line = of.serving.ask("/v1/classify", data, Authorization=f"Bearer {TOKEN}")
    Draft202012Validator(schema_of("result")).validate(json.loads(line))
    assert of.ask("/v1/drift/accept", b"") == 409
    unsure = of.serving.until(lambda: of.serving.state(Authorization=f"Bearer {TOKEN}")["unsure"])[0]["name"]
    assert of.ask(f"/v1/unsure/{unsure}", as_path="/v1/unsure/{name}") == 200
    assert of.ask("/v1/unsure/none.jpg", as_path="/v1/unsure/{name}") == 404
    asked = json.dumps({"reviewer": "", "pictures": ["x"], "decision": "skip"}).encode()
    assert of.ask("/v1/review", b'{"reviewer": ""}') == 200 and of.ask("/v1/review", b"{}" * (1 << 16)) == 413
    assert of.ask("/v1/review/answer", asked) == 400 and of.ask("/v1/review/undo", asked) == 409
    assert of.ask("/v1/review/pictures/x", as_path="/v1/review/pictures/{sha256}") == 404
    assert of.ask("/login", b"token=wrong") == 401
    assert of.left == ENDLESS


def test_answers_match_without_a_camera_too(serve):
    of = Described(serve().ready())
    assert of.document["security"] == []
    state = of.serving.state()
    assert state["camera"] == "none" and state["frame"] is None
    assert of.ask("/v1/state") == of.ask("/metrics") == 200 and of.ask("/v1/frame.jpg") == 404
    assert of.ask("/v1/drift/accept", b"") == 404
    assert of.ask("/v1/review", b"{}") == of.ask("/v1/review/undo", b"{}") == 404
    assert of.serving.close() == 143
