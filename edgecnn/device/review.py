"""People label kept pictures: the journal of what they decided, the page's questions, and the pictures as training data."""

import contextlib
import csv
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.device.keep.folder import (
    LAST_S,
    RANDOM,
    UNSURE,
    Estimate,
    Kept,
    KeptModel,
    KeptPicture,
    append,
    field_accuracy,
    kept_pictures,
    read_counts,
)
from edgecnn.device.stream.pictures import as_jpeg, part, stamp, why_no_folder
from edgecnn.device.stream.sources import expand
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import csv_text, output_errors, sha256, sha256_file, sync_folder, write_atomic
from edgecnn.images import probe, read_file
from edgecnn.labels import SOURCES_CSV, SPLIT_FOLDERS, printable, utf8
from edgecnn.region import is_region
from edgecnn.tables import Struct, build, to_json

REVIEWED = "reviewed.jsonl"
"""In a kept folder: decisions of `edgecnn review` that added no file to the photos."""

LABEL, NONE, SKIP, OPEN = "label", "none", "skip", "open"
"""The kinds of decision: a class, none of the classes, nobody can say, or the last decision undone."""


class LabelDecision(Struct):
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
            LabelDecision(sha256=kept.picture.sha256, decision=decision, label=label, labelled=round(time.time(), 3))
            for kept in pictures
        ]
        append(self._path, "".join(utf8(json.dumps(to_json(one), ensure_ascii=False), r"\\") + "\n" for one in made))
        for one in made:
            self.decided.pop(one.sha256, None)
            if one.counts:
                self.decided[one.sha256] = one

    def undo(self, pictures: Sequence[Kept]) -> None:
        self.decide(pictures, OPEN)


def read_decisions(path: Path) -> Iterator[LabelDecision]:
    """Yield a journal's decisions, oldest first. Other lines are skipped, because the file may come from a board."""
    for line in read_lines(path):
        try:
            table: Any = json.loads(line)
            yield build(LabelDecision, table, ValueError)
        except (ValueError, RecursionError):
            continue


def read_lines(path: Path) -> list[str]:
    """Return a file's complete lines, without a last line that a power cut left unfinished. A missing file has no lines."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return data[: data.rfind(b"\n") + 1].decode("utf-8", "replace").split("\n")[:-1]


class Plain:
    """Lists a folder's images, and those of its sub-folders, oldest first, without those in `photos`; reads a file again if it changes."""

    def __init__(self, photos: Path) -> None:
        self._photos = photos.resolve()
        self._known: dict[tuple[str, int, int], Kept | None] = {}

    def __call__(self, folder: Path) -> list[Kept]:
        paths = (Path(path) for path, error in expand([str(folder)], ()) if error is None)
        found = (self._picture(path) for path in paths if self._photos not in path.resolve().parents)
        return sorted(filter(None, found), key=lambda kept: (kept.ts, kept.path))

    def _picture(self, path: Path) -> Kept | None:
        try:
            status = path.stat()
        except OSError:
            return None
        key = os.fspath(path), status.st_size, status.st_mtime_ns
        if key not in self._known:
            self._known[key] = as_kept(path, status.st_mtime)
        return self._known[key]


def as_kept(path: Path, ts: float) -> Kept | None:
    """Return a file as a kept picture; None if it cannot be read. One that is no image counts as damaged, as on a board."""
    try:
        data = read_file(path)
    except ImageError:
        return None
    try:
        height, width, _ = probe(data)
    except ImageError:
        height = width = 1
    return Kept(
        path=path, ts=max(0.0, ts), why=UNSURE, source=str(path), seq=0, model=KeptModel(name="", sha256=""), scores=(), label=None,
        reason=None, region=None, picture=KeptPicture(sha256=sha256(data), width=width, height=height),
    )  # fmt: skip


SCHEMA = "edgecnn.review/1"

AHEAD = 4
"""How many questions a page receives, so that it can preload the pictures of those after the first."""

WINDOW = 48
"""How many of the next pictures are searched for similar ones."""

SIDE, BLOCK, ALIKE = 32, 4, 12.0
"""Two pictures look alike if, resized to SIDE x SIDE pixels, no block of BLOCK x BLOCK pixels differs by more than ALIKE of 255 levels on
average. An object an eighth of the picture's width that only one of them shows separates them; a camera's noise does not."""

MOST_CLASSES = 2000


