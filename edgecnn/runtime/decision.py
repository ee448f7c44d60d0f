"""From logits to a decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ABSTAIN = "abstain"
"""The decision where no score reaches the threshold."""


@dataclass(frozen=True)
class Score:
    """One class and its score, a softmax probability in [0, 1]."""

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
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


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
    order = np.argsort(-scores, kind="stable")[:top_k]
    top = tuple(Score(labels[index], int(index), float(scores[index])) for index in order)
    if not top[0].score >= threshold:
        return Decision((), ABSTAIN)
    return Decision(top, top[0].label)
