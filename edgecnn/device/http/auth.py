"""Access control: by the host name in the request, the origin of the requesting page, and the token."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import socket
import time
from collections.abc import Collection
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from edgecnn.device.http.answers import refusal
from edgecnn.device.http.limits import body_bytes

PUBLIC = ("/healthz", "/readyz", "/login")
"""Paths that need no token: they reveal nothing about the camera."""

PAGES = ("/", "/review")
"""Paths that redirect a browser without a token to the login page, which then leads back."""

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")

COOKIE_S = 30 * 24 * 3600

LONGEST_LOGIN = 4096  # bytes of a form


class Gate:
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
