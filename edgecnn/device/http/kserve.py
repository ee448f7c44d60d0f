"""The inference protocol of KServe, version 2, which Triton's client speaks: pixels in, scores out, as JSON or as bytes after it.

An image is UINT8 [1, height, width, channels], already resized to the model's input; scores are FP32 [1, classes], after softmax.

Source: the Open Inference Protocol, github.com/kserve/open-inference-protocol, and Triton's binary tensor data extension.
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgecnn import __version__
from edgecnn.device.http.answers import refusal
from edgecnn.device.http.board import Board
from edgecnn.device.http.site import Site
from edgecnn.runtime.decision import softmax
from edgecnn.tables import shown

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier

INPUT, OUTPUT = "image", "scores"

HEADER = "inference-header-content-length"
"""The length of the JSON in bytes, in a request or an answer in which tensor bytes follow it."""

LEAST_JSON, BYTES_OF_ONE = 1 << 16, 8
"""Limit on the JSON of a request in bytes: a base, and an allowance per pixel value."""

EXTENSION = "binary_tensor_data"


class Refused(Exception):
    """The request for inference is not valid."""


def routes(site: Site) -> list[Route]:
    board, model = site.board, site.board.model
    version = str(model["serial"] or 1)

    def unknown(request: Request) -> Response | None:
        """Refuse another model's name or version."""
        path = request.path_params
        if path["model"] == model["name"] and path.get("version", version) == version:
            return None
        return refusal(404, f"the only model is {shown(model['name'])}, version {version}.")

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(request: Request) -> Response:
        return JSONResponse(
            {"ready": True}
        )  # the model was loaded by the camera loop or, without a camera, at the start

    async def server(request: Request) -> Response:
        return JSONResponse({"name": "edgecnn", "version": __version__, "extensions": [EXTENSION]})

    async def model_ready(request: Request) -> Response:
        return unknown(request) or JSONResponse({"name": model["name"], "ready": True})

    async def metadata(request: Request) -> Response:
        return unknown(request) or JSONResponse({"name": model["name"], "versions": [version], **described(board)})

    async def infer(request: Request) -> Response:
        if refused := unknown(request):
            return refused
        if "content-encoding" in request.headers:
            return refusal(415, "send the request without compression.")
        body, size = await request.body(), request.headers.get(HEADER)

        def work(classifier: "Classifier") -> Response:
            asked, pixels = parsed(body, size, tuple(model["shape"]))
            binary = wants_binary(asked)
            scores = softmax(classifier.model.logits(pixels) / classifier.temperature)
            return answer(asked, {"model_name": model["name"], "model_version": version}, scores, binary)

        try:
            return await site.inference.run(work)
        except Refused as error:
            return refusal(400, f"{error}.")

    found = [Route("/v2", server), Route("/v2/health/live", live), Route("/v2/health/ready", ready)]
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        found += [
            Route(base, metadata),
            Route(f"{base}/ready", model_ready),
            Route(f"{base}/infer", infer, methods=["POST"]),
        ]
    return found


def described(board: Board) -> dict[str, Any]:
    """Return the platform and the tensors of the model."""
    image = {"name": INPUT, "datatype": "UINT8", "shape": [1, *board.model["shape"]]}
    scores = {"name": OUTPUT, "datatype": "FP32", "shape": [1, len(board.model["labels"])]}
    return {"platform": "edgecnn", "inputs": [image], "outputs": [scores]}


def parsed(body: bytes, size: str | None, shape: tuple[int, ...]) -> tuple[dict[str, Any], np.ndarray]:
    """Return a request's JSON and its pixels, uint8 (1, *shape); `size` is the header HEADER. Refused if the request is not valid."""
    length = len(body) if size is None else int(size) if size.isascii() and size.isdigit() else -1
    count = int(np.prod(shape))
    if not 0 <= length <= len(body):
        raise Refused(f"{HEADER} must be the length of the JSON in bytes, received {shown(size)}")
    if length > (most := LEAST_JSON + BYTES_OF_ONE * count):  # parsed, it takes many times that memory
        raise Refused(f"the JSON may have at most {most:,} bytes, received {length:,}")
    try:
        asked = json.loads(body[:length])
        (image,) = asked["inputs"]
        expected = {"name": INPUT, "datatype": "UINT8", "shape": [1, *shape]}
        received = {key: image[key] for key in expected}
        following = image.get("parameters", {}).get("binary_data_size")
        listed = image.get("data")
        asked.get("parameters", {}).get("")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Refused("expected JSON with one input that has a name, a datatype, a shape and data") from None
    if received != expected:
        raise Refused(f"expected the input {expected}, received {shown(received)}")
    if following is None:
        pixels = numbers(listed)
    elif type(following) is int and following == len(body) - length == count:
        pixels = np.frombuffer(body, np.uint8, offset=length)
    else:
        raise Refused(
            f"expected {count:,} bytes after the JSON, and that number as binary_data_size; received {len(body) - length:,}"
        )
    if pixels.size != count:
        raise Refused(f"expected {count:,} pixel values, received {pixels.size:,}")
    return asked, pixels.reshape(1, *shape)


def numbers(listed: Any) -> np.ndarray:
    """Convert a JSON array, nested or flat, to uint8; Refused unless it holds whole numbers from 0 to 255."""
    try:
        values = np.array(listed)
    except ValueError:  # rows of different lengths
        values = np.array(None)
    if values.dtype.kind not in "iu" or not values.size or values.min() < 0 or values.max() > 255:
        raise Refused("data must be an array of whole numbers from 0 to 255")
    return values.astype(np.uint8)


def wants_binary(asked: dict[str, Any]) -> bool:
    """Return whether the scores should follow the JSON as bytes; Refused for any other output or form."""
    binary: Any = asked.get("parameters", {}).get("binary_data_output", False)
    try:
        for output in asked.get("outputs") or ():
            if output["name"] != OUTPUT:
                raise Refused(f"the only output is {OUTPUT!r}, received {shown(output['name'])}")
            parameters = output.get("parameters", {})
            if parameters.get("classification"):
                raise Refused("classification is not supported: request the scores")
            binary = parameters.get("binary_data", binary)
    except (TypeError, KeyError, AttributeError):
        raise Refused("outputs must be objects with a name") from None
    return bool(binary)


def answer(asked: dict[str, Any], about: dict[str, str], scores: np.ndarray, binary: bool) -> Response:
    """Return the response with the scores, (1, classes)."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(scores.shape)}
    document: dict[str, Any] = {**about, "outputs": [output]}
    if type(asked.get("id")) is str:
        document["id"] = asked["id"]
    if not binary:
        output["data"] = scores.ravel().tolist()
        return JSONResponse(document)
    data = scores.astype("<f4").tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    text = json.dumps(document).encode()
    return Response(text + data, media_type="application/octet-stream", headers={HEADER: str(len(text))})
