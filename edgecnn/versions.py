"""The machine and the installation behind a result: the processor, the versions, and the command that adds an extra.

This is the only reader of /proc/cpuinfo. A device imports it at its start, so what takes long is imported inside functions.
"""

import contextlib
import os
import sys
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from edgecnn import __version__


class CPU(NamedTuple):
    """The first processor: its model name, "" if Linux gives none (as on ARM), and its features."""

    name: str
    flags: frozenset[str]


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_cpu(root: str | PathLike[str] = "/") -> CPU:
    """Read /proc/cpuinfo below `root`; anything unreadable is empty."""
    name, flags = "", ""
    try:
        with open(os.path.join(root, "proc/cpuinfo"), encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = name or value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = flags or value
                if name and flags:
                    break
    except OSError:
        pass
    return CPU(name, frozenset(flags.split()))


LIBRARIES = (
    "numpy",
    "pillow",
    "ai-edge-litert",
    "tflite-runtime",
    "tensorflow",
    "tensorflow-cpu",
    "tf-keras",
    "tensorflow-model-optimization",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python-headless",
)


def library_versions() -> dict[str, str]:
    """Return the versions of edgecnn, Python and the installed LIBRARIES, by name."""
    import importlib.metadata

    versions = {"edgecnn": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def processor() -> str:
    """Return the processor's architecture and, if Linux gives it, its model name."""
    import platform

    name = read_cpu().name
    return f"{platform.machine()}, {name}" if name else platform.machine()


HERE = Path(__file__).parent.parent


def install_command(extra: str) -> str:
    """Return the command that installs an extra from where this edgecnn came from: its checkout, its wheel, or a wheel of this version.

    It never names edgecnn alone: pip would look for that name in an index, where anybody can register it.
    """
    import shlex

    source = HERE if (HERE / "constraints.txt").exists() else came_from()
    constraints = source / "constraints.txt"
    if constraints.exists():
        return f"pip install -c {shlex.quote(str(constraints))} -e {shlex.quote(f'{source}[{extra}]')}"
    return f"pip install {shlex.quote(f'{source}[{extra}]')}"


def came_from() -> Path:
    """Return the folder or wheel that pip installed edgecnn from, or the name of this version's wheel if pip did not note a file."""
    import importlib.metadata
    import json
    from urllib.parse import unquote, urlsplit

    try:
        noted = json.loads(importlib.metadata.distribution("edgecnn").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        noted = {}
    url = urlsplit(str(noted.get("url", "")))
    return Path(unquote(url.path) if url.scheme == "file" else f"edgecnn-{__version__}-py3-none-any.whl")
