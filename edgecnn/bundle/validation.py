"""What a model's scores were on validation images: `validation.json` of a run and of its bundle, with which a camera's are compared."""

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
"""The largest score of each bin of a histogram but the last, which ends at 1: most scores are close to that."""

BINS = len(BOUNDS) + 1


class ValidationScores(Struct):
    """The best scores of validation images, counted, and what a device decides of them.

    `counts` has the images whose score is in (the bound before, the bound], for each of BOUNDS and 1. `below` are the images below
    `threshold` that are no strangers; `strangers` those that are less familiar than `limit`, and `strangers_below` those of them below the
    threshold: a device that does not recognise strangers abstains there. `model` is the file in a bundle whose scores they are.
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
        """Return the shares of abstain, None if another threshold is in use, and of stranger, as a device decides."""
        abstained = self.below if strangers else self.below + self.strangers_below
        refused = self.strangers if strangers else 0
        return (abstained / self.images if threshold == self.threshold else None), refused / self.images


def bin_of(score: float) -> int:
    """Return the number of a score's bin, 0 to BINS - 1."""
    return bisect.bisect_left(BOUNDS, score)


def counted(scores: np.ndarray) -> tuple[int, ...]:
    """Return how many of the best scores, shape (n,), are in each bin."""
    bins = np.searchsorted(BOUNDS, scores.astype(np.float64))
    return tuple(np.bincount(bins, minlength=BINS).tolist())


def read_validation(files: Mapping[str, bytes]) -> ValidationScores | None:
    """Return the scores that a bundle's `files` state; None in an older bundle. BundleError if they are not valid."""
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
        raise BundleError(f"{VALIDATION}: the counts are not those of {scores.images} images")
    return scores
