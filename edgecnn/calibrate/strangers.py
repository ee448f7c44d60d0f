"""The limit for out-of-distribution images ("strangers"), set from the features of known images and the answers to validation images."""

import numpy as np

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.runtime.stranger import similarity, unit_rows
from edgecnn.tables import Struct

KNOWN_FILE = "stranger/known.npy"

NEIGHBOURS = 5

VALUES = 256
"""Most values of validation images that a bundle stores; quantiles represent the rest."""


class ChosenStrangers(Struct):
    """How a run's models detect strangers: `strangers.json`. The features are next to it in `known.npy`.

    `not_fitted` explains why there is no `limit`: too few validation images for the rate. `model` is the file in a bundle with which the
    limit was chosen, at the softmax temperature `temperature`.
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
    """Return features in a bundle's format: int8, each row scaled so that its largest value is 127. Only directions are compared."""
    largest = np.abs(features).max(axis=1, keepdims=True)
    codes: np.ndarray = np.rint(features * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)
    return codes


def least_count(rate: float) -> int:
    """Return how many validation images a limit for this rate needs. With fewer, a single image exceeds the rate."""
    return int(np.ceil(1 / rate - 1e-9)) - 1


def fit_limit(scores: np.ndarray, features: np.ndarray, codes: np.ndarray, rate: float) -> StrangerLimit | None:
    """Choose the limit below which an image is a stranger; None if there are too few images for the rate, or no known ones.

    With n validation images the limit is their rate * (n + 1)-th smallest familiarity, interpolated. The p-values of each image are those
    among the others. An image of the same kind falls below the limit with a probability of about the rate.

    Args:
        scores: each validation image's largest softmax score, shape (n,).
        features: their features, float32, shape (n, length).
        codes: of known images, from `known_codes`.
        rate: fraction of in-distribution images that may be refused, in (0, 0.5].
    Source: split conformal prediction, Vovk, Gammerman and Shafer 2005; the quantile, Weibull 1939 (numpy's method "weibull").
    """
    return limit_of(scores, similar_to(features, codes), rate, codes)


def similar_to(features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the similarity of images' features to those of known images, float32 (n,). Arguments as in `fit_limit`."""
    return (
        similarity(features, unit_rows(codes), min(NEIGHBOURS, len(codes))) if len(codes) else np.zeros(len(features))
    )


def limit_of(scores: np.ndarray, similar: np.ndarray, rate: float, codes: np.ndarray) -> StrangerLimit | None:
    """Choose the limit from known similarities, (n,), for example if a different model compared each image."""
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