class Reviewing:
    """A review of a kept folder. Only one thread at a time may use it, except for `preview`."""

    def __init__(
        self,
        folder: Path,
        store: Journal,
        labels: Iterable[str] = (),
        into: str | None = None,
        listed: Callable[[Path], list[Kept]] = kept_pictures,
    ) -> None:
        """Start with the folder's current pictures, which `listed` returns; `labels` are classes that the store and the scores may lack."""
        self._folder, self._store, self._into, self._listed = folder, store, into, listed
        self._looks: dict[str, np.ndarray | None] = {}
        self._answers: list[tuple[Kept, ...]] = []
        self.counts = dict.fromkeys((LABEL, NONE, SKIP), 0)
        self.refresh()
        seen = {score.label for kept in self._kept.values() for score in kept.scores}
        named = {label for label in {*labels, *seen, *store.classes()} if not why_no_folder(label)}
        self.classes = sorted(named, key=lambda label: (label.casefold(), label))[:MOST_CLASSES]

    def refresh(self) -> None:
        """Look for new pictures. The random sample comes first, before anyone sees guesses for other pictures."""
        self._all = self._listed(self._folder)
        self._kept = {kept.picture.sha256: kept for kept in sorted(self._all, key=lambda kept: kept.why != RANDOM)}

    @property
    def pictures(self) -> Mapping[str, Kept]:
        """The folder's pictures by hash, in the order of the questions."""
        return self._kept

    def document(self) -> dict[str, Any]:
        """Return the page's data. It does not contain the model's guess for a picture of the random sample."""
        questions = self._questions()
        if not questions:
            self.refresh()
            questions = self._questions()
        # while parts of the sample are open, the estimate would reveal after each answer whether the model had been right
        field = None if any(is_blind(group[0]) for group in questions) else self.field()
        unreadable = sum(look is None for look in self._looks.values())
        left = sum(sha256 not in self._store.decided for sha256 in self._kept) - unreadable
        return {
            "schema": SCHEMA, "into": self._into, "classes": self.classes, "next": [question(group) for group in questions],
            "left": left, "unreadable": unreadable, "labelled": self.counts[LABEL], "none": self.counts[NONE], "skipped": self.counts[SKIP],
            "undo": len(self._answers[-1]) if self._answers else 0, "field": field and field.text,
        }  # fmt: skip

    def field(self) -> Estimate | None:
        """Estimate the newest model's accuracy in the field from the decisions on its random sample; None without answers."""
        sample = [kept for kept in self._all if kept.why == RANDOM]
        answers = [
            (kept.ts, None if one.decision != LABEL else one.label == kept.guess)
            for kept in sample
            if kept.model == sample[-1].model and (one := self._store.decided.get(kept.picture.sha256))
        ]
        return field_accuracy(answers, *read_counts(self._folder))

    def answer(self, pictures: Sequence[str], decision: str, label: str = "") -> bool:
        """Write an answer for pictures, given by hash. Repeating an answer changes nothing.

        Returns:
            Whether it was accepted. It is not, and nothing changes, if one of them already has a different answer.

        Raises:
            ValueError: if a picture or the decision does not exist, or the label cannot be a class.
            ImageError: if a picture is gone or has changed.
            OutputError: if the answer cannot be written.
        """
        if decision not in self.counts:
            raise ValueError(f"there is no decision {decision[:64]!r}")
        if decision == LABEL:
            self._check_label(label)
        else:
            label = ""
        if unknown := next((sha256 for sha256 in pictures if sha256 not in self._kept), None):
            raise ValueError(f"there is no picture {unknown[:64]!r}")
        pictures = list(dict.fromkeys(pictures))
        before = [self._store.decided.get(sha256) for sha256 in pictures]
        if any(one and (one.decision, one.label) != (decision, label) for one in before):
            return False
        group = tuple(self._kept[sha256] for sha256, one in zip(pictures, before, strict=True) if one is None)
        if not group:
            return True
        for kept in group:
            self._looks.pop(kept.picture.sha256, None)
        self._store.decide(group, decision, label)
        if label and label not in self.classes:
            self.classes.append(label)
        self.counts[decision] += len(group)
        self._answers.append(group)
        return True

    def undo(self) -> bool:
        """Undo the last answer in this review; return False if there is nothing to undo."""
        if not self._answers:
            return False
        group = self._answers.pop()
        name = group[0].picture.sha256
        decision = self._store.decided[name].decision
        try:
            self._store.undo(group)
        finally:
            if name in self._store.decided:  # the undo failed
                self._answers.append(group)
            else:
                self.counts[decision] -= len(group)
        return True

    def preview(self, sha256: str) -> bytes | None:
        """Return a picture as a JPEG for display; None if it does not exist or is damaged."""
        kept = self._kept.get(sha256)
        try:
            return None if kept is None else as_jpeg(seen_by_model(kept))
        except ImageError:
            return None

    def _check_label(self, label: str) -> None:
        if why := why_no_folder(label):
            raise ValueError(f"this cannot be the name of a class: {why}")
        same = next((known for known in self.classes if known.casefold() == label.casefold()), label)
        if same != label:
            raise ValueError(f"the class {same!r} already exists")

    def _questions(self) -> list[list[Kept]]:
        """Return the next AHEAD questions, each a group of pictures that look alike."""
        waiting = [kept for sha256, kept in self._kept.items() if sha256 not in self._store.decided]
        questions: list[list[Kept]] = []
        while waiting and len(questions) < AHEAD:
            first, *others = waiting
            look = self._look(first)
            if look is None:
                waiting = others
                continue
            near = [kept for kept in others[:WINDOW] if is_blind(kept) == is_blind(first)]
            group = [first, *(kept for kept in near if are_alike(look, self._look(kept)))]
            chosen = {kept.picture.sha256 for kept in group}
            waiting = [kept for kept in others if kept.picture.sha256 not in chosen]
            questions.append(group)
        return questions

    def _look(self, kept: Kept) -> np.ndarray | None:
        """Return a picture's thumbnail, uint8 (SIDE, SIDE, 3); None if it is damaged."""
        sha256 = kept.picture.sha256
        if sha256 not in self._looks:
            try:
                seen = seen_by_model(kept)
                whole = images.decode(seen, 3, (SIDE, SIDE)) if isinstance(seen, bytes) else Image.fromarray(seen)
                self._looks[sha256] = np.asarray(whole.resize((SIDE, SIDE), Image.Resampling.BOX))
            except ImageError:
                self._looks[sha256] = None
        return self._looks[sha256]


