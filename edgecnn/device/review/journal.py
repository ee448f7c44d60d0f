"""Decisions on kept pictures as lines of JSON: on disk before they count. A picture's last decision holds."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgecnn.device.keep.folder import FILE_MODE, Kept
from edgecnn.files import output_errors, sync_folder
from edgecnn.labels import utf8
from edgecnn.tables import Struct, build, to_json

LABELS = "labels.jsonl"
"""In a kept folder: the decisions made on the board's own page."""

REVIEWED = "reviewed.jsonl"
"""In a kept folder: decisions of `edgecnn review` that added no file to the photos."""

LABEL, NONE, SKIP, OPEN = "label", "none", "skip", "open"
"""The kinds of decision: a class, none of the classes, nobody can say, or the last decision undone."""


class Decision(Struct):
    """A decision on a picture, and its time in seconds since the epoch. `label` is "" unless the decision is a class."""

    sha256: str
    decision: str
    label: str = ""
    labelled: float = 0.0

    @property
    def counts(self) -> bool:
        return self.decision in (NONE, SKIP) or (self.decision == LABEL and bool(self.label))


class Journal:
    """A file of decisions. `decided` holds each picture's last one, unless it was undone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        last = {decision.sha256: decision for decision in read_decisions(path)}
        self.decided = {sha256: decision for sha256, decision in last.items() if decision.counts}

    def classes(self) -> list[str]:
        return sorted({decision.label for decision in self.decided.values() if decision.label})

    def decide(self, pictures: Sequence[Kept], decision: str, label: str = "") -> None:
        """Write one decision on pictures. OutputError if it cannot be written; no trace of it remains then."""
        made = [
            Decision(sha256=kept.picture.sha256, decision=decision, label=label, labelled=round(time.time(), 3))
            for kept in pictures
        ]
        append(self._path, "".join(utf8(json.dumps(to_json(one), ensure_ascii=False), r"\\") + "\n" for one in made))
        for one in made:
            self.decided.pop(one.sha256, None)
            if one.counts:
                self.decided[one.sha256] = one

    def undo(self, pictures: Sequence[Kept]) -> None:
        self.decide(pictures, OPEN)


def read_decisions(path: Path) -> Iterator[Decision]:
    """Yield a journal's decisions, oldest first. Other lines are skipped, because the file may come from a board."""
    for line in read_lines(path):
        try:
            table: Any = json.loads(line)
            yield build(Decision, table, ValueError)
        except (ValueError, RecursionError):
            continue


def read_lines(path: Path) -> list[str]:
    """Return a file's complete lines, without a last line that a power cut left unfinished. A missing file has no lines."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")[:-1]


def append(path: Path, text: str, mode: int = FILE_MODE) -> None:
    """Append whole lines to a file and wait until they are on disk. OutputError if that fails; the file is then unchanged."""
    new = not path.exists()
    with output_errors(path), open(path, "ab+", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        size = file.tell()
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":  # a power cut left a line unfinished
            size = os.pread(file.fileno(), size, 0).rfind(b"\n") + 1
            file.truncate(size)
        try:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    if new:
        sync_folder(path.parent)
