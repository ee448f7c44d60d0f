"""From logits to a decision, from a stream's decisions to its state, and out-of-distribution detection: does an image show any of the
classes?

Features are the input of the model's last layer. An image resembles the known ones if its features point in the same direction as those of
some training images, and if the model is confident. Both count equally, each as a p-value among the validation images.

Sources: nearest neighbours by cosine, Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors" (arXiv:2204.06507);
combining two p-values, Fisher 1925, "Statistical Methods for Research Workers", section 21.1.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.labels import ABSTAIN, STRANGER

BELOW_THRESHOLD = "below_threshold"
BELOW_MARGIN = "below_margin"
NO_SCORE = "no_score"
UNFAMILIAR = "unfamiliar"
"""Why there is no label: NO_SCORE if the scores are not numbers, UNFAMILIAR for a stranger."""


@dataclass(slots=True)
class Score:
    """One class and its softmax probability. Not frozen, because creating three per image would take three times as long."""

    label: str
    index: int
    score: float


class Decision(NamedTuple):
    """The top classes, best first, and the decision: a label, ABSTAIN or STRANGER. `lead` is the best score minus the second best."""

    top: tuple[Score, ...]
    decision: str
    reason: str | None
    lead: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return softmax over the last axis of float32 logits: exp(logit - max) / sum."""
    if logits.ndim == 1:
        # one image: find the maximum with argmax, since with ten classes a reduction costs as much as everything else
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
    """Rank the classes and accept the best one or none; ValueError if a number is out of range.

    `scores` is float32 (num_classes,); ties go to the lower index. `threshold` is the lowest accepted score and `margin` the smallest
    accepted lead, both in [0, 1]. `stranger` means that the image shows none of the classes, and overrides both.
    """
    if top_k < 1 or not 0 <= threshold <= 1 or not 0 <= margin <= 1:
        raise ValueError(
            "top_k must be at least 1, and threshold and margin must be in [0, 1]; "
            f"received top_k {top_k}, threshold {threshold} and margin {margin}"
        )
    order = (-scores).argsort(kind="stable")[: top_k if top_k > 1 else 2].tolist()
    top = tuple([Score(labels[index], index, scores.item(index)) for index in order])
    best = top[0].score
    if best != best:  # NaN; argsort puts NaN last, so all scores are NaN
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
    """Turns the decisions on single frames into a state that does not flicker. It is None until enough frames have arrived.

    A decision becomes the state after `frames` in a row or, with `majority`, once more than half of the last `frames` agree on it.
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
            raise ValueError(f"received {text!r}; expected a number of frames from 1 to 1000, such as 3 or majority:5")
        return Smoother(int(number), number != text)

    def update(self, decision: str) -> bool:
        """Add a frame's decision; return whether the state changed."""
        self._last.append(decision)
        needed = self.frames // 2 + 1 if self.majority else self.frames
        if decision == self.state or self._last.count(decision) < needed:
            return False
        self.state = decision
        return True

    def reset(self) -> bool:
        """Forget all frames and the state. Return whether there was a state."""
        had = self.state is not None
        self.state = None
        self._last.clear()
        return had


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Return features scaled to length 1, float32 (n, length); a row of zeros stays zero."""
    features = features.astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features))[:, np.newaxis]
    return features / np.where(lengths > 0, lengths, 1)


def similarity(features: np.ndarray, known: np.ndarray, neighbours: int) -> np.ndarray:
    """Return each image's mean cosine similarity to the `neighbours` most similar of the known rows (`unit_rows`), float32 (n,)."""
    similar = unit_rows(features) @ known.T
    similar.partition(similar.shape[1] - neighbours, axis=1)
    nearest: np.ndarray = similar[:, similar.shape[1] - neighbours :].mean(axis=1)
    return nearest


def p_values(values: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Return the fraction of validation images, given in ascending order, that do not exceed each value: float64 (n,) in (0, 1]."""
    shares: np.ndarray = (1 + np.searchsorted(validation, values, side="right")) / (len(validation) + 1)
    return shares


class Strangers:
    """Detects images that show none of the classes."""

    def __init__(self, limit: StrangerLimit, known: np.ndarray) -> None:
        """Prepare to compare with the features of known images: int8 (images, length), each row with its own scale."""
        self.limit = limit
        self._known = unit_rows(known)
        self._scores, self._similarities = np.array(limit.scores), np.array(limit.similarities)
        self._least = self._similarities[0]
        self._spread = max(float(np.median(self._similarities) - self._least), 1e-6)

    def familiarity(self, scores: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return how similar each image is to the known images, float64 (n,), at most 0; see `familiarity_of`."""
        return self.familiarity_of(scores, similarity(features, self._known, self.limit.neighbours))

    def familiarity_of(self, scores: np.ndarray, similar: np.ndarray) -> np.ndarray:
        """Return the sum of the logarithms of two p-values: that of the score and that of the similarity to the known images.

        A similarity below the smallest of the validation images costs extra: the shortfall, in units of the gap from that smallest one to
        their median.
        """
        both = p_values(scores, self._scores) * p_values(similar, self._similarities)
        return np.log(both) - np.maximum(self._least - similar, 0) / self._spread

    def refused(self, scores: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return which images are strangers: bool (n,). See `familiarity`."""
        return self.familiarity(scores, features) < self.limit.limit
