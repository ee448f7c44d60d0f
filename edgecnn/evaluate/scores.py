"""What scores are worth: likelihood, calibration error, and the share that a threshold answers."""

from dataclasses import dataclass

import numpy as np

from edgecnn.runtime.decision import softmax
from edgecnn.schema import Count, Fraction, Positive, described

BINS = 15
SUM_TOLERANCE = 1e-3
"""How far a row of float scores may sum from 1; quantized ones may be half a code off each."""


@dataclass(frozen=True, kw_only=True)
class Selective:
    """What a threshold is worth on n images.

    Those with a score of at least `threshold` are answered, the classifier abstains on the others.
    """

    threshold: Fraction
    n: Positive
    answered: Count
    errors: Count
    share_answered: Fraction = described("answered / n.")
    error: Fraction | None = described("Among answered images: errors / answered; null where nothing is answered.")


@dataclass(frozen=True, kw_only=True)
class ScoreFigures(Selective):
    """What a temperature and a threshold are worth on images."""

    nll: float
    nll_after: float = described("At the temperature.")
    calibration_error: Fraction
    calibration_error_after: Fraction


def is_scores(values: np.ndarray, scale: float) -> bool:
    """Tell whether outputs are a softmax's: all in [0, 1], each row's sum 1 within what their codes can say.

    Args:
        values: float32, shape (n, num_classes).
        scale: of the quantized output, 0 for a float one.
    """
    room = max(SUM_TOLERANCE, values.shape[1] * scale / 2)
    return bool(values.min() >= 0 and values.max() <= 1 and np.all(np.abs(values.sum(axis=1) - 1) <= room))


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


def score_figures(logits: np.ndarray, classes: np.ndarray, temperature: float, threshold: float) -> ScoreFigures:
    """Return what a temperature and a threshold are worth on images, such as the test split's.

    Args:
        logits: float32, shape (n, num_classes), n at least 1.
        classes: int array, shape (n,), the true classes.
        temperature: by which the runtime divides logits, greater than 0.
        threshold: below which it abstains, in [0, 1].

    Returns:
        `nll` and `calibration_error` before (temperature 1) and `_after`, and what `threshold.answered_at` returns.
    """
    before, after = softmax(logits), softmax(logits / np.float32(temperature))
    right = np.argmax(logits, axis=1) == classes
    return ScoreFigures(
        nll=nll(logits, classes),
        nll_after=nll(logits, classes, temperature),
        calibration_error=expected_calibration_error(before, classes),
        calibration_error_after=expected_calibration_error(after, classes),
        **vars(answered_at(after.max(axis=1), right, threshold)),
    )


def check_images(rows: np.ndarray, classes: np.ndarray) -> None:
    """Raise ValueError unless there is one class an image and at least one image."""
    if rows.ndim != 2 or len(rows) != len(classes) or not len(classes):
        raise ValueError(f"one row an image is expected, received shape {rows.shape} for {len(classes)} images")
