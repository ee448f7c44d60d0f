"""A request at a limit is accepted, and one beyond it is refused; the room of a finished request is free again."""

import asyncio

import pytest
from starlette.requests import Request

from edgecnn.device.http.limits import Guard, check_shape

MIB = 1 << 20


def scope(headers=(), path=b"/v1/classify", query=b""):
    return {
        "type": "http",
        "method": "POST",
        "path": path.decode(),
        "raw_path": path,
        "query_string": query,
        "headers": list(headers),
    }


@pytest.mark.parametrize(
    ("status", "at", "beyond"),
    [
        (431, scope([(b"a", b"")] * 64), scope([(b"a", b"")] * 65)),
        (431, scope([(b"abc", b"x" * 16381)]), scope([(b"abc", b"x" * 16382)])),
        (414, scope(path=b"/" + b"p" * 47, query=b"q" * 2000), scope(path=b"/" + b"p" * 47, query=b"q" * 2001)),
        (413, scope([(b"content-length", b"16777216")]), scope([(b"content-length", b"16777217")])),
    ],
    ids=["headers", "their bytes", "address", "body"],
)
def test_the_limits_of_one_request(status, at, beyond):
    assert check_shape(Request(at)) is None
    assert check_shape(Request(beyond)).status_code == status


def test_open_requests_share_32_mib_and_give_them_back():
    answered, waiting = [], []

    async def app(scope, receive, send):
        if waiting:
            await guard(scope_of(waiting.pop(0)), receive, send)
        answered.append(scope["headers"][0][1])

    def scope_of(size):
        return scope([(b"content-length", str(size).encode())])

    async def send(message):
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    guard = Guard(app, [check_shape])
    for _ in range(2):
        waiting[:] = [15 * MIB, MIB, 1, 0]
        asyncio.run(guard(scope_of(16 * MIB), None, send))
    full = [503, b"1048576", b"15728640", b"16777216"]
    assert answered == full * 2


def test_a_request_that_fails_gives_its_room_back():
    """As when a client leaves during an upload."""
    statuses = []

    async def app(scope, receive, send):
        raise ConnectionResetError

    async def send(message):
        statuses.append(message.get("status"))

    guard, size = Guard(app, [check_shape]), [(b"content-length", str(16 * MIB).encode())]
    for _ in range(3):
        with pytest.raises(ConnectionResetError):
            asyncio.run(guard(scope(size), None, send))
    assert statuses == []
