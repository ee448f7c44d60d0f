"""Who may send a request, and how much: the host name, the requesting page's origin, the token, and the limits on one client.

Limits are on the size of a request, the memory for bodies, connections and time. Refusals are JSON: a message, and the name of the
error,
which for an `EdgeCNNError` is its class.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgecnn.errors import BundleError, EdgeCNNError, EngineError, ImageError, ImageTooLargeError

STATUSES: dict[type[EdgeCNNError], int] = {ImageTooLargeError: 413, ImageError: 400, BundleError: 503, EngineError: 503}
"""The HTTP status of each kind of error: the first match counts, and any other error is a 500."""


def refusal(status: int, message: str, code: str = "", **headers: str) -> JSONResponse:
    """Return {"error": message, "code": code}; the code defaults to the status in words, such as "NotFound"."""
    name = code or HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")
    return JSONResponse(
        {"error": message, "code": name}, status, {key.replace("_", "-"): value for key, value in headers.items()}
    )


def error_response(error: EdgeCNNError) -> JSONResponse:
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), 500)
    return refusal(status, str(error), type(error).__name__)


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


async def close_idle(connections: set[Any]) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        now = time.monotonic()
        for connection in tuple(connections):
            connection.sweep(now)


PUBLIC = ("/healthz", "/readyz", "/login")
"""Paths that need no token: they reveal nothing about the camera."""

PAGES = ("/", "/review")
"""Paths that redirect a browser without a token to the login page, which then leads back."""

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")

COOKIE_S = 30 * 24 * 3600

LONGEST_LOGIN = 4096  # bytes of a form


class AccessControl:
    """Checks requests. Each check returns a refusal, or None."""

    def __init__(self, token: str | None, hosts: Collection[str] = (), port: int = 0) -> None:
        name = socket.gethostname().lower()
        self._hosts = {*hosts}
        self._names = {*hosts, "localhost", name, f"{name.partition('.')[0]}.local"}
        self._token = None if token is None else token.encode()
        self._cookie = f"edgecnn-{port}"  # all ports of a host share their cookies

    def check_host(self, request: Request) -> Response | None:
        """Refuse a host name that is not this server's: a hostile page may have pointed it here (DNS rebinding)."""
        match = HOST.fullmatch(request.headers.get("host", ""))
        if match and self._is_ours(match[1] or match[2], request.scope["server"]):
            return None
        return refusal(421, "this server does not answer to that host name. Add it with --http-hosts.")

    def _is_ours(self, name: str, server: tuple[str, int]) -> bool:
        try:
            number = ipaddress.ip_address(name)
        except ValueError:
            return name.lower().rstrip(".") in self._names
        local = ipaddress.ip_address(server[0])
        return number.is_loopback or number in (local, getattr(local, "ipv4_mapped", None))

    def check_origin(self, request: Request) -> Response | None:
        """Refuse requests from pages of another origin, except for following a link to a page here."""
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
        if origin is not None:
            if self._is_own_origin(origin, request.headers["host"]):
                return None
        elif site in ("none", "same-origin") or (
            request.headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
        ):
            return None
        return refusal(403, "pages of another origin may not send requests to this server.")

    def _is_own_origin(self, origin: str, host: str) -> bool:
        try:
            name = urlsplit(origin).hostname
        except ValueError:
            return False
        return name in self._hosts or origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")

    def check_token(self, request: Request) -> Response | None:
        if self._token is None or request.scope["path"] in PUBLIC or self._knows(request):
            return None
        if request.scope["path"] in PAGES and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"/login?to={request.scope['path'][1:]}", 303)
        # not Basic: the browser would open its own dialog over the page
        return refusal(401, "the token is missing or wrong.", www_authenticate='Bearer realm="edgecnn"')

    def _knows(self, request: Request) -> bool:
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        given = value.strip().encode("utf-8", "replace")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif kind.lower() != "bearer":
            return self._knows_cookie(request.cookies.get(self._cookie, ""))
        return self.is_token(given)

    def is_token(self, given: bytes) -> bool:
        """Compare in constant time; the hashes hide the token's length too."""
        own = self._token or b""
        return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(own).digest())

    def _knows_cookie(self, cookie: str) -> bool:
        until = cookie.partition(".")[0]
        if not re.fullmatch(r"[0-9]{1,12}", until) or int(until) < time.time():
            return False
        return hmac.compare_digest(cookie.encode(), self._signed(until).encode())

    def _signed(self, until: str) -> str:
        """Return a cookie's value: its expiry time, and an HMAC of it that only the token's holder can compute."""
        return f"{until}.{hmac.new(self._token or b'', f'edgecnn cookie {until}'.encode(), hashlib.sha256).hexdigest()}"

    def routes(self) -> list[Route]:
        return [Route("/login", self.login, methods=["POST"])]

    async def login(self, request: Request) -> Response:
        """Take the token from the form field `token`, and set a cookie for it."""
        if body_bytes(request) > LONGEST_LOGIN:
            return refusal(413, f"a form may have at most {LONGEST_LOGIN} bytes.")
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        if self._token is not None and not self.is_token(fields.get("token", [""])[0].strip().encode()):
            return refusal(401, "the token is wrong.")
        response = RedirectResponse("/", 303)
        if self._token is not None:
            value = self._signed(str(int(time.time()) + COOKIE_S))
            encrypted = request.headers.get("origin", "").startswith("https:")  # by a proxy
            response.set_cookie(self._cookie, value, COOKIE_S, secure=encrypted, httponly=True, samesite="strict")
        return response
