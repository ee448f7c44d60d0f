"""The API for programs: the board's state, events and pictures, and the classification of an image that they send."""

import asyncio
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgecnn.device.http.answers import refusal
from edgecnn.device.http.site import Site
from edgecnn.device.stream.lines import file_line

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier

BOUNDARY = "edgecnn-frame"

PICTURE_S = 10.0  # a slow board imports Pillow for the first one

POSTED = "http"  # the source of an image that a client sent


def routes(site: Site) -> list[Route]:
    board, viewers = site.board, site.viewers

    async def state(request: Request) -> Response:
        return JSONResponse(board.document())

    async def events(request: Request) -> Response:
        async def lines() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"
            async for lines in board.lines():  # one write: asyncio reports each further one to a client that has gone
                yield "".join(f"data: {line}\n\n" for line in lines) or ":\n\n"

        return streaming(request, lines(), "text/event-stream")

    async def frame(request: Request) -> Response:
        jpeg = await viewers.newest(PICTURE_S) if board.camera != "none" else None
        if jpeg is None:
            return (
                no_camera() if board.camera == "none" else refusal(503, f"no picture arrived within {PICTURE_S:g} s.")
            )
        taken = formatdate(viewers.ts, usegmt=True)  # long ago if the camera is lost
        return Response(jpeg, media_type="image/jpeg", headers={"last-modified": taken})

    async def stream(request: Request) -> Response:
        if board.camera == "none":
            return no_camera()

        async def parts() -> AsyncIterator[bytes]:
            async for seq, jpeg in viewers.stream():
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\nEdgecnn-Frame: {seq}\r\n\r\n"
                yield head.encode() + jpeg + b"\r\n"

        return streaming(request, parts(), f"multipart/x-mixed-replace; boundary={BOUNDARY}")

    async def unsure(request: Request) -> Response:
        data = await asyncio.to_thread(board.unsure_picture, request.path_params["name"])
        return refusal(404, "no such picture.") if data is None else Response(data, media_type="image/jpeg")

    async def classify(request: Request) -> Response:
        data = await request.body()

        def work(classifier: "Classifier") -> str:
            result = classifier.classify(data, **board.opening.decision)
            return file_line(POSTED, result, (classifier.name, classifier.model_sha256), classifier.region)

        return Response(await site.inference.run(work) + "\n", media_type="application/json")

    async def accept(request: Request) -> Response:
        drift = site.upkeep.drift
        if drift is None:
            return no_camera()
        try:
            drift.accept()
        except ValueError as error:
            return refusal(409, f"{error}.")
        await asyncio.to_thread(site.upkeep.write, site.upkeep.due(end=True))
        return JSONResponse(drift.document())

    async def metrics(request: Request) -> Response:
        content, media_type = site.upkeep.metrics.encoded(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type})

    async def healthz(request: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(request: Request) -> Response:
        ready = board.is_ready()
        return Response("ready\n" if ready else "not ready\n", 200 if ready else 503, media_type="text/plain")

    return [
        Route("/v1/state", state),
        Route("/v1/events", events),
        Route("/v1/frame.jpg", frame),
        Route("/v1/stream.mjpeg", stream),
        Route("/v1/unsure/{name:path}", unsure),
        Route("/v1/classify", classify, methods=["POST"]),
        Route("/v1/drift/accept", accept, methods=["POST"]),
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]


def no_camera() -> Response:
    return refusal(404, "there is no camera: edgecnn serves only the API.")


def streaming(request: Request, content: AsyncIterator[str] | AsyncIterator[bytes], media_type: str) -> Response:
    """Return an endless response; to HEAD, only its headers."""
    if request.method == "HEAD":
        return Response(media_type=media_type)
    return StreamingResponse(content, media_type=media_type)
