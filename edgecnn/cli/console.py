"""Print results on standard output, notes and progress on standard error."""

import functools
import json
import shutil
import sys
from typing import Any, BinaryIO, TextIO

from edgecnn.labels import printable_lines, utf8
from edgecnn.tables import to_json

LINE_BYTES = 1 << 20
"""Longest line that goes out in one write. A result with 10,000 classes takes 600 kB."""


def note(text: str) -> None:
    """Print a note on standard error. Control characters in a hostile name cannot move the cursor."""
    sys.stderr.write(f"{printable_lines(text)}\n")
    sys.stderr.flush()


def emit_line(text: str) -> None:
    """Print a line in a single write of bytes; with `print`, a signal may arrive between the text and its newline."""
    sys.stdout.flush()
    out = _buffered(sys.stdout)
    out.write(f"{text}\n".encode(sys.stdout.encoding, sys.stdout.errors or "strict"))
    out.flush()


def emit_json(value: Any) -> None:
    """Print a dataclass, or any value that `edgecnn.tables.to_json` accepts, as an indented JSON document."""
    emit_line(utf8(json.dumps(to_json(value), ensure_ascii=False, indent=2, sort_keys=True), r"\\"))


def terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@functools.lru_cache(maxsize=1)
def _buffered(stdout: TextIO) -> BinaryIO:
    """Return our own buffer for standard output's file: Python's has no bytes under PYTHONUNBUFFERED, and otherwise 8 KiB."""
    return open(stdout.fileno(), "wb", buffering=LINE_BYTES, closefd=False)
