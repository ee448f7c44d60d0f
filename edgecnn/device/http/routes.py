"""The application: the pages, the API for programs, the pictures for viewers, a review, and the layers around all routes."""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgecnn import __version__
from edgecnn.device.http.access import AccessControl, Guard, body_bytes, check_shape, error_response, refusal
from edgecnn.device.http.board import Board, Upkeep
from edgecnn.device.http.link import Picture, Shared
from edgecnn.device.stream.events import file_line
from edgecnn.device.stream.pictures import as_jpeg
from edgecnn.errors import BundleError, EdgeCNNError, ImageError
from edgecnn.runtime.classifier import Classifier
from edgecnn.tables import Struct, build

if TYPE_CHECKING:
    from edgecnn.device.review import Reviewing


LINGER_S = 3.0  # how long a client that requested a single picture counts as watching

JPEG = b"\xff\xd8\xff"


class Viewers:
    """Counts the viewers, notifies the camera loop through `look`, and gives each viewer the newest JPEG."""

    def __init__(self, shared: Shared | None, look: Callable[[bool], object], rotation: int = 0) -> None:
        self._shared, self._look, self._rotation = shared, look, rotation
        self._thread = ThreadPoolExecutor(1, "pictures")  # one, because each thread holds some megabytes
        self._count = 0
        self._until = 0.0
        self._looking = False
        self._waiting: Picture | None = None
        self._busy: asyncio.Task[None] | None = None
        self._fresh = asyncio.Event()
        self.jpeg: bytes | None = None
        self.ts, self.seq = 0.0, 0

    def picture(self, picture: Picture) -> None:
        """Take a picture from the camera loop; the newest one wins."""
        self._waiting = picture
        if self._busy is None or self._busy.done():
            self._busy = asyncio.create_task(self._encode())

    async def newest(self, wait_s: float) -> bytes | None:
        """Return the newest picture if somebody was already watching, else the next one within `wait_s`; None if none arrives."""
        self._count += 1
        self._attend()
        try:
            if self.jpeg is None:
                await asyncio.wait_for(self._fresh.wait(), wait_s)
        except TimeoutError:
            return None
        finally:
            self._count -= 1
            self._until = time.monotonic() + LINGER_S
            asyncio.get_running_loop().call_later(LINGER_S + 0.1, self._attend)
        return self.jpeg

    async def stream(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield each new picture and its frame's number, starting with the current one if there is one."""
        self._count += 1
        self._attend()
        try:
            last = None
            while True:
                if self.jpeg is None or self.jpeg is last:
                    await self._fresh.wait()
                last = self.jpeg
                if last is not None:
                    yield self.seq, last
        finally:
            self._count -= 1
            self._attend()

    def _attend(self) -> None:
        looking = self._count > 0 or time.monotonic() < self._until
        if looking != self._looking:
            self._looking = looking
            self.jpeg = None
            self._look(looking)

    async def _encode(self) -> None:
        while (picture := self._waiting) is not None:
            self._waiting = None
            jpeg = await asyncio.get_running_loop().run_in_executor(self._thread, self._jpeg, picture)
            if jpeg is not None and self._looking:
                self.jpeg, self.ts, self.seq = jpeg, picture.ts, picture.seq
                self._fresh.set()
                self._fresh = asyncio.Event()

    def _jpeg(self, picture: Picture) -> bytes | None:
        image = self._shared.read(picture) if self._shared else None
        if image is None:
            return None
        if isinstance(image, bytes) and image.startswith(JPEG) and not self._rotation:
            return image
        try:
            return as_jpeg(image, self._rotation)
        except ImageError:
            return None


S = TypeVar("S")
T = TypeVar("T")

MOST_WAITING = 8
"""How many requests may wait for the classifier, including the one in progress."""


class Busy(Exception):
    """Too many requests are waiting already."""


class Worker(Generic[S]):
    """Works on something that the first request makes, one request at a time, in its own thread."""

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._made: S | None = None
        self._thread = ThreadPoolExecutor(1)

    async def run(self, work: Callable[[S], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[S], T]) -> T:
        if self._made is None:
            self._made = self._make()
        return work(self._made)


class Inference(Worker["Classifier"]):
    """Works on a classifier; Busy if MOST_WAITING requests wait."""

    _waiting = 0

    async def run(self, work: Callable[["Classifier"], T]) -> T:
        """Return the result of `work`; Busy if MOST_WAITING requests wait. Errors of loading and of `work` pass through."""
        if self._waiting >= MOST_WAITING:
            raise Busy
        self._waiting += 1
        try:
            return await super().run(work)
        finally:
            self._waiting -= 1


def load_classifier(path: str, model_sha256: str, region: list[float] | None = None, **choice: Any) -> "Classifier":
    """Load the same classifier as the camera loop; BundleError if its bundle has changed since."""
    classifier = Classifier.load(path, region=None if region is None else (*region,), **choice)  # type: ignore[arg-type]
    if classifier.model_sha256 != model_sha256:
        raise BundleError(f"{path} has changed since the camera loop read it. Restart edgecnn.")
    return classifier


HELD_S = 30.0
"""How long a page holds the review after its last request."""

LONGEST_REQUEST = 1 << 16
"""Bytes of a request: it names some fifty pictures at most, and parsed JSON takes many times its memory."""


class Asked(Struct):
    """A request from a page: the id that it has made up, whether it takes the review over, the pictures, and the decision on them."""

    reviewer: str
    take: bool = False
    pictures: tuple[str, ...] = ()
    decision: str = ""
    label: str = ""


class Desk(Worker["Reviewing"]):
    """A review, and the page that holds it."""

    _reviewer, _until = "", 0.0

    def claim(self, reviewer: str, take: bool = False) -> Response | None:
        """Give the review to a page; refuse while another page holds it, unless `take` is set."""
        now = time.monotonic()
        if reviewer != self._reviewer and now < self._until and not take:
            return refusal(409, "another page is reviewing these pictures. Close it, or continue here.", "Reviewing")
        self._reviewer, self._until = reviewer, now + HELD_S
        return None

    def close(self) -> None:
        self._thread.shutdown()


def review_routes(desk: Desk | None) -> list[Route]:
    """Return the routes of a review; without a desk, each answers that no pictures are kept."""

    def needed() -> Desk:
        if desk is None:
            raise HTTPException(404, "no pictures are kept for review: start edgecnn with --keep DIR")
        return desk

    async def picture(request: Request) -> Response:
        reviewing = await needed().run(lambda reviewing: reviewing)
        data = await asyncio.to_thread(reviewing.preview, request.path_params["sha256"])
        return refusal(404, "no such picture.") if data is None else Response(data, media_type="image/jpeg")

    async def post(request: Request) -> Response:
        desk = needed()
        if body_bytes(request) > LONGEST_REQUEST:
            return refusal(413, f"a request of a review may have at most {LONGEST_REQUEST:,} bytes.")
        end = request.url.path.rpartition("/")[2]

        def work(reviewing: "Reviewing") -> dict | None:
            done = True
            if end == "undo":
                done = reviewing.undo()
            elif end == "answer":
                done = reviewing.answer(asked.pictures, asked.decision, asked.label)
            return reviewing.document() if done else None

        try:
            asked = build(Asked, json.loads(await request.body()), ValueError)
            if refused := desk.claim(asked.reviewer, asked.take):
                return refused
            if document := await desk.run(work):
                return JSONResponse(document)
        except ImageError:  # a ValueError too; the page then asks for the next questions
            raise
        except (ValueError, RecursionError) as error:
            return refusal(400, f"{error}.")
        return refusal(409, "these pictures already have a different answer, or there is nothing to undo.", "Decided")

    posts = [Route(f"/v1/review{end}", post, methods=["POST"]) for end in ("", "/answer", "/undo")]
    return [*posts, Route("/v1/review/pictures/{sha256}", picture)]


class Site(NamedTuple):
    board: Board
    viewers: Viewers
    inference: Inference
    gate: AccessControl
    upkeep: Upkeep
    desk: Desk | None


FOLDER = Path(__file__).parent
OPENAPI = FOLDER / "openapi.json"


def document(name: str, *paths: str) -> list[Route]:
    """Return the routes of a document. Its file is read once; its script fetches the content from other routes."""
    shared = {b"/* %b */" % file.encode(): (FOLDER / file).read_bytes() for file in ("shared.css", "shared.js")}
    body = re.sub(rb"/\* shared\.\w+ \*/", lambda match: shared[match[0]], (FOLDER / name).read_bytes())
    headers = {"Content-Security-Policy": policy(body)}

    async def page(request: Request) -> Response:
        return Response(body, media_type="text/html", headers=headers)

    return [Route(path, page, methods=["GET"]) for path in paths]


def policy(document: bytes) -> str:
    """Return a document's Content-Security-Policy: only its own style and script, by hash, and its own server."""
    style, script = (
        _hash(re.search(b"<%b>(.*?)</%b>" % (tag, tag), document, re.DOTALL)) for tag in (b"style", b"script")
    )
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )


