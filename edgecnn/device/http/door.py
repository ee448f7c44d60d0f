"""The server's listening socket and token, prepared from the settings before anything is loaded."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

from edgecnn.device.http.address import bind, is_local, is_number, parse_listen
from edgecnn.device.secrets import HTTP
from edgecnn.device.stream.settings import Http

LEAST_TOKEN = 16
"""Minimum length of a token: sixteen random characters cannot be guessed, whatever the request rate."""


class Door(NamedTuple):
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
        """The page's address, for people."""
        host, port = self.address
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    @property
    def is_wide_open(self) -> bool:
        return self.token is None and not is_local(self.address[0])


def open_door(options: Http) -> Door:
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
    return Door(bind(listen), token, hosts)


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
