"""Figures of temperature, threshold and stranger limit on held-out images: each fold uses the values chosen on the other folds."""

from dataclasses import dataclass

import numpy as np

from edgecnn.calibrate.confidence import fit_confidence
from edgecnn.calibrate.strangers import limit_of
from edgecnn.errors import ThresholdError
from edgecnn.evaluate.scores import ScoreFigures, expected_calibration_error, nll, selective
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.stranger import Strangers

NONE_KNOWN = np.zeros((1, 1), np.int8)  # a placeholder, since similarities to the known images are already computed


def cross_fitted_scores(
    logits: np.ndarray, classes: np.ndarray, fold: np.ndarray, threshold: float, target_error: float | None = None
) -> ScoreFigures:
    """Evaluate temperatures and thresholds on logits float32 (n, num_classes), true classes (n,) and each image's fold (n,).

    Each fold's images use the temperature and threshold that the other folds choose. If these have too few images for any threshold, none
    of the fold's images is answered. The figures are those at `threshold`, which was chosen on all folds.
    """
    tempered, answered = np.empty_like(logits), np.ones(len(classes), bool)
    for one in np.unique(fold):
        mine = fold == one
        temperature, limit = fitted(logits[~mine], classes[~mine], target_error)
        tempered[mine] = logits[mine] / np.float32(temperature)
        answered[mine] = softmax(tempered[mine]).max(axis=1).astype(np.float64) >= limit
    return ScoreFigures(
        **vars(selective(threshold, answered, np.argmax(tempered, axis=1) == classes)),
        nll=nll(logits, classes),
        nll_after=nll(tempered, classes),
        calibration_error=expected_calibration_error(softmax(logits), classes),
        calibration_error_after=expected_calibration_error(softmax(tempered), classes),
    )


def fitted(logits: np.ndarray, classes: np.ndarray, target_error: float | None) -> tuple[float, float]:
    """Return the temperature and threshold chosen on the images; a threshold above 1 means that none meets the target."""
    try:
        chosen = fit_confidence(logits, classes, target_error)
    except ThresholdError:
        return fit_confidence(logits, classes).temperature, 2.0
    return chosen.temperature, chosen.threshold


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Images refused as strangers, bool (n,), by the limits of the other folds. `limited` is false if any fold had no limit."""

    images: np.ndarray
    limited: bool


def cross_fitted_strangers(scores: np.ndarray, similar: np.ndarray, fold: np.ndarray, rate: float) -> Refused:
    """Refuse each fold's images by the limit from the other folds. The largest softmax `scores`, `similar` and `fold` have shape (n,)."""
    refused, limited = np.zeros(len(scores), bool), True
    for one in np.unique(fold):
        mine = fold == one
        limit = limit_of(scores[~mine], similar[~mine], rate, NONE_KNOWN)
        if limit is None:
            limited = False
        else:
            refused[mine] = Strangers(limit, NONE_KNOWN).familiarity_of(scores[mine], similar[mine]) < limit.limit
    return Refused(images=refused, limited=limited)
