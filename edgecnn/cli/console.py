"""What commands print: results on standard output, notes and progress on standard error."""

import json
import shutil
import sys
from typing import Any


def note(text: str) -> None:
    """Print a note on standard error."""
    print(text, file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True))


def terminal_width() -> int | None:
    """Return how many columns the terminal has that standard output goes to; None where it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
