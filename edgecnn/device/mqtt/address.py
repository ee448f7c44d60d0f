"""Addresses of MQTT brokers: mqtt://USER@HOST:PORT/NAME."""

import re
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

PORTS = {"mqtt": 1883, "mqtts": 8883}  # schemes, and the port where an address has none. mqtts is TLS.

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a level of topics, and a part of identifiers in Home Assistant


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Where a broker is, and who connects. With TLS the host is the name that its certificate must have; the password is never shown."""

    host: str
    port: int
    tls: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """The address for people: without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def parse_address(text: str) -> tuple[Broker, str]:
    """Read an address; return the broker and the device's name, by default this host's; ValueError, also for one with a password."""
    scheme, found, rest = text.partition("://")
    userinfo, at, _ = rest.rpartition("@")
    if ":" in userinfo or (not found and "@" in text):
        raise ValueError(
            "an address on the command line is visible to every user of this machine, so it cannot hold a password; "
            "expected mqtt://USER@HOST/NAME"
        )
    shown = "the address" if at else repr(text)
    if scheme not in PORTS:
        raise ValueError(f"{shown} is not an address of MQTT; expected mqtt://HOST/NAME, or mqtts:// for TLS")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except (ValueError, UnicodeError):  # of brackets, of the port, of the host
        raise ValueError(f"{shown} has a host or port that is not valid; expected mqtt://HOST:PORT/NAME") from None
    user = unquote(parts.username or "")
    if not host or port == 0 or re.search(r"\s", host):
        raise ValueError(f"{shown} has no valid host; expected mqtt://HOST/NAME")
    if parts.query or parts.fragment:
        raise ValueError(f"{shown} ends in ?… or #…, which means nothing here; expected mqtt://HOST/NAME")
    if not user.isprintable():
        raise ValueError("the user has a character that cannot be printed")
    name = unquote(parts.path).strip("/") or default_name()
    if not NAME.fullmatch(name):
        allowed = "1 to 64 of the letters a to z, digits, - and _, as in mqtt://HOST/front-door"
        raise ValueError(f"the name {name!r} must be {allowed}")
    tls = scheme == "mqtts"
    return Broker(host=host, port=port or PORTS[scheme], tls=tls, user=user or None), name


def default_name() -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0])[:64].strip("-")
    return name or "edgecnn"
