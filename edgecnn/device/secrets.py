"""Users and passwords of cameras and brokers: where they come from, and how texts and other programs do without them."""

import os
import re
from pathlib import Path

MQTT, CAMERA, HTTP = "EDGECNN_MQTT_", "EDGECNN_CAMERA_", "EDGECNN_HTTP_"
"""How the variables begin that hold them, which end in USER and PASSWORD, or in TOKEN."""

HIDDEN = "***"

USERINFO = re.compile(r"://(?:[^/?#\s:@]*:(?!\d*(?:[/?#\s]|$))\S*|[^/?#\s]*)@")
"""User and password of an address; a password that is not quoted may hold a slash or an @."""

NAMES = "pass|passwd|password|passphrase|pwd|psw|token|key|auth|secret"
FIELD = re.compile(rf"((?:{NAMES})=|--?(?:{NAMES}|u|user)\s+|authorization:\s*\w+\s+)[^&;\s'\"]+", re.IGNORECASE)
"""A field of an address, an option or a header that holds a password, and its value."""


def masked(text: str) -> str:
    """Return a text without the users and passwords of the addresses in it."""
    return FIELD.sub(rf"\1{HIDDEN}", USERINFO.sub(f"://{HIDDEN}@", text))


def environment() -> dict[str, str]:
    """Return the environment for another program: without users and passwords."""
    return {name: value for name, value in os.environ.items() if not name.startswith((MQTT, CAMERA, HTTP))}


def read_secret(prefix: str, file: Path | None) -> tuple[str | None, str | None]:
    """Return (user, password), or None: of a file, else of the environment by a prefix, MQTT or CAMERA. ValueError names a bad file."""
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
    """Return (user, password) of a file with a line for the password, or one for each; ValueError for other lines."""
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if len(lines) > 2 or not all(lines):
        raise ValueError("expected one line with the password, or two: the user and the password")
    return (lines[0] if len(lines) == 2 else None), lines[-1]
