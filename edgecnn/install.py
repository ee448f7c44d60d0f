"""The command that adds an extra to this installation."""

import importlib.metadata
import json
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from edgecnn import __version__

HERE = Path(__file__).parent.parent


def install_command(extra: str) -> str:
    """Return the command that installs an extra from where this edgecnn came from: its checkout, its wheel, or a wheel of this version.

    It never names edgecnn alone: pip would look for that name in an index, where anybody can register it.
    """
    source = HERE if (HERE / "constraints.txt").exists() else came_from()
    constraints = source / "constraints.txt"
    if constraints.exists():
        return f"pip install -c {shlex.quote(str(constraints))} -e {shlex.quote(f'{source}[{extra}]')}"
    return f"pip install {shlex.quote(f'{source}[{extra}]')}"


def came_from() -> Path:
    """Return the folder or wheel that pip installed edgecnn from, or the name of this version's wheel if pip did not note a file."""
    try:
        noted = json.loads(importlib.metadata.distribution("edgecnn").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        noted = {}
    url = urlsplit(str(noted.get("url", "")))
    return Path(unquote(url.path) if url.scheme == "file" else f"edgecnn-{__version__}-py3-none-any.whl")
