"""What a classifier's scores are worth: the temperature, the threshold below which it abstains, and the limit for strangers.

All are chosen from the answers to validation images; the test split only measures their effect. With folds, each fold's figures come from
the values chosen on the others. The limit for out-of-distribution images uses the features of known images too.
"""

from dataclasses import asdict
from math import ceil, log

import numpy as np

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.errors import ThresholdError
from edgecnn.evaluate import statistics
from edgecnn.runtime.decision import Strangers, similarity, softmax, unit_rows
from edgecnn.tables import Fraction, Positive, Struct, described

TEMPERATURES = (0.05, 20.0)

FEWEST = 100
"""With fewer validation images, no temperature is fitted; docs/decisions.md states what that could cost."""


def fit_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature T that divides the logits before softmax so that scores match accuracy: argmin `nll`.

    The likelihood is log-concave in 1/T, so the minimum is unique. The search runs over log T within TEMPERATURES, and ends near a limit
    if the data do not determine T. `logits` is float32 (n, num_classes), `classes` int (n,).

    Source: Guo et al. 2017, section 4.2 (arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar

    minimum = minimize_scalar(
        lambda log_temperature: statistics.nll(logits, classes, float(np.exp(log_temperature))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(minimum.x))


THRESHOLDS = tuple(index / 100 for index in range(100))
"""The candidate thresholds, 0.00 to 0.99. The grid is fixed before the data are seen, and the correction counts all of it."""


class Choice(statistics.Selective):
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
    Raises ThresholdError if no threshold qualifies; the message names the closest, and how many images would be enough.

    Source: Clopper and Pearson 1934; Geifman and El-Yaniv 2017 (arXiv:1705.08500), with a fixed grid instead of their search.
    """
    if not 0 < target_error < 1:
        raise ValueError(f"target_error must be between 0 and 1, such as 0.05, received {target_error}")
    each = 1 - (1 - confidence) / len(THRESHOLDS)
    choices = [
        Choice(
            **asdict(selective),
            bound=statistics.clopper_pearson(selective.errors, selective.answered, each, "upper").high,
            target_error=target_error,
            confidence=confidence,
            tried=len(THRESHOLDS),
        )
        for selective in (statistics.answered_at(scores, right, threshold) for threshold in THRESHOLDS)
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


class ChosenConfidence(Struct):
    """A temperature and a threshold, with their figures on the validation images used to choose them: `confidence.json`.

    `not_fitted` explains why the temperature is 1: there were fewer than FEWEST images, or no errors among them. It is None if the
    temperature was fitted. `choice` is None without a target error. `model` is the file in a bundle whose answers were used.
    """

    temperature: float
    not_fitted: str | None
    threshold: float
    choice: Choice | None
    validation: statistics.ScoreFigures
    model: str = ""
    model_sha256: str = ""
    validation_sha256: str = ""


def fit_confidence(logits: np.ndarray, classes: np.ndarray, target_error: float | None = None) -> ChosenConfidence:
    """Choose a temperature from logits, float32 (n, num_classes), and a threshold for any target error in (0, 1), or ThresholdError."""
    right = np.argmax(logits, axis=1) == classes
    not_fitted = None
    if len(classes) < FEWEST:
        not_fitted = f"{len(classes)} validation images, at least {FEWEST} are needed"
    elif right.all():
        not_fitted = "no error on validation images"
    temperature = 1.0 if not_fitted else fit_temperature(logits, classes)
    choice = None
    if target_error is not None:
        scores = softmax(logits / np.float32(temperature)).max(axis=1)
        choice = choose_threshold(scores, right, target_error)
    threshold = choice.threshold if choice else 0.0
    return ChosenConfidence(
        temperature=temperature,
        not_fitted=not_fitted,
        threshold=threshold,
        choice=choice,
        validation=statistics.score_figures(logits, classes, temperature, threshold),
    )


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


def similar_to(features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the similarity of images' features to those of known images, float32 (n,).

    `features` are float32 (n, length), and `codes` those of the known images, from `known_codes`.
    """
    return (
        similarity(features, unit_rows(codes), min(NEIGHBOURS, len(codes))) if len(codes) else np.zeros(len(features))
    )


def limit_of(scores: np.ndarray, similar: np.ndarray, rate: float, codes: np.ndarray) -> StrangerLimit | None:
    """Choose the limit below which an image is a stranger; None if there are too few images for the rate, or no known ones.

    With n validation images the limit is their rate * (n + 1)-th smallest familiarity, interpolated. The p-values of each image are those
    among the others. An image of the same kind falls below the limit with a probability of about the rate, in (0, 0.5]. `scores` are each
    validation image's largest softmax score, (n,), and `similar` its similarity to the known images, (n,).

    Source: split conformal prediction, Vovk, Gammerman and Shafer 2005; the quantile, Weibull 1939 (numpy's method "weibull").
    """
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


NONE_KNOWN = np.zeros((1, 1), np.int8)  # a placeholder, since similarities to the known images are already computed


def cross_fitted_scores(
    logits: np.ndarray, classes: np.ndarray, fold: np.ndarray, threshold: float, target_error: float | None = None
) -> statistics.ScoreFigures:
    """Evaluate temperatures and thresholds on logits float32 (n, num_classes), true classes (n,) and each image's fold (n,).

    Each fold's images use the temperature and threshold that the other folds choose. If these have too few images for any threshold, none
    of the fold's images is answered. The figures are those at `threshold`, which was chosen on all folds.
    """
    tempered, answered = np.empty_like(logits), np.ones(len(classes), bool)
    for one in np.unique(fold):
        mine = fold == one
        temperature, limit = temperature_and_threshold(logits[~mine], classes[~mine], target_error)
        tempered[mine] = logits[mine] / np.float32(temperature)
        answered[mine] = softmax(tempered[mine]).max(axis=1).astype(np.float64) >= limit
    return statistics.ScoreFigures(
        **vars(statistics.selective(threshold, answered, np.argmax(tempered, axis=1) == classes)),
        nll=statistics.nll(logits, classes),
        nll_after=statistics.nll(tempered, classes),
        calibration_error=statistics.expected_calibration_error(softmax(logits), classes),
        calibration_error_after=statistics.expected_calibration_error(softmax(tempered), classes),
    )


def temperature_and_threshold(
    logits: np.ndarray, classes: np.ndarray, target_error: float | None
) -> tuple[float, float]:
    """Return the temperature and threshold chosen on the images; a threshold above 1 means that none meets the target."""
    try:
        chosen = fit_confidence(logits, classes, target_error)
    except ThresholdError:
        return fit_confidence(logits, classes).temperature, 2.0
    return chosen.temperature, chosen.threshold


def cross_fitted_strangers(
    scores: np.ndarray, similar: np.ndarray, fold: np.ndarray, rate: float
) -> tuple[np.ndarray, bool]:
    """Return the images refused by the limit from the other folds, bool (n,), and whether every fold had one; arguments (n,)."""
    refused, limited = np.zeros(len(scores), bool), True
    for one in np.unique(fold):
        mine = fold == one
        limit = limit_of(scores[~mine], similar[~mine], rate, NONE_KNOWN)
        if limit is None:
            limited = False
        else:
            refused[mine] = Strangers(limit, NONE_KNOWN).familiarity_of(scores[mine], similar[mine]) < limit.limit
    return refused, limited
