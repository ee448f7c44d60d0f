"""What commands print: results on standard output, notes and progress on standard error."""

import json
import sys
from typing import Any


def note(text: str) -> None:
    """Print a note on standard error."""
    print(text, file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True))
