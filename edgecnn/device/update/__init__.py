"""Fetch releases onto a board, from a server that need not be trusted."""

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from edgecnn.boards import TRUST, UPDATE_SCHEMA

STATUS = "status.json"
MAX_STATUS_BYTES = 1 << 16


def last_check(folder: Path = TRUST) -> dict[str, Any] | None:
    """Return the result of the last check for a release, and `age_s`, the seconds since the last good one; None without a check.

    It never fails and imports nothing from TUF, so that the running service can report it.
    """
    try:
        with (folder / STATUS).open("rb") as file:
            found = json.loads(file.read(MAX_STATUS_BYTES))
        if found["schema"] != UPDATE_SCHEMA:
            return None
        # even if the clock is wrong, it is at least as late as at the check
        now = max(time.time(), datetime.fromisoformat(found["last_check"]).timestamp())
        good = found["last_good"] and datetime.fromisoformat(found["last_good"]).timestamp()
        return {**found, "age_s": max(0, int(now - good)) if good else None}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
