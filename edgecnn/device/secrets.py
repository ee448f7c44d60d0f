"""User names and passwords of cameras and brokers: where they come from, and how to keep them out of texts and other programs."""

import os
import re
from pathlib import Path

MQTT, CAMERA, HTTP = "EDGECNN_MQTT_", "EDGECNN_CAMERA_", "EDGECNN_HTTP_"
"""Prefixes of the environment variables that hold them; the names end in USER and PASSWORD, or in TOKEN."""

HIDDEN = "***"

USERINFO = re.compile(r"://(?:[^/?#\s:@]*:(?!\d*(?:[/?#\s]|$))\S*|[^/?#\s]*)@")
"""The user and password in an address. A password that is not quoted may contain a slash or an @."""

NAMES = "pass|passwd|password|passphrase|pwd|psw|token|key|auth|secret"
FIELD = re.compile(rf"((?:{NAMES})=|--?(?:{NAMES}|u|user)\s+|authorization:\s*\w+\s+)[^&;\s'\"]+", re.IGNORECASE)
"""An address field, option or header that holds a password, with its value."""


def masked(text: str) -> str:
    """Return a text with the users and passwords in it masked."""
    return FIELD.sub(rf"\1{HIDDEN}", USERINFO.sub(f"://{HIDDEN}@", text))


def environment() -> dict[str, str]:
    """Return the environment for another program, without users and passwords."""
    return {name: value for name, value in os.environ.items() if not name.startswith((MQTT, CAMERA, HTTP))}


def read_secret(prefix: str, file: Path | None) -> tuple[str | None, str | None]:
    """Return (user, password), each None if missing, from a file or the environment variables of a prefix. ValueError names a bad file."""
    user, password = (os.environ.get(prefix + name) or None for name in ("USER", "PASSWORD"))
    if file is not None:
        try:
            in_file, password = parse_secret(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            why = "is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
            raise ValueError(f"{file}: {why}") from None
        user = in_file or user
    return user, password


def parse_secret(text: str) -> tuple[str | None, str]:
    """Parse a file with one line (the password) or two (the user, then the password); ValueError for any other."""
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if len(lines) > 2 or not all(lines):
        raise ValueError("expected one line with the password, or two: the user and the password")
    return (lines[0] if len(lines) == 2 else None), lines[-1]
