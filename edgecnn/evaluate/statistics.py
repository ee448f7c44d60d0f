"""Paired comparison of two classifiers on the same images: figures, intervals and tests.

An answer is the first largest logit or score. Of the images on which only one of two models is right, b are those that the reference has
right (lost), c those of the candidate (gained): drop = 100 (b - c) / n percentage points.
"""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

BISECTIONS = 60
"""Halvings of an interval at most 2 wide: the rest is smaller than a float's step at 1e-2."""


class Interval(NamedTuple):
    """Ends of a confidence interval, low at most high; both belong to it."""

    low: float
    high: float


class Discordant(NamedTuple):
    """Images on which one model alone is right: `lost` is b, the reference, `gained` is c, the candidate."""

    lost: int
    gained: int


class Flip(NamedTuple):
    """An image with two answers: its number, its true class and the classes that the two models answered."""

    image: int
    true: int
    reference: int
    candidate: int


class Drift(NamedTuple):
    """Absolute change of a score: mean and 95th percentile over the images, each in [0, 1]."""

    mean: float
    p95: float


class Difference(NamedTuple):
    """Absolute difference of two outputs in codes (LSB): mean and largest over images and classes."""

    mean: float
    largest: int


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """A candidate's answers and a reference's on n images: fractions, `drop` in points, the largest difference of two logits."""

    n: int
    accuracy_reference: float
    accuracy_candidate: float
    drop: float
    agreement: float
    largest_difference: float


def compare(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> Accuracies:
    """Compare two models' logits or scores, float32 (n, num_classes), image by image; `classes` are the true ones, int (n,)."""
    top_reference, top_candidate = answers(reference, candidate, classes)
    right_reference = int(np.sum(top_reference == classes))
    right_candidate = int(np.sum(top_candidate == classes))
    n = len(classes)
    return Accuracies(
        n=n,
        accuracy_reference=right_reference / n,
        accuracy_candidate=right_candidate / n,
        drop=100 * (right_reference - right_candidate) / n,
        agreement=float(np.mean(top_reference == top_candidate)),
        largest_difference=float(np.max(np.abs(reference - candidate))),
    )


def answers(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the answers of two models, each an int64 array of shape (n,): the first largest logit."""
    if reference.shape != candidate.shape or len(classes) != len(reference) or not len(classes):
        raise ValueError(
            f"logits of shape {reference.shape} and {candidate.shape} for {len(classes)} images cannot be compared"
        )
    return np.argmax(reference, axis=1), np.argmax(candidate, axis=1)


def discordant(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> Discordant:
    """Count the images on which one model alone is right. Arguments and errors as of `compare`."""
    top_reference, top_candidate = answers(reference, candidate, classes)
    right_reference, right_candidate = top_reference == classes, top_candidate == classes
    return Discordant(
        lost=int(np.sum(right_reference & ~right_candidate)), gained=int(np.sum(~right_reference & right_candidate))
    )


def flips(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> list[Flip]:
    """List the images that two models answer differently, in their order. Arguments and errors as of `compare`."""
    top_reference, top_candidate = answers(reference, candidate, classes)
    return [
        Flip(int(index), int(classes[index]), int(top_reference[index]), int(top_candidate[index]))
        for index in np.flatnonzero(top_reference != top_candidate)
    ]


def per_class_drop(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> list[float | None]:
    """Return each class's drop in percentage points; None for a class without images. Arguments as of `compare`."""
    top_reference, top_candidate = answers(reference, candidate, classes)
    width = reference.shape[1]
    count = np.bincount(classes, minlength=width)
    right_reference = np.bincount(classes[top_reference == classes], minlength=width)
    right_candidate = np.bincount(classes[top_candidate == classes], minlength=width)
    return [
        100 * (int(right_reference[index]) - int(right_candidate[index])) / int(count[index]) if count[index] else None
        for index in range(width)
    ]


def confidence_drift(reference: np.ndarray, candidate: np.ndarray) -> Drift:
    """Return how far the score of the reference's answer moves: |candidate[i, k] - reference[i, k]| for each image i, k = argmax
    reference[i].
    """
    if reference.shape != candidate.shape or not len(reference):
        raise ValueError(f"scores of shape {reference.shape} and {candidate.shape} cannot be compared")
    top = np.argmax(reference, axis=1)[:, None]
    change = np.abs(
        np.take_along_axis(candidate, top, axis=1).astype(np.float64) - np.take_along_axis(reference, top, axis=1)
    )
    return Drift(float(np.mean(change)), float(np.percentile(change, 95)))


def lsb_difference(
    logits: np.ndarray, codes: np.ndarray, scale: float, zero_point: int, *, up_to_constant: bool = False
) -> Difference:
    """Return the difference, in codes (LSB), of a quantized output from real logits on the same grid.

    |clip(round(logit / scale) + zero_point) - code|, clipped to what the codes' dtype holds. With `up_to_constant`, what is added to all
    logits of an image does not count, as softmax does not change with it: it is the median over the classes whose codes are inside their
    range.
    """
    limits = np.iinfo(codes.dtype)
    measured, expected = codes.astype(np.int32), np.rint(logits / scale) + zero_point
    if up_to_constant:
        inside = (measured > limits.min) & (measured < limits.max)
        apart = np.ma.median(np.ma.masked_array(measured - expected, ~inside), axis=1)
        expected += np.rint(np.ma.filled(apart, 0.0))[:, np.newaxis]
    difference = np.abs(np.clip(expected, limits.min, limits.max).astype(np.int32) - measured)
    return Difference(float(np.mean(difference)), int(np.max(difference)))


def chance_level(classes: np.ndarray) -> tuple[int, float]:
    """Return the most frequent class, the smallest of equals, and its share of the images: the accuracy of always answering it."""
    count = np.bincount(classes)
    top = int(np.argmax(count))
    return top, int(count[top]) / len(classes)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion, such as an accuracy: fractions in [0, 1].

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212.
    """
    from scipy.stats import binomtest

    check_counts(successes, 0, n)
    check_confidence(confidence)
    return Interval(*map(float, binomtest(successes, n).proportion_ci(confidence, method="wilson")))


def clopper_pearson(
    successes: int, n: int, confidence: float = 0.95, side: Literal["two-sided", "upper"] = "two-sided"
) -> Interval:
    """Return Clopper and Pearson's exact interval of a proportion, which holds it at least `confidence` of the time, for every n.

    P(X >= successes | low) = a and P(X <= successes | high) = a, X binomial; a = (1 - confidence) / 2, or for "upper" 1 - confidence, and
    low 0.

    Source: Clopper and Pearson 1934, Biometrika 26, 404-413.
    """
    from scipy.special import betainccinv, betaincinv

    check_counts(successes, 0, n)
    check_confidence(confidence)
    if side not in ("two-sided", "upper"):
        raise ValueError(f"side must be 'two-sided' or 'upper', received {side!r}")
    tail = 1 - confidence if side == "upper" else (1 - confidence) / 2
    low = 0.0 if side == "upper" or not successes else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betainccinv(successes + 1, n - successes, tail))
    return Interval(low, high)


def paired_interval(b: int, c: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Tango's score interval of the drop 100 (b - c) / n, in percentage points.

    All d with |b - c - n d| <= z sqrt(n (2 q + d (1 - d))), where q is the maximum-likelihood estimate, given d, of the share of images
    that the candidate alone has right: the larger root of 2n q² + (d (2n - b + c) - b - c) q - c d (1 - d) = 0. It inverts the score test
    whose value at d = 0 is McNemar's asymptotic one, and has a width when b and c are 0.

    Source: Tango 1998, Statistics in Medicine 17, 891-908.
    """
    check_counts(b, c, n)
    z = quantile(confidence)
    return Interval(100 * tango_low(b, c, n, z), -100 * tango_low(c, b, n, z))


def tango_low(b: int, c: int, n: int, z: float) -> float:
    """Return the low end of Tango's interval, a fraction, by bisection between -1 and the estimate, which may be a false root itself."""
    low, high = -1.0, (b - c) / n
    for _ in range(BISECTIONS):
        d = (low + high) / 2
        linear = d * (2 * n - b + c) - b - c
        q = (sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d))) - linear) / (4 * n)
        if b - c - n * d > z * sqrt(max(0.0, n * (2 * q + d * (1 - d)))):
            low = d
        else:
            high = d
    return low


