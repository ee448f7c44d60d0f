"""Inference with KServe's protocol, using Triton's own client and raw requests."""

import json

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.http.kserve import Refused, parsed, wants_binary
from edgecnn.runtime.classifier import Classifier

triton = pytest.importorskip("tritonclient.http", reason="Triton's client is in the dev extra")
utils = pytest.importorskip("tritonclient.utils")


@pytest.fixture(scope="module")
def classifier(bundle):
    return Classifier.load(bundle)


@pytest.fixture
def pixels(photo):
    return np.asarray(Image.open(photo).convert("RGB").resize((32, 32)))[np.newaxis]


@pytest.fixture
def infer(guarded):
    def ask(document, more=b"", path="cifar10-resnet8", **headers):
        text = document if isinstance(document, bytes) else json.dumps(document).encode()
        if more:
            headers["Inference_Header_Content_Length"] = str(len(text))
        status, heads, body = guarded.ask(f"/v2/models/{path}/infer", text + more, **guarded.token, **headers)
        return status, heads, body

    return ask


def test_tritons_client_infers(guarded, pixels, classifier):
    client = triton.InferenceServerClient(guarded.url.removeprefix("http://"))
    head = guarded.token
    assert client.is_server_live(head) and client.is_server_ready(head)
    assert client.is_model_ready("cifar10-resnet8", headers=head) and not client.is_model_ready("other", headers=head)
    assert "binary_tensor_data" in client.get_server_metadata(head)["extensions"]
    about = client.get_model_metadata("cifar10-resnet8", "1", headers=head)
    (read,), (given,) = about["inputs"], about["outputs"]
    assert (read["datatype"], read["shape"], given["shape"]) == ("UINT8", [1, 32, 32, 3], [1, 10])
    expected = classifier.classify(pixels[0]).top
    for binary_in in (True, False):
        image = triton.InferInput(read["name"], read["shape"], read["datatype"])
        image.set_data_from_numpy(pixels, binary_data=binary_in)
        for outputs in (
            None,
            *([triton.InferRequestedOutput(given["name"], binary_data=way)] for way in (True, False)),
        ):
            result = client.infer("cifar10-resnet8", [image], outputs=outputs, request_id="7", headers=dict(head))
            scores = result.as_numpy(given["name"])
            assert scores.dtype == np.float32 and scores.shape == (1, 10) and result.get_response()["id"] == "7"
            assert [classifier.labels[index] for index in np.argsort(-scores[0])[:3]] == [one.label for one in expected]
            assert float(scores.max()) == pytest.approx(expected[0].score, rel=1e-6)
    with pytest.raises(utils.InferenceServerException, match="missing or wrong"):
        client.infer("cifar10-resnet8", [image])


def document(**changes):
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [[0] * 1536, [255] * 1536]}
    return {"inputs": [image | changes]}


def test_the_protocol_without_a_client(infer, pixels):
    status, _, body = infer(document(data=pixels.tolist()))
    answer = json.loads(body)
    assert status == 200 and answer["model_name"] == "cifar10-resnet8" and "id" not in answer
    assert sum(answer["outputs"][0]["data"]) == pytest.approx(1, abs=1e-5)
    image = document(parameters={"binary_data_size": 3072})
    del image["inputs"][0]["data"]
    status, heads, body = infer(image | {"parameters": {"binary_data_output": True}}, pixels.tobytes())
    start = int(heads["Inference-Header-Content-Length"])
    assert json.loads(body[:start])["outputs"][0]["parameters"] == {"binary_data_size": 40}
    assert np.frombuffer(body[start:], "<f4") == pytest.approx(answer["outputs"][0]["data"])


@pytest.mark.parametrize(
    ("asked", "more", "expected"),
    [
        (b"{", b"", "expected JSON with one input"),
        (b"[" * 80_000, b"", "expected JSON with one input"),
        (b"[" * 100_000, b"", "at most 90,112 bytes, received 100,000"),
        ({"inputs": []}, b"", "expected JSON with one input"),
        ({"inputs": [3]}, b"", "expected JSON with one input"),
        (document() | {"parameters": 3}, b"", "expected JSON with one input"),
        (document(shape=[1, 224, 224, 3]), b"", "received {'name': 'image', 'datatype': 'UINT8', 'shape': [1, 224"),
        (document(datatype="FP32"), b"", "'datatype': 'UINT8'"),
        (document(data=[0] * 3071), b"", "expected 3,072 pixel values, received 3,071"),
        (document(data=[0.5] * 3072), b"", "whole numbers from 0 to 255"),
        (document(data=[256] * 3072), b"", "whole numbers from 0 to 255"),
        (document(data=[True] * 3072), b"", "whole numbers from 0 to 255"),
        (document(data=[[0], [0, 1]]), b"", "whole numbers from 0 to 255"),
        (document(data=[10**30, *[0] * 3071]), b"", "whole numbers from 0 to 255"),
        (document(data=None), b"", "whole numbers from 0 to 255"),
        (document(parameters={"binary_data_size": 3072}), b"x" * 100, "expected 3,072 bytes after the JSON"),
        (document() | {"outputs": [{"name": "logits"}]}, b"", "the only output is 'scores'"),
        (document() | {"outputs": ["scores"]}, b"", "outputs must be objects"),
        (document() | {"outputs": [{"name": "scores", "parameters": {"classification": 3}}]}, b"", "not supported"),
    ],
)  # fmt: skip
def test_an_invalid_request_is_answered_with_what_was_expected(infer, asked, more, expected):
    status, _, body = infer(asked, more)
    assert status == 400 and expected in json.loads(body)["error"]


def test_json_at_its_limit_is_read_and_pixels_keep_their_order():
    """A model with 2 rows, 3 columns and 1 channel: 65,536 bytes of JSON, and 8 more for each of its 6 values."""
    values = [[[10], [20], [30]], [[40], [50], [255]]]
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 3, 1]}
    listed = json.dumps({"inputs": [image | {"data": values}]}).encode()
    asked, pixels = parsed(listed.ljust(65_584), None, (2, 3, 1))
    assert pixels.dtype == np.uint8 and pixels.tolist() == [values] and not wants_binary(asked)
    with pytest.raises(Refused, match=r"65,584.+65,585"):
        parsed(listed.ljust(65_585), None, (2, 3, 1))
    following = json.dumps({"inputs": [image | {"parameters": {"binary_data_size": 6}}]}).encode()
    data = bytes([10, 20, 30, 40, 50, 255])
    assert parsed(following + data, str(len(following)), (2, 3, 1))[1].tolist() == [values]
    for body, size in ((following + data + b"x", len(following)), (following + data, len(following) + 7)):
        with pytest.raises(Refused):
            parsed(body, str(size), (2, 3, 1))
    for whole, own, binary in ((True, False, False), (False, True, True), (True, None, True)):
        output = {"name": "scores", "parameters": {} if own is None else {"binary_data": own}}
        assert wants_binary({"parameters": {"binary_data_output": whole}, "outputs": [output]}) is binary


def test_unknown_models_and_forms_are_refused(infer):
    assert infer(document(), path="other")[0] == 404
    assert infer(document(), path="cifar10-resnet8/versions/2")[0] == 404
    assert infer(document(), path="cifar10-resnet8/versions/1")[0] == 200
    assert infer(document(), Content_Encoding="gzip")[0] == 415
    assert infer(document(), Inference_Header_Content_Length="-1")[0] == 400
