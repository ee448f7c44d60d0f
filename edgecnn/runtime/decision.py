"""From logits to a decision, and from a stream's decisions to its state."""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgecnn.labels import ABSTAIN

BELOW_THRESHOLD = "below_threshold"
BELOW_MARGIN = "below_margin"
NO_SCORE = "no_score"
REASONS = (BELOW_THRESHOLD, BELOW_MARGIN, NO_SCORE)
"""Why a classifier abstains: the best score is too low, the second is too near, the model gave no numbers."""


@dataclass(slots=True)
class Score:
    """One class and its score, a softmax probability in [0, 1]. Not frozen: three of them an image would cost three times as much."""

    label: str
    index: int
    score: float


class Decision(NamedTuple):
    """The best classes, best first, and the decision: the first one's label, or ABSTAIN and no classes."""

    top: tuple[Score, ...]
    decision: str


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return softmax over the last axis, float32: exp(logit - max) / sum.

    Args:
        logits: float32, shape (..., num_classes).
    """
    if logits.ndim == 1:
        # one image's: the largest by its index, since a reduction costs as much as all the rest on ten classes
        scores = np.exp(logits - logits[logits.argmax()])
        scores /= np.add.reduce(scores)
        return scores
    scores = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    np.exp(scores, scores)
    scores /= np.add.reduce(scores, axis=-1, keepdims=True)
    return scores


def decide(scores: np.ndarray, labels: Sequence[str], top_k: int = 3, threshold: float = 0.0) -> Decision:
    """Take the best classes, or abstain.

    Args:
        scores: float32, shape (num_classes,).
        labels: one a class.
        top_k: how many classes, at least 1; of equal scores the lower index comes first.
        threshold: if the best score is below, the decision is ABSTAIN.

    Raises:
        ValueError: if `top_k` is less than 1 or `threshold` is not in [0, 1].
    """
    if top_k < 1 or not 0 <= threshold <= 1:
        raise ValueError(f"top_k must be at least 1 and threshold in [0, 1], received {top_k} and {threshold}")
    order = (-scores).argsort(kind="stable")[:top_k]
    top = tuple([Score(labels[index], index, scores.item(index)) for index in order.tolist()])
    if not top[0].score >= threshold:
        return Decision((), ABSTAIN)
    return Decision(top, top[0].label)


class Verdict(NamedTuple):
    """A label, or ABSTAIN and one of REASONS."""

    decision: str
    reason: str | None


def judge(top: Sequence[Score], threshold: float = 0.0, margin: float = 0.0) -> Verdict:
    """Decide by the two best classes.

    Args:
        top: the best classes, best first, two of them where there are two; none where the scores are no numbers.
        threshold: least score of the first, in [0, 1].
        margin: least distance of the first's score to the second's, in [0, 1].
    """
    if not top:
        return Verdict(ABSTAIN, NO_SCORE)
    if not top[0].score >= threshold:
        return Verdict(ABSTAIN, BELOW_THRESHOLD)
    if margin and len(top) > 1 and not top[0].score - top[1].score >= margin:
        return Verdict(ABSTAIN, BELOW_MARGIN)
    return Verdict(top[0].label, None)


class Smoother:
    """Turns a decision a frame into a state that does not flicker.

    `state` is a label, ABSTAIN, or None before enough frames were seen. A decision becomes the state when it was that of `frames`
    frames in a row; by majority, when it was that of more than half of the last `frames`.
    """

    def __init__(self, frames: int = 1, majority: bool = False) -> None:
        self.frames = frames
        self.majority = majority
        self.state: str | None = None
        self._last: deque[str] = deque(maxlen=frames)
        self._counts: Counter[str] = Counter()

    @staticmethod
    def parse(text: str) -> "Smoother":
        """Read "3" (three in a row) or "majority:5" (most of the last five).

        Raises:
            ValueError: for anything else, or a number that is not in 1 to 1000.
        """
        kind, _, number = text.rpartition(":")
        if kind not in ("", "majority") or not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 1000:
            raise ValueError(f"received {text!r}, expected a number of frames, 3, or majority:5; 1 to 1000")
        if text.startswith(":"):
            raise ValueError(f"received {text!r}, expected 3 or majority:5")
        return Smoother(int(number), bool(kind))

    def update(self, decision: str) -> bool:
        """Take a frame's decision; return whether the state changed."""
        if len(self._last) == self.frames:
            oldest = self._last[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._last.append(decision)
        self._counts[decision] += 1
        needed = self.frames // 2 + 1 if self.majority else self.frames
        if decision == self.state or self._counts[decision] < needed:
            return False
        self.state = decision
        return True

    def reset(self) -> bool:
        """Forget all frames: there is no state. Return whether there was one."""
        had = self.state is not None
        self.state = None
        self._last.clear()
        self._counts.clear()
        return had