def mcnemar_exact(b: int, c: int, alternative: Literal["two-sided", "greater"] = "two-sided") -> float:
    """Return the p-value of McNemar's exact test that two models have the same accuracy; 1 where b = c = 0.

    "greater" is P(B >= b), B binomial of b + c trials at 1/2: small where the candidate is worse. "two-sided" is twice the smaller tail.

    Source: McNemar 1947, Psychometrika 12, 153-157; exact by the sign test.
    """
    from scipy.special import bdtr  # not binomtest: of 10 and 1,065 scipy 1.17 gives 0, exact is 2.7e-300

    if min(b, c) < 0:
        raise ValueError(f"counts must be at least 0, received {b} and {c}")
    if alternative == "greater":
        return float(bdtr(c, b + c, 0.5))
    if alternative == "two-sided":
        return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))
    raise ValueError(f"alternative must be 'two-sided' or 'greater', received {alternative!r}")


def quantile(confidence: float) -> float:
    """Return z, the standard normal quantile at (1 + confidence) / 2: 1.96 for 0.95."""
    check_confidence(confidence)
    return NormalDist().inv_cdf((1 + confidence) / 2)


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless the confidence is in (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95, received {confidence}")


def check_counts(first: int, second: int, n: int) -> None:
    """Raise ValueError unless two counts of different things among n fit in it, and n is at least 1."""
    if n < 1 or min(first, second) < 0 or first + second > n:
        raise ValueError(f"counts must be at least 0 and fit in n, at least 1; received {first} and {second} of {n}")
