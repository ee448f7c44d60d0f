"""The threshold below which a classifier abstains. It is chosen on validation images; the test split only measures its effect."""

from dataclasses import asdict
from math import ceil, log

import numpy as np

from edgecnn.errors import ThresholdError
from edgecnn.evaluate.scores import Selective, answered_at
from edgecnn.evaluate.statistics import clopper_pearson
from edgecnn.schema import Fraction, Positive, described

THRESHOLDS = tuple(index / 100 for index in range(100))
"""The candidate thresholds, 0.00 to 0.99. The grid is fixed before the data are seen, and the correction counts all of it."""


class Choice(Selective):
    """A threshold, its figures on the images used to choose it, and the bound on its error that follows from them."""

    bound: Fraction = described(
        "Clopper and Pearson's upper bound of error, at confidence 1 - (1 - confidence) / tried."
    )
    target_error: Fraction
    confidence: Fraction
    tried: Positive = described("Thresholds on the grid.")


def choose_threshold(scores: np.ndarray, right: np.ndarray, target_error: float, confidence: float = 0.95) -> Choice:
    """Choose the smallest threshold whose error among answered images is at most the target, with the given confidence.

    This is the smallest of THRESHOLDS with clopper_pearson(errors, answered, 1 - (1 - confidence) / len(THRESHOLDS), "upper") at most the
    target (Bonferroni). All bounds hold simultaneously, for any model. `scores` are each image's largest, float32 (n,), `right` bool (n,).

    Raises:
        ThresholdError: if no threshold qualifies; the message names the closest, and how many images would be enough.

    Source: Clopper and Pearson 1934; Geifman and El-Yaniv 2017 (arXiv:1705.08500), with a fixed grid instead of their search.
    """
    if not 0 < target_error < 1:
        raise ValueError(f"target_error must be between 0 and 1, such as 0.05, received {target_error}")
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
            f"No threshold keeps the error at {target_error:.2%} with {confidence:.0%} confidence. The closest, "
            f"{best.threshold:.2f}, answers {best.answered} of {best.n} images with {best.errors} errors, "
            f"which proves {best.bound:.2%}.\n"
            f"{needed} answered images without an error would be enough: use more validation images, "
            "train a better model, or allow a larger target error."
        )
    return chosen
