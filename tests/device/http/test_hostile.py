"""Hostile requests, a thousand in the slow test: none is served or fatal, each ends in time, and the camera loop does not notice."""

import asyncio
import contextlib
import errno
import functools
import json
import random
import select
import selectors
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple
from urllib.request import urlopen

import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from edgecnn.device.http import access, routes
from edgecnn.device.http.link import EVENT, Opening
from edgecnn.device.http.routes import Viewers
from edgecnn.device.http.serve import make_site

TOKEN = "correct-horse-battery-staple"

CAMERA = "synthetic:64x48?fps=30&pattern=noise"

LIMIT_S = 10.0

AT_ONCE = 100  # connections at the same time, from four addresses: the server takes 128, and 64 of each address

IDLE = 500  # at the same time, more than it accepts


class Attack(NamedTuple):
    """Bytes to send at the start, and bytes to repeat at an interval in seconds."""

    kind: str
    first: bytes = b""
    again: bytes = b""
    every_s: float = 0.0


@functools.cache
def png(width, height):
    """Return a PNG of a few kilobytes that really has the black pixels that it claims."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def attacks(port) -> Iterator[Attack]:
    """Yield each kind of attack once; all but the last ones know the token."""
    host, token = f"Host: 127.0.0.1:{port}\r\n", f"Authorization: Bearer {TOKEN}\r\n"
    known = host + token
    get = f"GET /v1/state HTTP/1.1\r\n{known}"
    post = f"POST /v1/classify HTTP/1.1\r\n{known}"
    smuggled, last = f"{get}\r\n", "Connection: close\r\n"
    chunked = f"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"

    def attack(kind, text, again=b"", every_s=0.0):
        return Attack(kind, text if isinstance(text, bytes) else text.encode("latin-1"), again, every_s)

    yield attack("slow header", f"{get}X: ", b"a", 0.5)
    yield attack("slow line", "GET /v1/st", b"a", 0.5)
    yield attack("slow headers", get, b"X: a\r\n", 0.5)
    yield attack("slow body", f"{post}Content-Length: 5000\r\n\r\n", b"a", 0.5)
    yield attack("no body", f"{post}Content-Length: 5000\r\n\r\n")
    yield attack("slow second request", f"GET /nothing HTTP/1.1\r\n{known}\r\n{get}", b"a", 0.5)
    yield attack("endless headers", get, b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 100)
    yield attack("endless header", f"{get}X: ", b"a" * 10_000)
    yield attack("endless line", "GET /", b"a" * 10_000)
    yield attack("large header", f"{get}X: {'a' * 100_000}\r\n\r\n")
    yield attack("many headers", get + 200 * "X: a\r\n" + "\r\n")
    yield attack("long target", f"GET /v1/state?{'a' * 8000} HTTP/1.1\r\n{known}\r\n")
    for lines in (
        f"Content-Length: 5\r\n{chunked}",
        chunked,
        f"Transfer-Encoding: xchunked\r\n\r\n{smuggled}",
        f"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{smuggled}",
        f"Transfer-Encoding: identity\r\n{chunked}",
        f"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}",
        f"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{smuggled}",
        f"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!{smuggled}",
        f"Content-Length: +5\r\n\r\nhello{smuggled}",
        f"Content-Length: -1\r\n\r\n{smuggled}",
        f"Content-Length: 0x5\r\n\r\nhello{smuggled}",
        f"Content-Length: {'9' * 5000}\r\n\r\n{smuggled}",
        f"X: a\0b\r\n\r\n{smuggled}",
    ):
        yield attack("smuggling", post + lines)
    yield attack("smuggling", f"POST /v1/classify HTTP/1.0\r\n{known}{chunked}")
    for name in (
        "evil.example",
        "127.0.0.1.evil.example",
        "8.8.8.8",
        f"127.0.0.1:{port}@evil.example",
        "",
        "[::ffff:8.8.8.8]",
    ):
        yield attack("wrong host", f"GET /v1/state HTTP/1.1\r\nHost: {name}\r\n{token}\r\n")
    yield attack("wrong host", f"GET /v1/state HTTP/1.1\r\n{token}\r\n")
    yield attack("wrong host", f"{get}Host: evil.example\r\n\r\n")
    yield attack("wrong host", f"GET http://evil.example/v1/state HTTP/1.1\r\n{known}{last}\r\n")
    for line in (
        "Origin: http://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ):
        yield attack("cross origin", f"{get}{line}\r\n\r\n")
        yield attack("cross origin", f"{post}{line}\r\nContent-Length: 5\r\n\r\nhello")
    for path in (
        "/../etc/passwd", "/v1/unsure/../../../etc/passwd", "/v1/unsure/%2e%2e/%2e%2e/etc/passwd", "/v1/unsure//etc/passwd",
        "/v1/unsure/..%2f..%2fetc%2fpasswd", "/%00", "/v1/unsure/.edgecnn-saved", "/v1/unsure/%ff%fe", "//v1/state", "/v1/state/", "*",
    ):  # fmt: skip
        yield attack("traversal", f"GET {path} HTTP/1.1\r\n{known}{last}\r\n")
    yield attack("huge body", f"{post}Content-Length: 10000000000\r\n\r\n", b"a" * 65536)
    yield attack("huge body", f"{post}Content-Length: 17000000\r\nExpect: 100-continue\r\n\r\n", b"a" * 65536)
    yield attack("huge body", f"POST /login HTTP/1.1\r\n{host}Content-Length: 100000\r\n\r\n", b"a" * 65536)
    bmp = b"BM" + bytes(12) + struct.pack("<Iii", 40, 2**30, 2**30) + bytes(40)
    for bomb in (
        png(30_000, 30_000),
        b"GIF89a\xff\xff\xff\xff\0\0\0",
        bmp,
    ):
        yield attack("bomb", f"{post}{last}Content-Length: {len(bomb)}\r\n\r\n".encode() + bomb)
    for line in ("", "Authorization: Bearer wrong\r\n", "Authorization: Basic ////\r\n", "Cookie: edgecnn=1\r\n"):
        yield attack("no token", f"GET /v1/stream.mjpeg HTTP/1.1\r\n{host}{line}\r\n")
        yield attack(
            "no token", f"POST /v1/classify HTTP/1.1\r\n{host}{line}Content-Length: 9999999\r\n\r\n", b"a" * 65536
        )
    yield attack("no HTTP", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500))
    yield attack("no HTTP", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 100, 0.5)
    yield attack("slow noise", random.Random(3).randbytes(5000))
    yield attack("no HTTP", f"TRACE / HTTP/1.1\r\n{known}{last}\r\n")
    yield attack("no HTTP", f"CONNECT evil.example:80 HTTP/1.1\r\n{known}{last}\r\n")


class Client:
    """One connection of an attack; `ended_s` is its duration, None while it is open."""

    def __init__(self, attack, port, number):
        self.attack, self.answer, self.ended_s = attack, b"", None
        self.left, self.due = attack.first, 0.0
        self.start = time.monotonic()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.bind((f"127.0.0.{2 + number % 4}", 0))
        self.socket.connect_ex(("127.0.0.1", port))

    def step(self, now, readable):
        """Read and write as much as possible, until the connection ends."""
        try:
            while readable:
                data = self.socket.recv(65536)
                if not data:
                    return self.end(now)
                self.answer += data
        except BlockingIOError:
            pass
        except OSError:
            return self.end(now)
        if not self.left and self.attack.again and now >= self.due:
            self.left, self.due = self.attack.again, now + self.attack.every_s
        try:
            if self.left:
                self.left = self.left[self.socket.send(self.left) :]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                self.drain()
                self.end(now)
        return None

    def drain(self):
        """Read the answer that arrived before the connection was reset."""
        with contextlib.suppress(OSError):
            while data := self.socket.recv(65536):
                self.answer += data

    def end(self, now):
        self.ended_s = now - self.start
        self.socket.close()

    @property
    def statuses(self):
        return [int(part[:3]) for part in self.answer.split(b"HTTP/1.1 ")[1:] if part[:3] != b"100"]


def is_slow(attack):
    """Return whether only the server's limit on time ends it."""
    return attack.kind.startswith("slow") or attack.kind in ("no body", "idle")


