"""Quality of scores: likelihood, calibration error, and the fraction of images answered at a threshold."""

import numpy as np

from edgecnn.runtime.decision import softmax
from edgecnn.tables import Count, Fraction, Positive, Struct, described

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
