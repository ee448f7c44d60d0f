"""Where a stream is published: the broker's address, and the listening socket and token of the server, before anything is loaded."""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from edgecnn.device.stream.settings import Http
from edgecnn.device.system import HTTP

PORTS = {"mqtt": 1883, "mqtts": 8883}  # schemes and their default ports; mqtts is TLS

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a topic level, and part of Home Assistant's identifiers


@dataclass(frozen=True, kw_only=True)
class Broker:
    """A broker's address and its user. With TLS, `host` is the name that the certificate must have. The password is never shown."""

    host: str
    port: int
    tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """The address for people, without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


class VisiblePasswordError(ValueError):
    """An address contains a password."""


def parse_address(text: str) -> tuple[Broker, str]:
    """Return an address's broker and device name, which defaults to this host's; ValueError if it is invalid or has a password."""
    scheme, found, rest = text.partition("://")
    userinfo, at, _ = rest.rpartition("@")
    if ":" in userinfo or (not found and "@" in text):
        raise VisiblePasswordError(
            "an address on the command line is visible to every user of this machine, so it must not contain a password; "
            "expected mqtt://USER@HOST/NAME"
        )
    shown = "the address" if at else repr(text)
    if scheme not in PORTS:
        raise ValueError(f"{shown} is not an MQTT address; expected mqtt://HOST/NAME, or mqtts:// for TLS")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except (ValueError, UnicodeError):  # for bad brackets, a bad port or a bad host
        raise ValueError(f"{shown} has an invalid host or port; expected mqtt://HOST:PORT/NAME") from None
    user = unquote(parts.username or "")
    if not host or port == 0 or re.search(r"\s", host):
        raise ValueError(f"{shown} has no valid host; expected mqtt://HOST/NAME")
    if parts.query or parts.fragment:
        raise ValueError(f"{shown} ends in ?… or #…, which means nothing here; expected mqtt://HOST/NAME")
    if not user.isprintable():
        raise ValueError("the user name contains an unprintable character")
    name = unquote(parts.path).strip("/") or default_name()
    if not NAME.fullmatch(name):
        allowed = "1 to 64 letters a to z, digits, - and _, as in mqtt://HOST/front-door"
        raise ValueError(f"the name {name!r} is not valid; expected {allowed}")
    tls = scheme == "mqtts"
    return Broker(host=host, port=port or PORTS[scheme], tls=tls, user=user or None), name


def default_name() -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0])[:64].strip("-")
    return name or "edgecnn"


LOOPBACK = "127.0.0.1"

BACKLOG = 128


class Listen(NamedTuple):
    """An address to listen on. `host` is a name or an IP address, without the brackets of IPv6."""

    host: str
    port: int

    @property
    def shown(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(text: str) -> Listen:
    """Parse "8080", "0.0.0.0:8080", "board.local:8080" or "[::]:8080"; ValueError for anything else. Port 0 means any free one."""
    match = re.fullmatch(r"(?:(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):)?([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"received {text!r}, expected PORT or HOST:PORT, such as 8080, 0.0.0.0:8080 or [::1]:8080")
    return Listen(match[1] or match[2] or LOOPBACK, int(match[3]))


def is_local(host: str) -> bool:
    """Return whether a host is "localhost" or a loopback address, which only this machine can reach."""
    return ipaddress.ip_address(host).is_loopback if is_number(host) else host == "localhost"


def is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


LEAST_TOKEN = 16
"""Minimum length of a token: sixteen random characters cannot be guessed, whatever the request rate."""


class Listener(NamedTuple):
    """A listening socket, the token that clients must send, if any, and further host names of the server."""

    listener: socket.socket
    token: str | None
    hosts: tuple[str, ...]

    @property
    def address(self) -> tuple[str, int]:
        host, port, *_ = self.listener.getsockname()
        return host, port

    @property
    def url(self) -> str:
        host, port = self.address
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    @property
    def is_wide_open(self) -> bool:
        return self.token is None and not is_local(self.address[0])


def open_listener(options: Http) -> Listener:
    """Listen at the address in the settings; ValueError if the address, the token or their combination is not valid."""
    listen = parse_listen(options.address or "")
    token = read_token(options.token_file)
    if not (token or options.open or is_local(listen.host)):
        raise ValueError(
            f"other machines can reach {listen.shown}, so clients need a token: name its file with --http-token-file, set "
            f"{HTTP}TOKEN, or let everybody in with --http-open"
        )
    named = f"{options.hosts or ''},{listen.host}".lower().split(",")
    hosts = tuple(name.strip() for name in named if name.strip() and not is_number(name.strip()))
    try:
        family, *_, place = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return Listener(socket.create_server(place[:2], family=family, backlog=BACKLOG), token, hosts)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{listen.shown}: {getattr(error, 'strerror', None) or error}") from None


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, else from the environment, else None. ValueError, which does not show the token, if it is not valid."""
    if file is None:
        where, text = f"{HTTP}TOKEN", os.environ.get(f"{HTTP}TOKEN", "")
        if not text:
            return None
    else:
        where = str(file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ValueError(f"{where}: {getattr(error, 'strerror', None) or 'is not UTF-8'}") from None
    token = text.strip()
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{where}: expected one line of at least {LEAST_TOKEN} ASCII characters without spaces. "
            "Generate one: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token