def fight(port, waiting, at_once):
    """Run attacks, a number at a time; return the clients after all have ended or are far over time."""
    done, running, number = [], [], 0
    with selectors.DefaultSelector() as selector:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(Client(waiting.pop(), port, number))
                selector.register(running[-1].socket, selectors.EVENT_READ, running[-1])
                number += 1
            readable = {key.data for key, _ in selector.select(0.01)}
            now = time.monotonic()
            for client in tuple(running):
                sock = client.socket
                client.step(now, client in readable)
                if client.ended_s is not None or now - client.start > 3 * LIMIT_S:
                    running.remove(client)
                    done.append(client)
                    with contextlib.suppress(KeyError, ValueError):
                        selector.unregister(sock)
    return done


@pytest.mark.parametrize("times", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_hostile_requests(serve, tmp_path, times):
    """Once, without the slow attacks, or all of them many times."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    serving = serve(CAMERA, "--json", "--http", "0.0.0.0:0", "--http-token-file", str(file)).ready()
    token = {"authorization": f"Bearer {TOKEN}"}
    server, before = serving.children(), serving.state(**token)
    start = time.monotonic()
    once = [*attacks(serving.port), *[Attack("idle")] * 10]
    all_attacks = once * times if times > 1 else [attack for attack in once if not is_slow(attack)]
    random.Random(0).shuffle(all_attacks)
    clients = fight(serving.port, [*all_attacks], AT_ONCE)
    if times > 1:
        clients += fight(serving.port, [Attack("idle")] * IDLE, IDLE)
    seconds = time.monotonic() - start

    assert len(clients) >= (1000 if times > 1 else 60)
    late = [(client.attack, client.ended_s) for client in clients if client.ended_s is None or client.ended_s > LIMIT_S]
    assert not late
    served = [(client.attack, client.answer) for client in clients if any(status < 400 for status in client.statuses)]
    assert not served
    refused = [
        client for client in clients if client.statuses[:1] == [503] and client.attack.kind not in ("idle", "bomb")
    ]
    assert len(refused) < len(all_attacks) / 4, "most attacks get past the connection limits"

    after = serving.state(**token)
    assert serving.children() == server and after["camera"] == "open"
    frames, dropped = (after["counts"][name] - before["counts"][name] for name in ("frames", "dropped"))
    assert frames > 0
    if times > 1:
        assert frames + dropped > 25 * seconds and dropped < frames / 4, (frames, dropped, seconds)
    serving.close()
    events = [json.loads(line) for line in serving.lines if '"event"' in line]
    assert {event["event"] for event in events} <= {"camera_opened", "state_changed", "ended"}
    notes = "".join(serving.notes)
    assert "Traceback" not in notes, notes
    assert TOKEN not in notes


def test_a_slow_request_ends_at_its_limit(serve_here, monkeypatch):
    """The server in this process, with limits of less than a second."""
    monkeypatch.setattr(access, "RECEIVE_S", 0.5)
    monkeypatch.setattr(access, "SWEEP_S", 0.05)

    async def read(request):
        await request.body()

    with serve_here(Route("/v1/classify", read, methods=["POST"]), token=TOKEN) as port:
        slow = [attack._replace(every_s=0.1) for attack in attacks(port) if is_slow(attack)]
        clients = fight(port, [*slow, Attack("idle")], AT_ONCE)
    answered = {"slow second request": [404, 408], "slow body": [], "no body": []}
    assert len(clients) == 8
    for client in clients:
        assert client.ended_s is not None and client.ended_s >= 0.5, client.attack
        assert client.statuses == answered.get(client.attack.kind, [408]), client.attack


def test_64_connections_of_one_client_and_128_of_all_are_accepted_and_a_closed_one_makes_room(serve_here, monkeypatch):
    monkeypatch.setattr(access, "RECEIVE_S", 60.0)
    with serve_here(token=TOKEN) as port, contextlib.ExitStack() as stack:

        def connect(number):
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), 20, (f"127.0.0.{number}", 0)))

        def refused(number):
            """Return whether a connection is closed at once, after an answer to try again in five seconds."""
            made = connect(number)
            with contextlib.suppress(OSError):  # it is closed already
                made.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = made.recv(4096)
            assert not head.startswith(b"HTTP/1.1 503") or b"\r\nRetry-After: 5\r\n" in head
            made.close()
            return head.startswith(b"HTTP/1.1 503")

        many = {number: [connect(number) for _ in range(63)] for number in (2, 3)}
        assert not refused(2)
        many[2].append(connect(2))
        assert refused(2) and not refused(3)
        many[3].append(connect(3))
        assert refused(4)
        assert select.select([*many[2], *many[3]], [], [], 0)[0] == [], "the others stay open"
        many[2].pop().close()
        while refused(4):
            pass


def test_a_client_that_leaves_while_lines_wait_causes_no_warnings(serve_here, monkeypatch, caplog):
    """The loop is busy while the client goes and fifty lines arrive; asyncio would report all but five of their writes."""
    site = make_site(
        Opening(port=80, model={"name": "m", "serial": 0, "labels": ["a"], "shape": [2, 2, 3]}),
        Viewers(None, bool),
        None,
    )
    busy, gone = threading.Event(), threading.Event()

    async def burst(request):
        busy.set()
        assert gone.wait(10)
        for _ in range(50):
            line = {"event": "frame_damaged", "ts": "2026-11-28T10:15:02Z", "source": "door", "count": 1}
            site.board.receive(EVENT + json.dumps(line).encode())
        return PlainTextResponse("done")

    with serve_here(*routes.api_routes(site), Route("/burst", burst)) as port:
        reader = socket.create_connection(("127.0.0.1", port))
        reader.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"retry: 1000" not in received:
            received += reader.recv(4096)
        asking = threading.Thread(target=urlopen, args=[f"http://127.0.0.1:{port}/burst"])
        asking.start()
        assert busy.wait(10)
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader.close()
        gone.set()
        asking.join()
    assert site.board.damaged == 50
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_a_client_that_does_not_read_is_dropped_and_one_that_reads_is_not(serve_here, monkeypatch):
    monkeypatch.setattr(access, "SLOW_S", 2.0)
    monkeypatch.setattr(access, "SWEEP_S", 0.02)

    large = bytes(6 << 20)  # more than the kernel keeps

    async def endless(request):
        async def parts():
            yield large
            while True:
                yield b"more"
                await asyncio.sleep(0.005)

        return StreamingResponse(parts())

    with serve_here(Route("/", endless)) as port, contextlib.ExitStack() as stack:
        reader, idle = (stack.enter_context(socket.socket()) for _ in range(2))
        dropped = select.poll()
        dropped.register(idle, select.POLLHUP)
        for client in (reader, idle):
            client.settimeout(20)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not dropped.poll(100), "by now, both have let data wait"
        end = time.monotonic() + 20
        while not dropped.poll(0):
            assert reader.recv(1 << 20) and time.monotonic() < end
        for _ in range(30):
            assert reader.recv(1 << 16), "the time that it once let data wait does not count any more"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/stream.mjpeg", "/v1/events"])
def test_a_client_that_does_not_read_a_stream_is_dropped(serve, path):
    serving = serve("synthetic:640x480?fps=200&pattern=noise").ready()
    with socket.socket() as viewer:
        viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        viewer.connect(("127.0.0.1", serving.port))
        viewer.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        poll = select.poll()
        poll.register(viewer, select.POLLHUP)
        assert poll.poll(60_000), "the connection is reset"
