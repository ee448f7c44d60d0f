"""The routes of a review, for one page at a time: the next questions, their pictures, and answers, on disk before the response."""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgecnn.device.http.answers import refusal
from edgecnn.device.http.limits import body_bytes
from edgecnn.errors import ImageError
from edgecnn.tables import Struct, build

if TYPE_CHECKING:
    from edgecnn.device.review.reviewing import Reviewing

T = TypeVar("T")

HELD_S = 30.0
"""How long a page holds the review after its last request."""

PATHS = (
    ("/v1/review", "POST"), ("/v1/review/pictures/{sha256}", "GET"), ("/v1/review/answer", "POST"), ("/v1/review/undo", "POST"),
)  # fmt: skip


LONGEST_REQUEST = 1 << 16
"""Bytes of a request: it names some fifty pictures at most, and parsed JSON takes many times its memory."""


class Asked(Struct):
    """A request from a page: the id that it has made up, whether it takes the review over, the pictures, and the decision on them."""

    reviewer: str
    take: bool = False
    pictures: tuple[str, ...] = ()
    decision: str = ""
    label: str = ""


class Desk:
    """A review in its own thread, which the first request starts, and the page that holds it."""

    def __init__(self, begin: Callable[[], "Reviewing"]) -> None:
        self._begin = begin
        self._thread = ThreadPoolExecutor(1, "review")
        self._reviewing: Reviewing | None = None
        self._reviewer, self._until = "", 0.0

    async def run(self, work: Callable[["Reviewing"], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[["Reviewing"], T]) -> T:
        if self._reviewing is None:
            self._reviewing = self._begin()
        return work(self._reviewing)

    def claim(self, reviewer: str, take: bool = False) -> Response | None:
        """Give the review to a page; refuse while another page holds it, unless `take` is set."""
        now = time.monotonic()
        if reviewer != self._reviewer and now < self._until and not take:
            return refusal(409, "another page is reviewing these pictures. Close it, or continue here.", "Reviewing")
        self._reviewer, self._until = reviewer, now + HELD_S
        return None

    def close(self) -> None:
        """Wait until the last answer is written."""
        self._thread.shutdown()


def routes(desk: Desk | None) -> list[Route]:
    """Return the routes of a review; without a desk, each answers that no pictures are kept."""
    if desk is None:

        async def nothing(request: Request) -> Response:
            return refusal(404, "no pictures are kept for review: start edgecnn with --keep DIR.")

        return [Route(path, nothing, methods=[method]) for path, method in PATHS]

    async def picture(request: Request) -> Response:
        reviewing = await desk.run(lambda reviewing: reviewing)
        data = await asyncio.to_thread(reviewing.preview, request.path_params["sha256"])
        return refusal(404, "no such picture.") if data is None else Response(data, media_type="image/jpeg")

    async def post(request: Request) -> Response:
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

    ends = (post, picture, post, post)
    return [Route(path, end, methods=[method]) for (path, method), end in zip(PATHS, ends, strict=True)]
