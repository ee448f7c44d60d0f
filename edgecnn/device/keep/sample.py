"""The random sample of a stream's frames: times drawn in advance for each day in UTC, and what became of them, in DIR/sample.json."""

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
"""A time is missed if no frame comes within as long after it: waiting longer would favour what a camera sees after an outage."""

MOST_DAYS = 400  # that the file counts


class Counts(NamedTuple):
    """How many times of the sample are over, and how many of them have a picture; at the others there was no frame."""

    planned: int
    kept: int


def read_counts(folder: Path) -> Counts:
    """Return the sample's counts of a folder; zeros if it has none, or its file is damaged."""
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
    """Return a random number in [0, 1), which nobody can know in advance. The module `random` takes longer to import."""
    return int.from_bytes(os.urandom(6), "big") / 2**48


class Sample:
    """Says when a frame is due. What is planned and counted outlives the process: a time is never due twice."""

    def __init__(self, folder: Path, per_day: int, draw: Callable[[], float] = uniform) -> None:
        """Read what earlier runs planned, or raise OutputError. Another `per_day` counts from the next day on; 0 plans nothing."""
        self._path = folder / FILE
        self._per_day = per_day
        self._draw = draw
        self._days = _read(self._path)
        self._day = ""
        self._since = self._next = 0.0

    def is_due(self, ts: float) -> bool:
        """Return whether the frame of that time is to be kept. Times that no frame came for are counted as missed."""
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
        """Count the time that is due as kept, before its picture is written: no time is due twice. OutputError if that cannot be kept."""
        self._days[self._day]["due"].pop(0)
        self._days[self._day]["kept"] += 1
        self._next = 0.0
        self._write()

    def fail(self) -> None:
        """Count the time that was taken last as missed: its picture could not be written."""
        self._days[self._day]["kept"] -= 1
        self._days[self._day]["missed"] += 1

    def _plan(self, start: float, ts: float) -> None:
        """Draw a day's times. Those of a first day begin now; of a later one the board may have missed some already."""
        for name, day in self._days.items():
            if name < self._day:  # not a later one: a clock may be wrong until it is set
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
