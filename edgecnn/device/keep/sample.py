"""The random sample of a stream's frames: times drawn in advance for each UTC day, and their outcomes, in DIR/sample.json."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from edgecnn.device.keep.folder import FILE_MODE, make_folder
from edgecnn.errors import OutputError
from edgecnn.files import write_atomic

FILE, SCHEMA = "sample.json", "edgecnn.sample/1"

DAY_S = 86400

LATE_S = 60.0
"""A time is missed if no frame arrives this long after it. Waiting longer would favour the first frames after an outage."""

MOST_DAYS = 400  # that the file holds


class Counts(NamedTuple):
    """How many times of the sample have passed, and how many of them have a picture; at the others there was no frame."""

    planned: int
    kept: int


def read_counts(folder: Path) -> Counts:
    """Return the counts of a folder's sample; zeros if it has no sample, or the file is damaged."""
    try:
        days = _read(folder / FILE).values()
    except OutputError:
        return Counts(0, 0)
    return Counts(sum(day["kept"] + day["missed"] for day in days), sum(day["kept"] for day in days))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["schema"] != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        return {
            str(day): {"kept": int(of["kept"]), "missed": int(of["missed"]), "due": sorted(map(float, of["due"]))}
            for day, of in sorted(table["days"].items())
        }
    except FileNotFoundError:
        return {}
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OutputError(f"cannot read {path}: {error}. Remove it to begin a new sample.") from None


def uniform() -> float:
    """Return an unpredictable random number in [0, 1). The module `random` takes longer to import."""
    return int.from_bytes(os.urandom(6), "big") / 2**48


class Sample:
    """Decides when a frame is due. Plan and counts outlive the process, so that no time is due twice."""

    def __init__(self, folder: Path, per_day: int, draw: Callable[[], float] = uniform) -> None:
        """Read the plan of earlier runs, or raise OutputError. A changed `per_day` applies from the next day; 0 plans nothing."""
        self._path = folder / FILE
        self._per_day = per_day
        self._draw = draw
        self._days = _read(self._path)
        self._day = ""
        self._since = self._next = 0.0

    def is_due(self, ts: float) -> bool:
        """Return whether to keep the frame at this time. Times without a frame are counted as missed."""
        if not self._per_day or self._since <= ts < self._next:
            return False
        self._since = ts
        self._day = time.strftime("%Y-%m-%d", time.gmtime(ts))
        start = ts // DAY_S * DAY_S
        if self._day not in self._days:
            self._plan(start, ts)
        day = self._days[self._day]
        due: list[float] = day["due"]
        while due and due[0] < ts - LATE_S:
            due.pop(0)
            day["missed"] += 1
        self._next = due[0] if due else start + DAY_S
        return bool(due) and due[0] <= ts

    def take(self) -> None:
        """Count the due time as kept before its picture is written, so that no time is due twice. OutputError if that fails."""
        self._days[self._day]["due"].pop(0)
        self._days[self._day]["kept"] += 1
        self._next = 0.0
        self._write()

    def fail(self) -> None:
        """Count the time that was taken last as missed, because its picture could not be written."""
        self._days[self._day]["kept"] -= 1
        self._days[self._day]["missed"] += 1

    def _plan(self, start: float, ts: float) -> None:
        """Draw a day's times. On the first day they start now; on a later day the board may already have missed some."""
        for name, day in self._days.items():
            if name < self._day:  # not later days: a clock may be wrong until it is set
                day["missed"] += len(day["due"])
                day["due"] = []
        times = sorted(start + DAY_S * self._draw() for _ in range(self._per_day))
        due = times if self._days else [one for one in times if one >= ts]
        self._days = {name: self._days[name] for name in sorted(self._days)[-MOST_DAYS:]}
        self._days[self._day] = {"kept": 0, "missed": 0, "due": due}
        self._write()

    def _write(self) -> None:
        make_folder(self._path.parent)
        write_atomic(self._path, json.dumps({"schema": SCHEMA, "days": self._days}, indent=1) + "\n", FILE_MODE)
