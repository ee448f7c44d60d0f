"""Confidences one can use: the temperature, the calibration error and the threshold below which a classifier abstains.

Temperature and threshold are chosen on validation images; the test split only reports what they are worth.
"""

from dataclasses import asdict, dataclass
from math import ceil, log

import numpy as np

from edgecnn.errors import ThresholdError
from edgecnn.verify.statistics import check_confidence, clopper_pearson

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Limits of the temperature."""

FEWEST = 100
"""Validation images below which no temperature is fitted.

Where no temperature was needed, one fitted on 100 images cost 0.006 nats of negative log-likelihood on average and 0.15 at most; one
fitted on 50 up to 0.84, one fitted on 20 up to 2.4 (1,000 draws each with two and with ten classes: `tools/bench/small_validation.py`).
"""

THRESHOLDS = tuple(index / 100 for index in range(100))
"""The thresholds tried, 0.00 to 0.99. The grid is fixed before the data are seen: the correction counts all of it."""


@dataclass(frozen=True, kw_only=True)
class Selective:
    """What a threshold is worth on n images.

    Those with a score of at least `threshold` are answered, the classifier abstains on the others. `share_answered` is
    answered / n; `error` is errors / answered, None where nothing is answered.
    """

    threshold: float
    n: int
    answered: int
    errors: int
    share_answered: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class Choice(Selective):
    """A threshold, what it is worth on the images it was chosen on, and what that proves of its error.

    `bound` is the Clopper-Pearson upper bound on the error at confidence 1 - (1 - confidence) / tried.
    """

    bound: float
    target_error: float
    confidence: float
    tried: int


def nll(logits: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood in nats: mean of log sum exp(logits / T) - logits[class] / T.

    Args:
        logits: float32, shape (n, num_classes), n at least 1.
        classes: int array, shape (n,), the true classes.
        temperature: T, greater than 0.

    Returns:
        At least 0; log(num_classes) for a model that knows nothing.

    Raises:
        ValueError: if shapes do not fit, there are no images, or the temperature is not greater than 0.
    """
    check_images(logits, classes)
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, received {temperature}")
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    true = np.take_along_axis(scaled, np.asarray(classes)[:, None], axis=1)[:, 0]
    return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - true))


def fit_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature T by which to divide logits before softmax, so that scores are what they claim.

    T = argmin `nll`. One number, so no answer changes. The minimum over 1/T is the only one, the likelihood being
    log-concave in it; it is sought over log T within TEMPERATURES.

    Args:
        logits: float32, shape (n, num_classes), of validation images, n at least 1.
        classes: int array, shape (n,), the true classes.

    Returns:
        T; above 1 for a model that is too sure. Near a limit of TEMPERATURES where the data set none: every answer
        right, or answers no better than chance.

    Raises:
        ValueError: if shapes do not fit or there are no images.

    Source: Guo et al. 2017, section 4.2 (arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar

    check_images(logits, classes)
    found = minimize_scalar(
        lambda log_temperature: nll(logits, classes, float(np.exp(log_temperature))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def expected_calibration_error(scores: np.ndarray, classes: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: sum over bins of (images in it / n) |accuracy in it - mean score in it|.

    An image's score is its largest; bins are (i / bins, (i + 1) / bins], of equal width.

    Args:
        scores: softmax scores, shape (n, num_classes), n at least 1.
        classes: int array, shape (n,), the true classes.
        bins: at least 1.

    Returns:
        A fraction in [0, 1]; 0 where scores are what they claim. Small samples read high: each bin's noise counts as
        error.

    Raises:
        ValueError: if shapes do not fit, there are no images, or `bins` is less than 1.

    Source: Naeini et al. 2015 (AAAI 29); 15 bins as in Guo et al. 2017 (arXiv:1706.04599).
    """
    check_images(scores, classes)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, received {bins}")
    score = scores.max(axis=1).astype(np.float64)
    right = np.argmax(scores, axis=1) == classes
    index = np.clip(np.ceil(score * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=right - score, minlength=bins)
    return float(np.sum(np.abs(gaps)) / len(classes))


def answered_at(scores: np.ndarray, right: np.ndarray, threshold: float) -> Selective:
    """Return what a threshold is worth on images, such as the test split's.

    An image is answered where `runtime.decision.decide` answers: score >= threshold.

    Args:
        scores: float32, shape (n,), each image's largest softmax score, n at least 1.
        right: bool, shape (n,), whether its answer is the true class.
        threshold: in [0, 1].

    Raises:
        ValueError: if shapes differ, there are no images, or a score is not a number.
    """
    if scores.ndim != 1 or scores.shape != right.shape or not len(scores) or np.isnan(scores).any():
        raise ValueError(
            f"one score and one bool an image are expected, received shapes {scores.shape} and {right.shape}"
        )
    answered = scores.astype(np.float64) >= threshold
    count, errors = int(np.sum(answered)), int(np.sum(answered & ~right))
    return Selective(
        threshold=threshold,
        n=len(scores),
        answered=count,
        errors=errors,
        share_answered=count / len(scores),
        error=errors / count if count else None,
    )


def choose_threshold(scores: np.ndarray, right: np.ndarray, target_error: float, confidence: float = 0.95) -> Choice:
    """Choose the smallest threshold whose error among answered images is at most the target, with confidence.

    Of THRESHOLDS, the smallest with clopper_pearson(errors, answered, 1 - (1 - confidence) / len(THRESHOLDS), "upper")
    at most the target (Bonferroni). All the bounds hold together at least `confidence` of the time, so the chosen one's
    does, whatever the model.

    Args:
        scores: float32, shape (n,), the largest softmax score of each validation image, at the temperature that the
            device applies.
        right: bool, shape (n,), whether its answer is the true class.
        target_error: in (0, 1).
        confidence: in (0, 1).

    Raises:
        ThresholdError: if no threshold qualifies; the message gives the nearest and how many images would do.
        ValueError: if shapes differ, there are no images, or a number is out of its range.

    Source: Clopper and Pearson 1934; Geifman and El-Yaniv 2017 (arXiv:1705.08500), with a fixed grid in place of their
    search.
    """
    if not 0 < target_error < 1:
        raise ValueError(f"target_error must be between 0 and 1, such as 0.05, received {target_error}")
    check_confidence(confidence)
    each = 1 - (1 - confidence) / len(THRESHOLDS)
    choices = [
        Choice(
            **asdict(selective),
            bound=clopper_pearson(selective.errors, selective.answered, each, "upper").high,
            target_error=target_error,
            confidence=confidence,
            tried=len(THRESHOLDS),
        )
        for selective in (answered_at(scores, right, threshold) for threshold in THRESHOLDS)
        if selective.answered
    ]
    chosen = next((choice for choice in choices if choice.bound <= target_error), None)
    if chosen is None:
        best = min(choices, key=lambda choice: choice.bound)
        needed = ceil(log(1 - each) / log(1 - target_error))
        raise ThresholdError(
            f"No threshold keeps the error at {target_error:.2%} with {confidence:.0%} confidence: the nearest, "
            f"{best.threshold:.2f}, answers {best.answered} of {best.n} images with {best.errors} errors, "
            f"which proves {best.bound:.2%}.\n"
            f"Without an error, {needed} answered images would do: use more validation images, "
            "train a better model, or allow a larger target error."
        )
    return chosen


def check_images(rows: np.ndarray, classes: np.ndarray) -> None:
    """Raise ValueError unless there is one class an image and at least one image."""
    if rows.ndim != 2 or len(rows) != len(classes) or not len(classes):
        raise ValueError(f"one row an image is expected, received shape {rows.shape} for {len(classes)} images")
