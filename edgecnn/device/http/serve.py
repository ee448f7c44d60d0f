"""The server: one event loop, the socket that it listens on, and the messages of the camera loop."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from edgecnn.device.http.app import make_app
from edgecnn.device.http.board import Board
from edgecnn.device.http.link import AWAY, LOOK, MOST_BYTES, Opening, Shared, send
from edgecnn.device.http.site import Site
from edgecnn.device.http.viewers import Viewers
from edgecnn.device.stream.ends import SIGNALS, Stopped


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to who runs the server."""
        yield


async def serve(
    opening: Opening, listener: socket.socket, link: socket.socket | None = None, shared: Shared | None = None
) -> None:
    """Serve until the camera loop closes the link; without one, until a signal comes, which is raised as Stopped."""
    board = Board(opening)
    viewers = Viewers(
        shared, lambda looking: link is not None and send(link, LOOK if looking else AWAY), opening.rotation
    )
    board.on_picture = viewers.picture
    app = make_app(Site(board, viewers))
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False, proxy_headers=False,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = Server(config)
    signals: list[int] = []
    loop = asyncio.get_running_loop()
    if link is not None:
        loop.add_reader(link, receive, link, board, server)
    else:
        board.ready = True
        for number in SIGNALS:
            loop.add_signal_handler(number, stop, server, signals, number)
    await server.serve(sockets=[listener])
    if signals:
        raise Stopped(signals[0])


def stop(server: uvicorn.Server, signals: list[int], number: int) -> None:
    signals.append(number)
    server.should_exit = server.force_exit = True


def receive(link: socket.socket, board: Board, server: uvicorn.Server) -> None:
    """Take all messages that wait; an empty one is the end of the camera loop."""
    with contextlib.suppress(BlockingIOError):
        while message := link.recv(MOST_BYTES):
            board.receive(message)
        asyncio.get_running_loop().remove_reader(link)
        server.should_exit = server.force_exit = True
