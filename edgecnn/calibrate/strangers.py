"""The limit below which an image is a stranger: set by the features of known images, and by the answers to validation images."""

import numpy as np

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.runtime.stranger import similarity, unit_rows
from edgecnn.tables import Struct

KNOWN_FILE = "stranger/known.npy"

NEIGHBOURS = 5

VALUES = 256
"""Values of validation images that a bundle keeps, at most: quantiles stand for more."""


class ChosenStrangers(Struct):
    """How a run's models recognise strangers: `strangers.json`; `known.npy` next to it has the features.

    `not_fitted` says why there is no `limit`: too few validation images for the rate. `model` is the file in a bundle by which it was
    chosen, at the softmax temperature `temperature`.
    """

    limit: StrangerLimit | None
    not_fitted: str | None
    rate: float
    validation_images: int
    known_images: int
    model: str
    model_sha256: str
    known_sha256: str
    temperature: float
    validation_sha256: str
    train_sha256: str


def known_codes(features: np.ndarray) -> np.ndarray:
    """Return features as a bundle keeps them: int8, each row scaled so that its largest is 127; only directions are compared."""
    largest = np.abs(features).max(axis=1, keepdims=True)
    codes: np.ndarray = np.rint(features * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
    return codes


def least_count(rate: float) -> int:
    """Return how many validation images are needed to set a limit for a rate: of fewer, one alone is more than the rate."""
    return int(np.ceil(1 / rate - 1e-9)) - 1


def fit_limit(scores: np.ndarray, features: np.ndarray, codes: np.ndarray, rate: float) -> StrangerLimit | None:
    """Choose the limit below which an image is a stranger; None where the images are too few for the rate, or none is known.

    With n validation images it is their rate * (n + 1)-th smallest familiarity, interpolated, the p-values of each being those among the
    others: an image of the same kind falls below it with a probability of about the rate.

    Args:
        scores: the largest softmax score of each validation image, shape (n,).
        features: theirs, float32, shape (n, length).
        codes: of known images, from `known_codes`.
        rate: share of known images that may be refused, in (0, 0.5].

    Source: split conformal prediction, Vovk, Gammerman and Shafer 2005; the quantile, Weibull 1939 (numpy's method "weibull").
    """
    return limit_of(scores, similar_to(features, codes), rate, codes)


def similar_to(features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return how similar images' features are to those of known images, float32 (n,); arguments as of `fit_limit`."""
    return (
        similarity(features, unit_rows(codes), min(NEIGHBOURS, len(codes))) if len(codes) else np.zeros(len(features))
    )


def limit_of(scores: np.ndarray, similar: np.ndarray, rate: float, codes: np.ndarray) -> StrangerLimit | None:
    """Choose the limit by similarities that are known, (n,), such as those of images that each had a model of its own to know others."""
    from scipy.stats import rankdata

    if len(scores) < least_count(rate) or not len(codes):
        return None
    familiarity = sum(np.log(rankdata(values, "max") / len(values)) for values in (scores, similar))
    shares = np.linspace(0, 1, min(max(len(scores), 2), VALUES))
    of_scores, of_similar = (np.quantile(values.astype(np.float64), shares) for values in (scores, similar))
    return StrangerLimit(
        known=KNOWN_FILE,
        length=codes.shape[1],
        neighbours=min(NEIGHBOURS, len(codes)),
        scores=tuple(of_scores.tolist()),
        similarities=tuple(of_similar.tolist()),
        limit=float(np.quantile(familiarity, rate, method="weibull")),
        rate=rate,
    )
