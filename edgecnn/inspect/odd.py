"""Images unlike the others: far away in features, or blurred."""

from functools import partial
from typing import NamedTuple

import numpy as np

from edgecnn.data import Progress
from edgecnn.inspect.features import neighbours

NEIGHBOURS = 10  # nearest others to average an image's distance over

SPREADS = 4.0
"""An image this far from the median, in robust standard deviations of the logarithm, is odd: one in 30,000 by chance, if normal."""

FEWEST = 20  # with fewer images, nothing is called odd

EMPTY = 4.0  # a picture with a smaller standard deviation, in grey levels, is too empty to be called blurred


class OddOnes(NamedTuple):
    """Indices of odd images, the oddest first; the values of all images, and their median."""

    indices: tuple[int, ...]
    values: np.ndarray
    usual: float


def far_from_the_rest(features: np.ndarray, progress: Progress) -> OddOnes:
    """Return the images farthest from their neighbours in features (n, LENGTH), of length 1: 1 minus the mean cosine, 0 to 2."""
    if len(features) < FEWEST:
        return OddOnes((), np.zeros(len(features)), 0.0)
    _, cosines = neighbours(features, NEIGHBOURS, partial(progress, "comparing features"))
    return odd_ones(1.0 - cosines.mean(axis=1, dtype=np.float64), 1)


def blurred(sharpness: np.ndarray, spread: np.ndarray) -> OddOnes:
    """Return the images whose neighbouring pixels differ least, relative to contrast; arguments as in LOOK, (n,)."""
    values = sharpness.astype(np.float64) / np.maximum(spread, 1e-6)
    full = spread >= EMPTY
    if full.sum() < FEWEST:
        return OddOnes((), values, 0.0)
    return odd_ones(np.where(full, values, np.median(values[full])), -1)._replace(values=values)


def odd_ones(values: np.ndarray, side: int) -> OddOnes:
    """Return the values at least SPREADS robust standard deviations of the logarithm from the median: above it for side 1, below for -1.

    Source: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", section 3.3 (modified z-score).
    """
    logs = np.log(np.maximum(values, 1e-6))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    score = side * (logs - middle) / max(float(spread), 1e-6)
    order = np.argsort(-score, kind="stable")
    odd = tuple(int(index) for index in order if score[index] > SPREADS)
    return OddOnes(odd, values, float(np.median(values)))