def _hash(part: re.Match[bytes] | None) -> str:
    assert part is not None, "the document lacks a style or a script"
    return f"'sha256-{base64.b64encode(hashlib.sha256(part[1]).digest()).decode()}'"


BOUNDARY = "edgecnn-frame"

PICTURE_S = 10.0

POSTED = "http"  # the source of an image that a client sent


def api_routes(site: Site) -> list[Route]:
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
        if problem := await asyncio.to_thread(site.upkeep.store, site.upkeep.due(end=True)):
            return refusal(500, problem)
        return JSONResponse(drift.document())

    async def metrics(request: Request) -> Response:
        content, media_type = site.upkeep.metrics.encoded(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": media_type})

    async def openapi(request: Request) -> Response:
        document = json.loads(OPENAPI.read_bytes())
        document["info"]["version"] = __version__
        schemes = document["components"]["securitySchemes"]
        document["security"] = [] if board.opening.token is None else [{name: []} for name in schemes]
        return JSONResponse(document)

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
        Route("/openapi.json", openapi),
    ]


def no_camera() -> Response:
    return refusal(404, "there is no camera: edgecnn serves only the API.")


def streaming(request: Request, content: AsyncIterator[str] | AsyncIterator[bytes], media_type: str) -> Response:
    """Return an endless response; to HEAD, only its headers."""
    if request.method == "HEAD":
        return Response(media_type=media_type)
    return StreamingResponse(content, media_type=media_type)


HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


def all_routes(site: Site) -> list[Route]:
    return [
        *api_routes(site),
        *site.gate.routes(),
        *document("page.html", "/", "/login"),
        *document("review.html", "/review"),
        *review_routes(site.desk),
    ]


def make_app(gate: AccessControl, routes: Sequence[Route]) -> ASGIApp:
    handlers = dict.fromkeys((HTTPException, EdgeCNNError, Busy, ClientDisconnect), on_error)
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Headers(Guard(app, (check_shape, gate.check_host, gate.check_origin, gate.check_token)))


def on_error(request: Request, error: Exception) -> Response:
    match error:
        case HTTPException():
            return refusal(error.status_code, f"{error.detail}.", **dict(error.headers or {}))
        case EdgeCNNError():
            return error_response(error)
        case Busy():
            return refusal(503, "too many images are waiting already.", "Busy", retry_after="1")
    return Response(status_code=400)  # the client has gone, so nobody reads it


class Headers:
    """Adds HEADERS to every response, except those that the response sets itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(item for item in HEADERS if item[0] not in own)]
            await send(message)

        await self._app(scope, receive, with_headers)
