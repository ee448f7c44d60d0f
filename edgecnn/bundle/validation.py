"""A model's scores on validation images, the reference for a camera's scores: `validation.json` of a run and its bundle."""

import bisect
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgecnn.errors import BundleError
from edgecnn.tables import Struct, build, key

VALIDATION = "validation.json"
SCHEMA = "edgecnn.validation/1"

BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
"""Upper ends of a histogram's bins, except the last, which ends at 1. Most scores are close to 1."""

BINS = len(BOUNDS) + 1


class ValidationScores(Struct):
    """A histogram of the best scores of validation images, and a device's decisions on them.

    `counts` holds the number of images with a score in (previous bound, bound], for each of BOUNDS and 1. `below` counts the images below
    `threshold` that are not strangers, `strangers` those less familiar than `limit`. `strangers_below` counts the strangers below the
    threshold: a device that does not recognise strangers abstains there. `model` is the model's file in the bundle.
    """

    schema: str = key(SCHEMA, choices=(SCHEMA,))
    model: str
    model_sha256: str
    validation_sha256: str
    temperature: float
    threshold: float
    limit: float | None
    images: int = key(low=1)
    bounds: tuple[float, ...] = key(valid=lambda bounds: bounds == BOUNDS, expected=f"the numbers {BOUNDS}")
    counts: tuple[int, ...] = key(
        valid=lambda counts: len(counts) == BINS and min(counts) >= 0, expected=f"{BINS} counts"
    )
    below: int = key(low=0)
    strangers: int = key(low=0)
    strangers_below: int = key(low=0)

    def shares(self, threshold: float, strangers: bool) -> tuple[float | None, float]:
        """Return a device's shares of abstain, None if it uses another threshold, and of stranger."""
        abstained = self.below if strangers else self.below + self.strangers_below
        refused = self.strangers if strangers else 0
        return (abstained / self.images if threshold == self.threshold else None), refused / self.images


def bin_of(score: float) -> int:
    """Return the index of a score's bin, 0 to BINS - 1."""
    return bisect.bisect_left(BOUNDS, score)


def counted(scores: np.ndarray) -> tuple[int, ...]:
    """Count the best scores, shape (n,), in each bin."""
    bins = np.searchsorted(BOUNDS, scores.astype(np.float64))
    return tuple(np.bincount(bins, minlength=BINS).tolist())


def read_validation(files: Mapping[str, bytes]) -> ValidationScores | None:
    """Return the scores in a bundle's `files`; None if the bundle has none. BundleError if they are not valid."""
    if VALIDATION not in files:
        return None
    try:
        table: Any = json.loads(files[VALIDATION])
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{VALIDATION} is not JSON: {error}") from None
    scores = build(ValidationScores, table, BundleError, VALIDATION, exact=True)
    if (
        sum(scores.counts) != scores.images
        or max(scores.below + scores.strangers, scores.strangers_below) > scores.images
    ):
        raise BundleError(f"{VALIDATION}: the counts do not match {scores.images:,} images")
    return scores
