"""Limits on one client: request size, memory for bodies, connections and time."""

import asyncio
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import h11
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgecnn.device.http.answers import refusal

RECEIVE_S = 8.0
"""Time from the start of a connection, or of a request on it, to the request's last byte. uvicorn has no such limit."""

SLOW_S = 8.0  # how long a client may leave waiting data unread, on a stream too

SWEEP_S = 0.5

KEEP_ALIVE_S = 5

CONNECTIONS, CONNECTIONS_OF_ONE = 128, 64

HEADERS, HEADER_BYTES, TARGET_BYTES = 64, 16 << 10, 2 << 10

BODY_BYTES = 16 << 20

BODIES_BYTES = 32 << 20  # for all open requests together

Check = Callable[[Request], Response | None]


def check_shape(request: Request) -> Response | None:
    """Refuse a request that is too large, or whose length another program might interpret differently."""
    headers = request.headers.raw
    if len(headers) > HEADERS or sum(len(name) + len(value) for name, value in headers) > HEADER_BYTES:
        return refusal(431, f"a request may have at most {HEADERS} headers, {HEADER_BYTES:,} bytes in total.")
    if len(request.scope["raw_path"]) + len(request.scope["query_string"]) > TARGET_BYTES:
        return refusal(414, f"an address may have at most {TARGET_BYTES:,} bytes.")
    if "transfer-encoding" in request.headers:
        return refusal(411, "send the body with Content-Length, not Transfer-Encoding.")
    if body_bytes(request) > BODY_BYTES:
        return refusal(413, f"a body may have at most {BODY_BYTES:,} bytes.")
    return None


def body_bytes(request: Request) -> int:
    """Return the length of a request's body, already checked by h11."""
    return int(request.headers.get("content-length", "0"))


class Guard:
    """Lets a request through if it passes all checks and there is room for its body."""

    def __init__(self, app: ASGIApp, checks: Sequence[Check]) -> None:
        self._app, self._checks = app, checks
        self._room = BODIES_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        refused = next(filter(None, (check(request) for check in self._checks)), None)
        size = body_bytes(request) if refused is None else 0
        if size > self._room:
            refused = refusal(503, "too many requests at the same time.", retry_after="1")
        if refused is not None:
            refused.headers["connection"] = "close"
            await refused(scope, receive, send)
            return
        self._room -= size
        try:
            await self._app(scope, receive, send)
        finally:
            self._room += size


TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

DROP = struct.pack("ii", 1, 0)


class Guarded(H11Protocol):
    """A connection that ends if a request arrives too slowly, the client stops reading, or too many connections are open."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._due: float | None = None
        self._blocked: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._due = time.monotonic() + RECEIVE_S
        clients = Counter(each.client[0] for each in self.connections if isinstance(each, Guarded) and each.client)
        if len(self.connections) > CONNECTIONS or (self.client and clients[self.client[0]] > CONNECTIONS_OF_ONE):
            transport.write(TOO_MANY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except (h11.LocalProtocolError, ValueError):
            # data after the start of an answer that is not HTTP, or a length of thousands of digits, which h11 0.14 does not check
            self.transport.abort()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._due = None
        elif self._due is None:
            self._due = time.monotonic() + RECEIVE_S

    def on_response_complete(self) -> None:
        if self.conn.their_state is not h11.SEND_BODY:
            self._due = None
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._blocked = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._blocked = None
        super().resume_writing()

    def sweep(self, now: float) -> None:
        """Abort the connection if its time is up."""
        if self.transport.is_closing() and self._blocked is None:
            self._blocked = now  # data that was already written still has to go out
        if self._blocked is not None and now - self._blocked > SLOW_S:
            # make the kernel drop the unread data, which can be several megabytes
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DROP)
            self.transport.abort()
        elif self._due is not None and now > self._due:
            if self.conn.our_state is h11.IDLE:
                self.transport.write(TOO_SLOW)
            self.transport.abort()


async def sweep(connections: set[Any]) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        now = time.monotonic()
        for connection in tuple(connections):
            connection.sweep(now)
