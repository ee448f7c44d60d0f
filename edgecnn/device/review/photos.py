"""Adds labelled pictures to a folder of photos: a file in the class's folder, and a line that records its origin."""

import contextlib
import csv
import io
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgecnn.device.keep.folder import LAST_S, Kept
from edgecnn.device.review.journal import LABEL, REVIEWED, Decision, Journal, append, read_lines
from edgecnn.device.stream.pictures import stamp, why_no_folder
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import output_errors, sha256_file, sync_folder, write_atomic
from edgecnn.labels import SPLIT_FOLDERS, printable

SOURCES = "edgecnn-sources.csv"
FIELDS = ("sha256", "path", "board", "why", "ts", "guess", "model", "labelled")

HASHED = 12  # hexadecimal digits of a picture's hash in its file name

NAME = re.compile(rf"\.?\d{{8}}T\d{{6}}\.\d{{6}}Z-([0-9a-f]{{{HASHED}}})\.[a-z]+(\.[0-9a-f]+\.tmp)?")
"""Matches a file that this module writes: a photo, or the hidden start of an unfinished copy."""

Row = Mapping[str, str]


class Photos(Journal):
    """A folder of photos, one sub-folder per class. Decisions that add no file to it go to REVIEWED in the kept folder.

    A label is written in two steps, the file and then its line, and undone in two, the line and then the file. A crash between them leaves
    a file without a line, which `finish` adds. A label is then on disk either completely or not at all.
    """

    def __init__(self, folder: Path, kept: Path, board: str) -> None:
        """Open a folder of photos for pictures from a board's kept folder. OutputError if it cannot be used."""
        super().__init__(kept / REVIEWED)
        self.folder, self._board = folder, board
        with output_errors(folder):
            folders = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        if split := next((name for name in folders if name.lower() in SPLIT_FOLDERS), None):
            raise OutputError(f"{folder} contains folders of splits. Name the one for new photos: {folder / split}")
        self._folders = [name for name in folders if not why_no_folder(name)]
        self._made: set[str] = set()
        self._rows = read_rows(folder)
        self.decided |= {sha256: decision_of(row) for sha256, row in self._rows.items()}

    def classes(self) -> list[str]:
        return self._folders

    def decide(self, pictures: Sequence[Kept], decision: str, label: str = "") -> None:
        """Write a decision to disk before returning. OutputError if it cannot be written; it then applies to no picture."""
        if decision != LABEL:
            super().decide(pictures, decision)
            return
        inside = self.folder / label
        if not inside.is_dir():
            self._made.add(label)
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove_empty)
            for kept in pictures:
                path = inside / file_name(kept)
                if place(kept, path):
                    undo.callback(path.unlink, missing_ok=True)
            sync_folder(inside)
            sync_folder(self.folder)
            self._add(pictures, label)
            undo.pop_all()

    def undo(self, pictures: Sequence[Kept]) -> None:
        """Undo one decision on pictures: remove the lines and their files."""
        gone = {kept.picture.sha256 for kept in pictures}
        if not gone <= self._rows.keys():
            super().undo(pictures)
            return
        paths = [self.folder / self._rows[sha256]["path"] for sha256 in gone]
        rows = {sha256: row for sha256, row in self._rows.items() if sha256 not in gone}
        write_atomic(self.folder / SOURCES, as_csv(rows.values(), head=True))
        self._rows = rows
        self.decided = {sha256: one for sha256, one in self.decided.items() if sha256 not in gone}
        try:
            sync_folder(self.folder)
        finally:
            for path in paths:
                with output_errors(path):
                    path.unlink(missing_ok=True)
            self._remove_empty()

    def _remove_empty(self) -> None:
        """Remove the empty class folders that this review made: `edgecnn train` refuses photos with an empty class."""
        for label in self._made:
            with contextlib.suppress(OSError):
                (self.folder / label).rmdir()

    def finish(self, pictures: Iterable[Kept]) -> None:
        """Finish the labels for these pictures that an earlier review had started to write when it ended."""
        known = {kept.picture.sha256[:HASHED]: kept for kept in pictures}
        unfinished = [*self.folder.glob(f".{SOURCES}.*.tmp")]
        for label in self._folders:
            for path in (self.folder / label).iterdir():
                match = NAME.fullmatch(path.name)
                kept = known.get(match[1]) if match else None
                if match and match[2]:
                    unfinished.append(path)
                elif kept and kept.picture.sha256 not in self._rows and sha256_file(path) == kept.picture.sha256:
                    self._add([kept], label)
        for path in unfinished:
            path.unlink(missing_ok=True)

    def take(self, decisions: Mapping[str, Decision], pictures: Iterable[Kept]) -> int:
        """Adopt the decisions made on the board's page, unless one was made here before and not undone; return the number of pictures."""
        taken: dict[tuple[str, str], list[Kept]] = {}
        for kept in pictures:
            one = decisions.get(kept.picture.sha256)
            if one is None or one.sha256 in self.decided:
                continue
            if (one.decision != LABEL or not why_no_folder(one.label)) and is_whole(kept):
                taken.setdefault((one.decision, one.label), []).append(kept)
        for (decision, label), these in taken.items():
            self.decide(these, decision, label)
        return sum(map(len, taken.values()))

    def _add(self, pictures: Sequence[Kept], label: str) -> None:
        rows, labelled = {}, time.time()
        for kept in pictures:
            values = (
                kept.picture.sha256, f"{label}/{file_name(kept)}", self._board, kept.why, f"{kept.ts:.6f}", printable(kept.label or ""),
                printable(kept.model.sha256), f"{labelled:.3f}",
            )  # fmt: skip
            rows[kept.picture.sha256] = dict(zip(FIELDS, values, strict=True))
        path = self.folder / SOURCES
        append(path, as_csv(rows.values(), head=not path.exists()), mode=0o666)
        self._rows |= rows
        self.decided |= {sha256: decision_of(row) for sha256, row in rows.items()}


def file_name(kept: Kept) -> str:
    """Return a kept picture's name among the photos: from its time and content, so that two boards' pictures never clash."""
    return f"{stamp(min(kept.ts, LAST_S), 6)}-{kept.picture.sha256[:HASHED]}{kept.path.suffix.lower()}"


def is_whole(kept: Kept) -> bool:
    try:
        kept.read()
    except ImageError:
        return False
    return True


def place(kept: Kept, path: Path) -> bool:
    """Copy a kept picture; return whether it is new there. ImageError if it has changed since, OutputError if it cannot be written.

    A hard link would let a later change of the kept file, or a link there, into the photos.
    """
    data, new = kept.read(), not path.exists()
    write_atomic(path, data)
    return new


def decision_of(row: Row) -> Decision:
    label = row["path"].rpartition("/")[0]
    return Decision(sha256=row["sha256"], decision=LABEL, label=label)


def read_rows(folder: Path) -> dict[str, Row]:
    """Return the lines of a folder's SOURCES by picture hash; OutputError if the file has another format."""
    path = folder / SOURCES
    with output_errors(path):
        lines = read_lines(path)
    if lines and lines[0] != ",".join(FIELDS):
        raise OutputError(
            f"{path} was not written by this version of edgecnn: expected {','.join(FIELDS)} as its first line."
        )
    rows = csv.DictReader(lines, restval="")
    return {row["sha256"]: row for row in rows if re.fullmatch(r"[^./][^/]*/[^/]+", row["path"])}


def as_csv(rows: Iterable[Row], head: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
