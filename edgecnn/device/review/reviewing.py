"""The questions of a review: the next pictures, grouped if they look alike, and the answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.device.keep.estimate import Answer, Estimate, field_accuracy
from edgecnn.device.keep.folder import RANDOM, Kept, kept_pictures
from edgecnn.device.keep.sample import read_counts
from edgecnn.device.review.journal import LABEL, NONE, SKIP, Journal
from edgecnn.device.stream.pictures import as_jpeg, part, why_no_folder
from edgecnn.errors import ImageError
from edgecnn.region import is_region

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
        questions = self._questions(AHEAD)
        if not questions:
            self.refresh()
            questions = self._questions(AHEAD)
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
            Answer(kept.ts, None if one.decision != LABEL else one.label == kept.guess, kept.why)
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

    def _questions(self, count: int) -> list[list[Kept]]:
        """Return the next questions, each a group of pictures that look alike."""
        waiting = [kept for sha256, kept in self._kept.items() if sha256 not in self._store.decided]
        questions: list[list[Kept]] = []
        while waiting and len(questions) < count:
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
