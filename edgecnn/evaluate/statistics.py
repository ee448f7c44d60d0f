"""Paired comparison of two classifiers on the same images, the quality of scores, and images found per class.

A model's answer is the first of its largest logits or scores. b counts the images that only the reference classifies correctly (lost),
c those that only the candidate does (gained): drop = 100 (b - c) / n percentage points.
"""

from collections.abc import Sequence
from math import ceil, sqrt
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from edgecnn.labels import printable
from edgecnn.runtime.decision import softmax
from edgecnn.tables import Count, Fraction, Positive, Struct, described

BISECTIONS = 60
"""Halvings of an interval at most 2 wide. What remains is smaller than a float's step at 1e-2."""


class Interval(NamedTuple):
    """The ends of a confidence interval, both included; low is at most high."""

    low: float
    high: float


class Accuracies(Struct):
    """A candidate's and a reference's answers on n images: fractions, `drop` in points, b as `lost` and c as `gained`."""

    n: int
    accuracy_reference: float
    accuracy_candidate: float
    drop: float
    lost: int
    gained: int
    agreement: float


def compare(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> Accuracies:
    """Compare two models image by image, given the classes each answers and the true ones, int (n,)."""
    n, right, right_candidate = len(classes), reference == classes, candidate == classes
    lost, gained = int(np.sum(right & ~right_candidate)), int(np.sum(right_candidate & ~right))
    return Accuracies(
        n=n,
        accuracy_reference=float(np.mean(right)),
        accuracy_candidate=float(np.mean(right_candidate)),
        drop=100 * (lost - gained) / n,
        lost=lost,
        gained=gained,
        agreement=float(np.mean(reference == candidate)),
    )


def per_class_drop(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray, width: int) -> list[float | None]:
    """Return the drop of each of `width` classes in percentage points; None for a class without images. Arguments as in `compare`."""
    count = np.bincount(classes, minlength=width).tolist()
    one, other = (
        np.bincount(classes[answers == classes], minlength=width).tolist() for answers in (reference, candidate)
    )
    return [100 * (one[index] - other[index]) / count[index] if count[index] else None for index in range(width)]


def confidence_drift(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float]:
    """Return the change in the softmax score of the reference's answer: mean and 95th percentile over the images."""
    top = np.argmax(reference, axis=1)[:, None]
    one, other = (np.take_along_axis(scores, top, axis=1) for scores in (reference, candidate))
    change = np.abs(other.astype(np.float64) - one)
    return float(np.mean(change)), float(np.percentile(change, 95))


def lsb_difference(
    logits: np.ndarray, codes: np.ndarray, scale: float, zero_point: int, *, up_to_constant: bool = False
) -> tuple[float, int]:
    """Return the mean and largest difference, in codes (LSB), between a quantized output and real logits on the same grid.

    |clip(round(logit / scale) + zero_point) - code|, clipped to the range of the codes' dtype. With `up_to_constant`, a constant added to
    all logits of an image is ignored, since softmax does not change with it. It is estimated as the median over the classes whose codes
    are inside the range.
    """
    limits = np.iinfo(codes.dtype)
    measured, expected = codes.astype(np.int32), np.rint(logits / scale) + zero_point
    if up_to_constant:
        inside = (measured > limits.min) & (measured < limits.max)
        apart = np.ma.median(np.ma.masked_array(measured - expected, ~inside), axis=1)
        expected += np.rint(np.ma.filled(apart, 0.0))[:, np.newaxis]
    difference = np.abs(np.clip(expected, limits.min, limits.max).astype(np.int32) - measured)
    return float(np.mean(difference)), int(np.max(difference))


def chance_level(classes: np.ndarray) -> tuple[int, float]:
    """Return the most frequent class (the smallest in a tie) and its fraction of the images, the accuracy of always answering it."""
    count = np.bincount(classes)
    top = int(np.argmax(count))
    return top, int(count[top]) / len(classes)


def wilson(successes: float, n: float, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion such as an accuracy, as fractions in [0, 1].

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212.
    """
    share, z = successes / n, quantile(confidence)
    middle, half = share + z * z / (2 * n), z * sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    low, high = (middle - half) / scale, (middle + half) / scale
    return Interval(low if successes else 0.0, high if successes < n else 1.0)  # exact there


WORTH = 0.45
"""How much a fold model's answer counts for the final model, which was trained on more and other images. With this weight, the interval
contains the accuracy on other photos in 94 to 100 % of draws, except if nearly all are right; with 1, in 79 to 89 %
(`tools/bench/folds_coverage.py`)."""


def folds_interval(successes: int, n: int) -> Interval:
    """Return the 95 % interval of the final model's accuracy, from the number of held-out images that fold models classify correctly."""
    return wilson(WORTH * successes, WORTH * n)


def grouped_interval(right: np.ndarray, groups: Sequence[str], worth: float = 1.0) -> Interval:
    """Return a 95 % interval of the accuracy on photos of other groups, from the photos that are `right`, bool (n,), and their groups.

    With r right photos of n in each of G groups and p of all, the variance of p is v = G / (G - 1) sum((r - p n)²) / N². The N photos are
    worth p (1 - p) / v, at most N, and G if all answers are right or all wrong. Student's quantile t with G - 1 degrees of freedom replaces
    the normal one in Wilson's interval, which depends on z² / N only. `worth` is a factor for each photo.

    Source: Cochran 1977, "Sampling Techniques", 3rd edition, sections 3.12 and 11.
    """
    from scipy.special import stdtrit

    numbers = np.unique(groups, return_inverse=True)[1]
    count, n, p = int(numbers.max()) + 1, len(right), float(np.mean(right))
    if count < 2:
        return Interval(0.0, 1.0)
    apart = np.bincount(numbers, right - p)
    variance = count / (count - 1) * float(apart @ apart) / n**2
    photos = min(p * (1 - p) / variance, n) if 0 < p < 1 and variance else count
    photos *= worth * (quantile(0.95) / float(stdtrit(count - 1, 0.975))) ** 2
    return wilson(p * photos, photos)


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Return an interval of the mean of independent values, each with its own interval, such as the accuracies of classes.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27, 1693-1702.
    """
    mean = float(np.mean(values))
    pairs = list(zip(values, intervals, strict=True))
    down, up = (sqrt(sum((value - pair[end]) ** 2 for value, pair in pairs)) / len(pairs) for end in (0, 1))
    return Interval(mean - down, mean + up)


def clopper_pearson(
    successes: int, n: int, confidence: float = 0.95, side: Literal["two-sided", "upper"] = "two-sided"
) -> Interval:
    """Return Clopper and Pearson's exact interval for a proportion. It covers the proportion at least `confidence` of the time, for any n.

    P(X >= successes | low) = a and P(X <= successes | high) = a, with X binomial and a = (1 - confidence) / 2. For "upper",
    a = 1 - confidence and low is 0.

    Source: Clopper and Pearson 1934, Biometrika 26, 404-413.
    """
    from scipy.special import betainccinv, betaincinv

    tail = 1 - confidence if side == "upper" else (1 - confidence) / 2
    low = 0.0 if side == "upper" or not successes else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betainccinv(successes + 1, n - successes, tail))
    return Interval(low, high)


def paired_interval(b: float, c: float, n: float, confidence: float = 0.95) -> Interval:
    """Return Tango's score interval for the drop 100 (b - c) / n, in percentage points.

    It contains all d with |b - c - n d| <= z sqrt(n (2 q + d (1 - d))). Here q is the maximum-likelihood estimate, given d, of the
    fraction of images that only the candidate classifies correctly: the larger root of 2n q² + (d (2n - b + c) - b - c) q - c d (1 - d)
    = 0. The interval inverts the score test, which at d = 0 is McNemar's asymptotic test, and has a width even if b and c are 0.

    Source: Tango 1998, Statistics in Medicine 17, 891-908.
    """
    z = quantile(confidence)
    return Interval(100 * tango_low(b, c, n, z), -100 * tango_low(c, b, n, z))


def tango_low(b: float, c: float, n: float, z: float) -> float:
    """Return the low end of Tango's interval, a fraction, by bisection between -1 and the estimate, which can itself be a false root."""
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
    """Return the p-value of McNemar's exact test that two models have the same accuracy; 1 if b = c = 0.

    "greater" is P(B >= b), with B binomial in b + c trials at 1/2: small if the candidate is worse. "two-sided" is twice the smaller tail.

    Source: McNemar 1947, Psychometrika 12, 153-157; exact by the sign test.
    """
    from scipy.special import bdtr  # not binomtest: for 10 and 1,065 scipy 1.17 returns 0; the exact value is 2.7e-300

    if alternative == "greater":
        return float(bdtr(c, b + c, 0.5))
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def images_to_refuse(rate: float, worse: float, limit: float) -> int:
    """Return how many images it takes to estimate a drop of `worse` points above `limit` points in 95 % of draws.

    n = (z / (worse - limit))² v, with z the normal quantile at 95 % and v the variance of one image's contribution to the drop. If `rate`
    is the fraction of images that only one of two equal models classifies correctly, v = 100² (rate + d - d²), d = worse / 100.
    """
    d = worse / 100
    return ceil((100 * quantile(0.9) / (worse - limit)) ** 2 * (rate + d - d * d))


def images_to_clear(rate: float, limit: float) -> int:
    """Return how many images it takes for the 95 % interval of an equal model's drop to end below `limit` points in 95 % of draws."""
    return max(1, ceil((100 * (quantile(0.95) + quantile(0.9)) / limit) ** 2 * rate))


def quantile(confidence: float) -> float:
    """Return z, the standard normal quantile at (1 + confidence) / 2: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


BINS = 15
SUM_TOLERANCE = 1e-3
"""Largest deviation of a row of float scores' sum from 1. Each quantized score may be half a code off."""


class Selective(Struct):
    """A threshold's figures on n images.

    Images with a score of at least `threshold` are answered; on the others the classifier abstains.
    """

    threshold: Fraction
    n: Positive
    answered: Count
    errors: Count
    share_answered: Fraction = described("answered / n.")
    error: Fraction | None = described("Among answered images: errors / answered; null if none are answered.")


class ScoreFigures(Selective):
    """A temperature's and a threshold's figures on images."""

    nll: float
    nll_after: float = described("At the temperature.")
    calibration_error: Fraction
    calibration_error_after: Fraction


def is_scores(values: np.ndarray, scale: float) -> bool:
    """Check whether outputs (n, num_classes) come from a softmax: in [0, 1], each row summing to 1 within the resolution of `scale`."""
    room = max(SUM_TOLERANCE, values.shape[1] * scale / 2)
    return bool(values.min() >= 0 and values.max() <= 1 and np.all(np.abs(values.sum(axis=1) - 1) <= room))


def nll(logits: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood in nats: mean of log sum exp(logits / T) - logits[class] / T.

    `logits` is float32 (n, num_classes), `classes` int (n,). A model that has learned nothing gets log(num_classes).
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    true = np.take_along_axis(scaled, np.asarray(classes)[:, None], axis=1)[:, 0]
    return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - true))


def bins_of(scores: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin (i / bins, (i + 1) / bins] of each score, (n,)."""
    return np.clip(np.ceil(scores.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)


def expected_calibration_error(scores: np.ndarray, classes: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: sum over bins of (images in it / n) |accuracy in it - mean score in it|.

    An image's score is the largest in its row of `scores`, (n, num_classes). Bins are (i / bins, (i + 1) / bins]. Small samples
    overestimate it, because each bin's noise counts as error.

    Source: Naeini et al. 2015 (AAAI 29); 15 bins as in Guo et al. 2017 (arXiv:1706.04599).
    """
    score = scores.max(axis=1).astype(np.float64)
    right = np.argmax(scores, axis=1) == classes
    gaps = np.bincount(bins_of(score, bins), weights=right - score, minlength=bins)
    return float(np.sum(np.abs(gaps)) / len(classes))


def answered_at(scores: np.ndarray, right: np.ndarray, threshold: float) -> Selective:
    """Return a threshold's figures on images: `scores` are their largest, float32 (n,), `right` marks correct answers."""
    return selective(threshold, scores.astype(np.float64) >= threshold, right)


def selective(threshold: float, answered: np.ndarray, right: np.ndarray) -> Selective:
    """Return the figures for answering only the images marked in `answered`, bool (n,); `right` marks correct answers."""
    count, errors = int(np.sum(answered)), int(np.sum(answered & ~right))
    return Selective(
        threshold=threshold,
        n=len(answered),
        answered=count,
        errors=errors,
        share_answered=count / len(answered),
        error=errors / count if count else None,
    )


def score_figures(logits: np.ndarray, classes: np.ndarray, temperature: float, threshold: float) -> ScoreFigures:
    """Return the figures of a temperature and a threshold on images: logits float32 (n, num_classes), classes int (n,)."""
    before, after = softmax(logits), softmax(logits / np.float32(temperature))
    right = np.argmax(logits, axis=1) == classes
    return ScoreFigures(
        nll=nll(logits, classes),
        nll_after=nll(logits, classes, temperature),
        calibration_error=expected_calibration_error(before, classes),
        calibration_error_after=expected_calibration_error(after, classes),
        **vars(answered_at(after.max(axis=1), right, threshold)),
    )


NAMED = 3  # weakest classes that a line names


class ClassFound(Struct):
    """A class's images, and those of them that a model classifies correctly."""

    label: str
    images: Count
    found: Count = described("Images of the class that are classified as this class.")


def found_by_class(answers: np.ndarray, classes: np.ndarray, labels: Sequence[str]) -> tuple[ClassFound, ...]:
    """Count for each label; `answers` and `classes` are int (n,)."""
    return tuple(
        ClassFound(
            label=label, images=int(np.sum(classes == number)), found=int(np.sum(answers[classes == number] == number))
        )
        for number, label in enumerate(labels)
    )


def balanced_accuracy(found: Sequence[ClassFound]) -> float:
    """Return the mean over the classes of the share of images found; classes without images are left out."""
    return float(np.mean([one.found / one.images for one in found if one.images]))


def class_line(found: Sequence[ClassFound], images: str) -> str:
    """Return a line with the balanced accuracy on `images`, such as "test images", and the classes of which least is found."""
    measured = [one for one in found if one.images]
    weakest = sorted(measured, key=lambda one: (one.found / one.images, -one.images))
    named = ", ".join(
        f"{printable(one.label)}: {one.found:,} of {one.images:,} found"
        for one in weakest[:NAMED]
        if one.found < one.images
    )
    return f"balanced accuracy of int8 on {images}, every class counting the same: {balanced_accuracy(found):.2%}" + (
        f"; weakest: {named}" if named else ""
    )
