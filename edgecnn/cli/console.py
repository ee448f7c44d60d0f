"""What commands print: results on standard output, notes and progress on standard error."""

import json
import sys
from typing import Any

from edgecnn.labels import printable_lines


def note(text: str) -> None:
    """Print a note on standard error. Names in it that an enemy chose cannot move the cursor."""
    print(printable_lines(text), file=sys.stderr, flush=True)


def emit_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True))
