"""Addresses of MQTT brokers: mqtt://USER@HOST:PORT/NAME."""

import re
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

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
