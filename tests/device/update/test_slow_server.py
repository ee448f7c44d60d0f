"""A server that delays a board as long as it can, and an update that is killed while it waits: the next update finds no lock."""

import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime

import pytest

from edgecnn.device.update import fetchers
from edgecnn.errors import UpdateError
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")

LONGEST_S = 10
"""Far more than the deadline below, and far less than what the server would like."""


@pytest.fixture
def hurried(monkeypatch):
    """A board that waits for a second, not for 30."""
    monkeypatch.setattr(fetchers, "TIMEOUT_S", 1.0)


class Delay:
    """The ways in which a server can delay an answer. `over` ends them."""

    def __init__(self):
        self.over = threading.Event()

    def later(self, value, status=503, location=""):
        """Say that the board may try again later, or elsewhere later."""

        def answer(handler):
            handler.send_response(status)
            handler.send_header("Retry-After", value)
            if location:
                handler.send_header("Location", handler.path)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            raise ConnectionResetError  # nothing else is sent

        return answer

    def dripping(self, what):
        """Send the headers, or a chunked body, so slowly that no timeout of a socket ever ends it."""

        def answer(handler):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            handler.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n1;" if what == "body" else b"X-A: ")
            while not self.over.wait(0.1):
                handler.wfile.write(b"a")
            raise ConnectionResetError

        return answer


@pytest.fixture
def delay():
    made = Delay()
    yield made
    made.over.set()


@pytest.mark.usefixtures("in_this_process", "hurried")
@pytest.mark.parametrize(
    "how",
    [
        lambda delay: delay.later("3600"),
        lambda delay: delay.later("Fri, 31 Dec 2099 23:59:59 GMT"),
        lambda delay: delay.later("9" * 5000),
        lambda delay: delay.later("3600", 302, "again"),
        lambda delay: delay.dripping("headers"),
        lambda delay: delay.dripping("body"),
    ],
    ids=["an hour", "2099", "5000 digits", "a redirect in an hour", "headers", "body"],
)
def test_no_server_holds_a_board_longer_than_a_files_deadline(
    repository, board, bundles, serve, delay, how, monkeypatch, request
):
    if request.node.callspec.id in ("headers", "body"):  # the others must end by their number of attempts
        monkeypatch.setattr(fetchers, "SLOWEST_BYTES_PER_S", 1e9)
    old = repository.add(bundles[1], 1)
    board.update(repository.folder)
    server = serve(repository.folder)
    server.handle_error = lambda *arguments: None
    server.before = how(delay)
    started = time.monotonic()
    with pytest.raises(UpdateError, match=r"2\.root\.json"):
        board.update(server.address)
    assert time.monotonic() - started < LONGEST_S and board.current == old
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "the deadline is still set"


@pytest.mark.usefixtures("in_this_process")
def test_a_board_comes_back_when_the_server_says(repository, board, bundles, serve, delay):
    """A server that is busy for a second gets a second request, and no error."""
    digest = repository.add(bundles[1], 1)
    server = serve(repository.folder)
    server.handle_error = lambda *arguments: None
    server.before = lambda handler: delay.later("1")(handler) if len(server.requests) == 1 else None
    started = time.monotonic()
    board.update(server.address)
    assert board.current == digest and 1 <= time.monotonic() - started < LONGEST_S
    assert [path for path, _ in server.requests[:2]] == ["/metadata/2.root.json"] * 2


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_an_update_that_is_killed_while_it_waits_leaves_no_process_and_no_lock(
    repository, board, bundles, serve, spawn, delay, by
):
    repository.now = board.clocks.now = datetime.now(UTC).replace(microsecond=0)
    new = repository.add(bundles[1], 1)
    server = serve(repository.folder)
    begun = threading.Event()

    def wait(handler):
        begun.set()
        delay.over.wait()

    server.before = wait
    command = [sys.executable, "-m", "edgecnn", "update", "--prefix", board.board.prefix, "--channel", "door", "--from"]
    process = spawn([*map(str, command), server.address])
    assert begun.wait(60), "it never asked the server"
    os.kill(process.pid, by)  # only this one, and not the process that fetches for it
    process.wait()
    server.before = None
    board.update(repository.folder)
    deadline = time.monotonic() + LONGEST_S
    while True:
        try:
            board.update(server.address)
            break
        except UpdateError as error:
            assert "earlier fetch" in str(error) and time.monotonic() < deadline, error
            time.sleep(0.1)
    assert board.current == new
