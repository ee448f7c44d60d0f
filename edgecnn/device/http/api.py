"""What programs ask the board: its state, its events, its picture."""

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgecnn.device.http.site import Site

BOUNDARY = "edgecnn-frame"

PICTURE_S = 2.0


def routes(site: Site) -> list[Route]:
    board, viewers = site.board, site.viewers

    async def state(request: Request) -> Response:
        return JSONResponse(board.document())

    async def events(request: Request) -> Response:
        async def lines() -> AsyncIterator[str]:
            yield "retry: 1000\n\n"
            async for line in board.lines():
                yield ":\n\n" if line is None else f"data: {line}\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def frame(request: Request) -> Response:
        jpeg = await viewers.newest(PICTURE_S)
        if jpeg is None:
            why = "there is no camera" if board.camera == "none" else f"no picture came within {PICTURE_S:g} s"
            return JSONResponse({"error": f"{why}."}, 404 if board.camera == "none" else 503)
        return Response(jpeg, media_type="image/jpeg")

    async def stream(request: Request) -> Response:
        if board.camera == "none":
            return JSONResponse({"error": "there is no camera."}, 404)

        async def parts() -> AsyncIterator[bytes]:
            async for jpeg in viewers.stream():
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                yield head.encode() + jpeg + b"\r\n"

        return StreamingResponse(parts(), media_type=f"multipart/x-mixed-replace; boundary={BOUNDARY}")

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
        Route("/healthz", healthz),
        Route("/readyz", readyz),
    ]
