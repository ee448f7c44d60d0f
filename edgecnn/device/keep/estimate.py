"""Accuracy in the field, estimated from the random sample of a stream's frames, using only numpy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgecnn.device.keep.folder import RANDOM
from edgecnn.labels import plural
from edgecnn.tables import Struct

HOUR_S, DAY_S = 3600, 86400

BLOCKS = 7
"""How many blocks the sample's time span is divided into, for scenes that last longer than an hour."""

Z = 1.959964
"""The normal distribution's 97.5th percentile."""


class Answer(NamedTuple):
    """The review of a kept picture: the time of its frame, whether the model's best class was right, and why it was kept.

    `right` is None if nobody can say, because the picture was skipped or shows none of the classes.
    """

    ts: float
    right: bool | None
    why: str


class Estimate(Struct):
    """Accuracy in the field: a fraction with its 95 % interval, from `n` pictures in `hours` different hours.

    `skipped` pictures have no answer; `bounds` is the accuracy if the model was wrong on all of them, or right. Of the sample's `planned`
    times that have passed, `kept` have a picture; at the others there was no frame.
    """

    accuracy: float
    low: float
    high: float
    n: int
    hours: int
    skipped: int
    bounds: tuple[float, float]
    planned: int
    kept: int

    @property
    def text(self) -> str:
        """The estimate as a line, such as "in the field 84.0 % right: 212 random pictures from 60 hours, 95 % interval 77 to 89 %"."""
        low, high = (100 * end for end in self.bounds)
        skipped = f"; with the {self.skipped} skipped, between {low:.1f} and {high:.1f} %" if self.skipped else ""
        sample = f"{plural(self.n, 'random picture')} from {plural(self.hours, 'hour')}"
        interval = f"95 % interval {100 * self.low:.0f} to {100 * self.high:.0f} %"
        return f"in the field {100 * self.accuracy:.1f} % right: {sample}, {interval}{skipped}"


def field_accuracy(answers: Sequence[Answer], planned: int, kept: int) -> Estimate | None:
    """Estimate accuracy from the answers on the random sample; None if none of them is right or wrong.

    `planned` and `kept` are the sample's counts (`sample.read_counts`). Frames kept for another reason say nothing about accuracy.
    """
    sample = [answer for answer in answers if answer.why == RANDOM]
    known = [answer for answer in sample if answer.right is not None]
    if not known:
        return None
    right = np.array([answer.right for answer in known], float)
    times = np.array([answer.ts for answer in known])
    low, high = clustered_interval(right, times)
    n, skipped, total = len(known), len(sample) - len(known), right.sum()
    return Estimate(
        accuracy=float(right.mean()), low=low, high=high, n=n, hours=len(np.unique(times // HOUR_S)), skipped=skipped,
        bounds=(float(total / len(sample)), float((total + skipped) / len(sample))), planned=planned, kept=kept,
    )  # fmt: skip


def clustered_interval(right: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a share of answers that are correlated while a scene persists: Wilson's, with fewer answers.

    Args:
        right: float (n,) of 0 and 1.
        times: float (n,), seconds.

    Answers are clustered by hour, and by longer blocks: BLOCKS over the whole time, each at most a day. The wider interval counts. The
    design effect is the clustered variance of the mean divided by that of independent answers, at least 1. Wilson's interval uses n
    divided by it, and Student's t with clusters - 1 degrees of freedom instead of the normal distribution.

    Source: Kish 1965, "Survey Sampling"; Dean & Pagano 2015, "Evaluating Confidence Interval Methods for Binomial Proportions in Clustered
    Surveys".
    """
    n, mean, start = len(right), float(right.mean()), float(times.min())
    span = float(times.max()) - start
    block = min(max(span / BLOCKS, HOUR_S), DAY_S)
    last = max(math.ceil(span / block) - 1, 0)  # the newest answer begins no block of its own
    by_hour, by_block = (
        np.unique(number, return_inverse=True)[1]
        for number in (times // HOUR_S, np.minimum((times - start) // block, last))
    )
    unknown = n / (by_hour.max() + 1)  # if all answers are the same, they may depend entirely on their hour
    ends = [
        _wilson(mean, n / _design_effect(right, clusters, unknown), student(int(clusters.max())))
        for clusters in ((by_hour, by_block) if by_block.max() >= BLOCKS - 1 else (by_hour,))
    ]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _design_effect(right: np.ndarray, clusters: np.ndarray, unknown: float) -> float:
    n, count, mean = len(right), int(clusters.max()) + 1, float(right.mean())
    if count == 1 or mean in (0, 1):
        return float(n) if count == 1 else unknown
    sums = np.bincount(clusters, right - mean)
    return max(1.0, float(count / (count - 1) * (sums**2).sum() / (n * mean * (1 - mean))))


def _wilson(mean: float, n: float, t: float) -> tuple[float, float]:
    middle = (mean + t * t / (2 * n)) / (1 + t * t / n)
    half = t / (1 + t * t / n) * (mean * (1 - mean) / n + t * t / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def student(freedom: int) -> float:
    """Return the 97.5th percentile of Student's t, accurate to 1 % from 3 degrees of freedom. Source: Abramowitz & Stegun 26.7.5."""
    if freedom < 3:
        return (Z, 12.706, 4.303)[freedom]
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
