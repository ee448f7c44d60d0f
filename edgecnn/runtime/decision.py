"""From logits to a decision, and from a stream's decisions to its state."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgecnn.labels import ABSTAIN, STRANGER

BELOW_THRESHOLD = "below_threshold"
BELOW_MARGIN = "below_margin"
NO_SCORE = "no_score"
UNFAMILIAR = "unfamiliar"
"""Why there is no label: NO_SCORE if the scores are not numbers, UNFAMILIAR for a stranger."""


@dataclass(slots=True)
class Score:
    """One class and its softmax probability. Not frozen: creating three for each image would then cost three times as much."""

    label: str
    index: int
    score: float


class Decision(NamedTuple):
    """The best classes, best first, and the decision: a label, ABSTAIN or STRANGER; `lead` is by how much the best exceeds the second."""

    top: tuple[Score, ...]
    decision: str
    reason: str | None
    lead: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return softmax over the last axis of float32 logits: exp(logit - max) / sum."""
    if logits.ndim == 1:
        # one image's: the largest by its index, since a reduction costs as much as all the rest on ten classes
        scores = np.exp(logits - logits[logits.argmax()])
        scores /= np.add.reduce(scores)
        return scores
    scores = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    np.exp(scores, scores)
    scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    return scores


def decide(
    scores: np.ndarray,
    labels: Sequence[str],
    top_k: int = 3,
    threshold: float = 0.0,
    margin: float = 0.0,
    stranger: bool = False,
) -> Decision:
    """Rank the classes and take the best one, or none; ValueError if a number is out of range.

    `scores` is float32 (num_classes,); of equal ones the lower index comes first. `threshold` is the lowest score of an accepted class, and
    `margin` its smallest lead, in [0, 1]. `stranger`, that the image shows none of the classes, comes first.
    """
    if top_k < 1 or not 0 <= threshold <= 1 or not 0 <= margin <= 1:
        raise ValueError(
            "top_k must be at least 1, threshold and margin in [0, 1]; "
            f"received top_k {top_k}, threshold {threshold} and margin {margin}"
        )
    order = (-scores).argsort(kind="stable")[: top_k if top_k > 1 else 2].tolist()
    top = tuple([Score(labels[index], index, scores.item(index)) for index in order])
    best = top[0].score
    if best != best:  # not a number; argsort puts those last, so all of them are
        return Decision((), ABSTAIN, NO_SCORE, 0.0)
    lead = best - top[1].score if len(top) > 1 else best
    if top_k == 1:
        top = top[:1]
    if stranger:
        return Decision(top, STRANGER, UNFAMILIAR, lead)
    if best < threshold:
        return Decision(top, ABSTAIN, BELOW_THRESHOLD, lead)
    if lead < margin:
        return Decision(top, ABSTAIN, BELOW_MARGIN, lead)
    return Decision(top, top[0].label, None, lead)


class Smoother:
    """Turns the decisions on single frames into a state that does not flicker; None until enough frames have been seen.

    A decision becomes the state after `frames` in a row; by majority, once more than half of the last `frames` had it.
    """

    def __init__(self, frames: int = 1, majority: bool = False) -> None:
        self.frames = frames
        self.majority = majority
        self.state: str | None = None
        self._last: deque[str] = deque(maxlen=frames)

    @staticmethod
    def parse(text: str) -> "Smoother":
        """Read "3" (three in a row) or "majority:5" (most of the last five), 1 to 1000; ValueError for anything else."""
        number = text.removeprefix("majority:")
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 1000:
            raise ValueError(f"received {text!r}, expected a number of frames from 1 to 1000, such as 3 or majority:5")
        return Smoother(int(number), number != text)

    def update(self, decision: str) -> bool:
        """Take a frame's decision; return whether the state changed."""
        self._last.append(decision)
        needed = self.frames // 2 + 1 if self.majority else self.frames
        if decision == self.state or self._last.count(decision) < needed:
            return False
        self.state = decision
        return True

    def reset(self) -> bool:
        """Forget all frames, so that there is no state. Return whether there was one."""
        had = self.state is not None
        self.state = None
        self._last.clear()
        return had
