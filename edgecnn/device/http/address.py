"""Where the server listens: [HOST:]PORT."""

import ipaddress
import re
import socket
from typing import NamedTuple

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


def bind(listen: Listen) -> socket.socket:
    """Return a socket that listens on an address; ValueError, which names the address, if that fails."""
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, place = found[0]
        return socket.create_server(place[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{listen.shown}: {why}") from None
