"""The server: one event loop, the socket that it listens on, and the messages of the camera loop."""

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import uvicorn

from edgecnn.device.http.app import make_app
from edgecnn.device.http.auth import Gate
from edgecnn.device.http.board import Board
from edgecnn.device.http.inference import Inference, load
from edgecnn.device.http.limits import HEADER_BYTES, KEEP_ALIVE_S, Guarded, sweep
from edgecnn.device.http.link import AWAY, LOOK, MOST_BYTES, Opening, Shared, send
from edgecnn.device.http.machine import watch
from edgecnn.device.http.site import Site
from edgecnn.device.http.upkeep import Upkeep, keep, say
from edgecnn.device.http.viewers import Viewers
from edgecnn.device.stream.ends import SIGNALS, Stopped

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to who runs the server."""
        yield

    def end(self) -> None:
        """End at once: streams would go on for ever."""
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        self.should_exit = self.force_exit = True


async def serve_camera(opening: Opening, listener: socket.socket, link: socket.socket, shared: Shared) -> None:
    """Serve what the camera loop sends by `link`, until it closes that."""
    viewers = Viewers(shared, lambda looking: send(link, LOOK if looking else AWAY), opening.rotation)
    choice = opening.classifier | {"model_sha256": opening.model["model_sha256"]}
    site = make_site(opening, viewers, Inference(functools.partial(load, **choice)))
    site.board.on_picture = viewers.picture
    server = make_server(site)
    asyncio.get_running_loop().add_reader(link, receive, link, site.board, server)
    await run(server, listener, site, with_parent=True)


async def serve_api(opening: Opening, listener: socket.socket, classifier: "Classifier") -> None:
    """Serve without a camera, until a signal comes, which is raised as Stopped."""
    site = make_site(opening, Viewers(None, bool), Inference(lambda: classifier))
    site.board.ready = True
    server = make_server(site)
    signals: list[int] = []

    def stop(number: int) -> None:
        signals.append(number)
        server.end()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    await run(server, listener, site, with_parent=False)
    raise Stopped(signals[0])


def make_site(opening: Opening, viewers: Viewers, inference: Inference) -> Site:
    board, gate = Board(opening), Gate(opening.token, opening.hosts, opening.port)
    return Site(board, viewers, inference, gate, Upkeep(board, opening))


def make_server(site: Site) -> Server:
    return Server(
        uvicorn.Config(
            make_app(site), http=Guarded, ws="none", lifespan="off", log_config=None, log_level="error", access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, h11_max_incomplete_event_size=HEADER_BYTES,
        )
    )  # fmt: skip


async def run(server: Server, listener: socket.socket, site: Site, *, with_parent: bool) -> None:
    tasks = [
        asyncio.create_task(sweep(server.server_state.connections)),
        asyncio.create_task(watch(site.board.machine, with_parent)),
        asyncio.create_task(keep(site.upkeep)),
    ]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        say(site.upkeep.write(site.upkeep.due(end=True)))


def receive(link: socket.socket, board: Board, server: Server) -> None:
    """Take all messages that wait; an empty one is the end of the camera loop."""
    with contextlib.suppress(BlockingIOError):
        while message := link.recv(MOST_BYTES):
            board.receive(message)
        asyncio.get_running_loop().remove_reader(link)
        server.end()
