"""The API for programs."""

import asyncio
import base64
import functools
import io
import json
import os
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from edgecnn.device.http.access import PUBLIC, error_response, refusal
from edgecnn.device.http.link import Opening
from edgecnn.device.http.routes import OPENAPI, Busy, Inference, Viewers, all_routes, load_classifier
from edgecnn.device.http.serve import make_site
from edgecnn.errors import BundleError, EngineError, ImageError, ImageTooLargeError, OutputError
from edgecnn.runtime.classifier import Classifier


@pytest.fixture
def post(guarded):
    """Post an image; return (status, headers, body)."""
    return functools.partial(guarded.ask, "/v1/classify", **guarded.token)


def png(width, height):
    """Return a PNG that claims this many pixels, and has one row of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1 + width)))
        + chunk(b"IEND", b"")
    )


def test_without_a_camera_the_memory_and_the_uptime_are_those_of_the_one_process(guarded):
    """Its parent is the larger process of these tests, which started earlier."""
    board = guarded.until(lambda: (read := guarded.state(**guarded.token)["board"])["memory_mib"] and read)
    with open(f"/proc/{guarded.process.pid}/status", encoding="ascii") as file:
        (resident,) = (int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))
    assert board["memory_mib"] == pytest.approx(resident, rel=0.3)
    started = int(Path(f"/proc/{guarded.process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert 0 < board["uptime_s"] < time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK") + 0.02


def test_the_answer_equals_the_commands_line(post, edgecnn, bundle, photo):
    line = edgecnn("classify", photo, "--json", "--threshold", "0.1", "--top-k", "2", "--model", bundle).out
    expected = json.loads(line)
    status, headers, body = post(photo.read_bytes(), content_type="image/jpeg")
    assert (status, headers["content-type"]) == (200, "application/json") and body.endswith(b"}\n")
    got = json.loads(body)
    varying = {"source": "http", "latency_ms": got["latency_ms"]}
    assert got == expected | varying and len(got["top"]) == 2


@pytest.mark.parametrize(
    ("body", "status", "code", "text"),
    [
        (b"", 400, "ImageError", ""),
        (b"GIF89a", 400, "ImageError", ""),
        (b"no image", 400, "ImageError", ""),
        (png(20_000, 20_000), 413, "ImageTooLargeError", "20000x20000"),
    ],
)
def test_an_image_that_cannot_be_classified_reports_why(post, body, status, code, text):
    got, _, answer = post(body)
    answer = json.loads(answer)
    assert (got, answer["code"]) == (status, code) and answer["error"] and text in answer["error"]
    assert post()[0] == 405


def test_a_bundle_that_was_replaced_is_not_used_and_each_error_has_its_status(bundle):
    sha256 = Classifier.load(bundle).model_sha256
    half = load_classifier(str(bundle), sha256, region=[0.5, 0.0, 0.5, 0.25])
    assert (half.model_sha256, tuple(half.region)) == (sha256, (0.5, 0.0, 0.5, 0.25))
    with pytest.raises(BundleError, match="has changed"):
        load_classifier(str(bundle), "f" * 64)
    errors = {ImageTooLargeError: 413, ImageError: 400, BundleError: 503, EngineError: 503, OutputError: 500}
    for kind, status in errors.items():
        answer = error_response(kind("why"))
        assert (answer.status_code, json.loads(answer.body)) == (status, {"error": "why", "code": kind.__name__})
    assert json.loads(refusal(431, "x").body)["code"] == "RequestHeaderFieldsTooLarge"


def test_eight_requests_may_wait_and_the_ninth_is_refused():
    async def requests():
        done, inference = threading.Event(), Inference(lambda: None)
        waiting = [asyncio.create_task(inference.run(lambda _: done.wait(60))) for _ in range(8)]
        await asyncio.sleep(0)
        ninth = asyncio.create_task(inference.run(lambda _: None))
        await asyncio.sleep(0)
        done.set()
        with pytest.raises(Busy):
            await ninth
        assert await asyncio.gather(*waiting) == [True] * 8
        for _ in range(9):  # failures count no longer either
            with pytest.raises(ImageError):
                await inference.run(fail)
        assert await inference.run(lambda _: "free again") == "free again"

    def fail(_):
        raise ImageError("not an image")

    asyncio.run(requests())


def test_the_number_of_waiting_images_is_limited(post, photo):
    data = photo.read_bytes()
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda _: post(data), range(160)))
    statuses = {status for status, _, _ in answers}
    assert statuses <= {200, 503} and sum(status == 200 for status, _, _ in answers) >= 8
    assert all(headers["retry-after"] for status, headers, _ in answers if status == 503)


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
    described = json.loads(OPENAPI.read_bytes())
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


PYTHON = Path(__file__).parents[3] / ".venv-home-assistant" / "bin" / "python"
TOKEN_HOME_ASSISTANT = "correct-horse-battery-staple"


@pytest.fixture
def home(serve, spawn, root, tmp_path):
    """Start Home Assistant and a board with a camera; return the board, and a function for Home Assistant's lines so far."""

    def start(password):
        (tmp_path / "token").write_text(TOKEN_HOME_ASSISTANT)
        board = serve("synthetic:64x48?fps=5", "--http-token-file", str(tmp_path / "token"))
        blocks = re.findall(r"```text\n(.*?)```", (root / "docs/http.md").read_text(), re.DOTALL)
        block = next(block for block in blocks if block.startswith("rest:"))
        written = block.replace("http://raspberrypi.local:8080", board.url).replace("interval: 10", "interval: 1")
        (tmp_path / "configuration.yaml").write_text(written)
        (tmp_path / "secrets.yaml").write_text(f"edgecnn_token: {password}\n")
        advanced = {"framerate": 2, "verify_ssl": True, "authentication": "basic"}
        camera = {"still_image_url": f"{board.url}/v1/frame.jpg", "username": "edgecnn", "password": password}
        what = json.dumps({"camera": {**camera, "advanced": advanced}})
        with (tmp_path / "lines").open("w") as out, (tmp_path / "errors").open("w") as errors:
            process = spawn(
                [PYTHON, Path(__file__).parents[1] / "home_assistant.py", tmp_path, what], stdout=out, stderr=errors
            )

        def lines():
            assert process.poll() is None, (tmp_path / "errors").read_text()
            text = (tmp_path / "lines").read_text()
            return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

        board.until(lambda: any("ready" in line for line in lines()), 120)
        return board, lines

    return start


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done")
def test_the_state_and_the_picture(home):
    from PIL import Image

    board, lines = home(TOKEN_HOME_ASSISTANT)

    def state(entity):
        return [line["state"] for line in lines() if line.get("entity") == entity][-1:]

    label = board.until(lambda: board.state(Authorization=f"Bearer {TOKEN_HOME_ASSISTANT}")["state"])
    board.until(lambda: state("sensor.door") == [label])
    attributes = next(line["attributes"] for line in lines() if line.get("entity") == "sensor.door")
    assert attributes["top"][0]["label"] == label and attributes["since"] > 0
    picture = next(line for line in lines() if "picture" in line)
    assert picture["type"] == "image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(picture["picture"]))).size == (64, 48)
    warned = [line["warning"] for line in lines() if "warning" in line and "turbojpeg" not in line["warning"]]
    assert not warned, "and this machine has no temperature"
    board.process.kill()
    board.until(lambda: state("sensor.door") == ["unavailable"])


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done")
def test_a_wrong_token_is_an_error_in_the_form(home):
    _, lines = home("a guess that is long enough")
    assert [line["refused"] for line in lines() if "refused" in line] == [{"still_image_url": "unable_still_load_auth"}]
    states = {line["state"] for line in lines() if line.get("entity") == "sensor.door"}
    assert states <= {"unknown", "unavailable"}