def seen_by_model(kept: Kept) -> bytes | np.ndarray:
    """Return a picture, or only its region if it has one, because the rest is grey. ImageError if it is damaged."""
    data = kept.read()
    return part(data, 0, kept.region) if kept.region and is_region(kept.region) else data


def is_blind(kept: Kept) -> bool:
    """Return whether the guess must stay hidden: it would bias the estimate from the random sample."""
    return kept.why == RANDOM


def are_alike(one: np.ndarray, other: np.ndarray | None) -> bool:
    if other is None:
        return False
    part = np.abs(one.astype(np.int16) - other).reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK, 3)
    return bool(part.mean((1, 3, 4)).max() < ALIKE)


def question(group: Sequence[Kept]) -> dict[str, Any]:
    first = group[0]
    score = first.scores[0].score if first.scores else None
    shown = dict.fromkeys(("guess", "score", "reason"))
    if not is_blind(first):
        shown |= {"guess": first.guess, "score": score, "reason": first.reason}
    return {"pictures": [kept.picture.sha256 for kept in group], "ts": first.ts, "why": first.why, **shown}


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
        write_atomic(self.folder / SOURCES_CSV, as_csv(rows.values(), head=True))
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
        unfinished = [*self.folder.glob(f".{SOURCES_CSV}.*.tmp")]
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

    def take(self, decisions: Mapping[str, LabelDecision], pictures: Iterable[Kept]) -> int:
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
        path = self.folder / SOURCES_CSV
        begun = self._rows or read_lines(path)  # a kill may leave the file empty, or a part of its first line
        append(path, as_csv(rows.values(), head=not begun), mode=0o666)
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


def decision_of(row: Row) -> LabelDecision:
    label = row["path"].rpartition("/")[0]
    return LabelDecision(sha256=row["sha256"], decision=LABEL, label=label)


def read_rows(folder: Path) -> dict[str, Row]:
    """Return the lines of a folder's SOURCES_CSV by picture hash; OutputError if the file has another format."""
    path = folder / SOURCES_CSV
    with output_errors(path):
        lines = read_lines(path)
    if lines and lines[0] != ",".join(FIELDS):
        raise OutputError(
            f"{path} was not written by this version of edgecnn: expected {','.join(FIELDS)} as its first line."
        )
    rows = csv.DictReader(lines, restval="")
    return {row["sha256"]: row for row in rows if re.fullmatch(r"[^./][^/]*/[^/]+", row["path"])}


def as_csv(rows: Iterable[Row], head: bool) -> str:
    text = csv_text(FIELDS, (row.values() for row in rows))
    return text if head else text.partition("\n")[2]
