"""The server: one event loop, its listening socket, and the messages from the camera loop.

Its process is `python -m edgecnn.device.http.serve LINK LISTENER FRAMES`: three inherited descriptors, and an Opening on stdin.
"""

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgecnn.device.http import routes
from edgecnn.device.http.access import HEADER_BYTES, KEEP_ALIVE_S, AccessControl, Guarded, close_idle
from edgecnn.device.http.board import Board, Upkeep, keep_files, print_problem, watch_machine
from edgecnn.device.http.link import AWAY, LOOK, MOST_BYTES, Opening, Shared, send
from edgecnn.device.http.routes import Inference, Site, Viewers, all_routes, load_classifier, make_app
from edgecnn.device.stream.loop import SIGNALS, Stopped
from edgecnn.runtime.classifier import Classifier

if TYPE_CHECKING:
    from edgecnn.device.review import Reviewing


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller."""
        yield

    def end(self) -> None:
        """End immediately: streams would go on forever."""
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = self.force_exit = True


async def serve_camera(opening: Opening, listener: socket.socket, link: socket.socket, shared: Shared) -> None:
    """Serve what the camera loop sends over `link`, until it closes the link."""
    viewers = Viewers(shared, lambda looking: send(link, LOOK if looking else AWAY), opening.rotation)
    choice = opening.classifier | {"model_sha256": opening.model["model_sha256"]}
    site = make_site(opening, viewers, Inference(functools.partial(load_classifier, **choice)))
    site.board.on_picture = viewers.picture
    server = make_server(make_app(site.gate, all_routes(site)))
    asyncio.get_running_loop().add_reader(link, receive, link, site.board, server)
    await run_server(server, listener, site)


async def serve_api(opening: Opening, listener: socket.socket, classifier: "Classifier") -> None:
    """Serve without a camera until a signal arrives, which is raised as Stopped."""
    site = make_site(opening, Viewers(None, bool), Inference(lambda: classifier))
    server = make_server(make_app(site.gate, all_routes(site)))
    with stopped_by_signals(server):
        await run_server(server, listener, site)


async def serve_review(gate: AccessControl, listener: socket.socket, reviewing: "Reviewing") -> None:
    """Serve only a review until a signal arrives, which is raised as Stopped."""

    async def to_review(request: Request) -> Response:
        return RedirectResponse("/review", 303)

    desk = routes.Desk(lambda: reviewing)
    pages = [*routes.document("review.html", "/review"), *routes.document("page.html", "/login"), Route("/", to_review)]
    server = make_server(make_app(gate, [*pages, *gate.routes(), *routes.review_routes(desk)]))
    with stopped_by_signals(server):
        await serve(server, listener)
        desk.close()


@contextlib.contextmanager
def stopped_by_signals(server: Server) -> Iterator[None]:
    """End the server on a signal, and raise the signal as Stopped afterwards."""
    signals: list[int] = []

    def stop(number: int) -> None:
        signals.append(number)
        server.end()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    yield
    raise Stopped(signals[0])


def make_site(opening: Opening, viewers: Viewers, inference: Inference) -> Site:
    board, gate = Board(opening), AccessControl(opening.token, opening.hosts, opening.port)
    return Site(board, viewers, inference, gate, Upkeep(board, opening), make_desk(opening))


def make_desk(opening: Opening) -> routes.Desk | None:
    """Return the desk for reviewing a board's kept pictures; None if none are kept."""
    if opening.unsure is None:
        return None
    folder = Path(opening.unsure)

    def begin() -> "Reviewing":
        from edgecnn.boards import LABELS_FILE
        from edgecnn.device.review import Journal, Reviewing

        return Reviewing(folder, Journal(folder / LABELS_FILE), opening.model["labels"])

    return routes.Desk(begin)


def make_server(app: ASGIApp) -> Server:
    return Server(
        uvicorn.Config(
            app, http=Guarded, ws="none", lifespan="off", log_config=None, log_level="error", access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, h11_max_incomplete_event_size=HEADER_BYTES,
        )
    )  # fmt: skip


async def run_server(server: Server, listener: socket.socket, site: Site) -> None:
    try:
        await serve(server, listener, watch_machine(site.board), keep_files(site.upkeep))
    finally:
        print_problem(site.upkeep.write(site.upkeep.due(end=True)))


async def serve(server: Server, listener: socket.socket, *others: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(work) for work in (close_idle(server.server_state.connections), *others)]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()


def receive(link: socket.socket, board: Board, server: Server) -> None:
    """Handle all waiting messages; an empty one means that the camera loop has ended."""
    with contextlib.suppress(BlockingIOError, ConnectionResetError):  # the next call sees the end
        while message := link.recv(MOST_BYTES):
            board.receive(message)
        asyncio.get_running_loop().remove_reader(link)
        server.end()


NICE = 10  # the camera loop comes first


def main() -> None:
    link, listener, frames = map(int, sys.argv[1:])
    for number in SIGNALS:  # they also go to the camera loop, which then ends this process
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    opening = Opening(**json.load(sys.stdin.buffer))
    to_loop = socket.socket(fileno=link)
    to_loop.setblocking(False)
    asyncio.run(serve_camera(opening, socket.socket(fileno=listener), to_loop, Shared(frames)))


if __name__ == "__main__":
    main()
