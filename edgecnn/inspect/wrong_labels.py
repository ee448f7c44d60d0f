"""Labels that a classifier fitted to all other images contradicts."""

from dataclasses import dataclass

import numpy as np

from edgecnn.data import Progress

FOLDS = 5
ROUNDS = 3  # random divisions of all images into folds; an image's scores are the mean over them

FEWEST = 2
"""Fewest different images of a class for its scores to be cross-validated: copies of each other share a fold."""

ODDS = 10.0
"""A label is named if another class has this many times its score. Of 1,465 photos with 50 wrong labels, this names about 80, 44 of them
wrong; 5 would name 120, with three more."""

COMPONENTS = 256
"""Principal components to use instead of the features: they name as many wrong labels as all 1,280, in a fraction of the time."""


@dataclass(frozen=True)
class Doubt:
    """A label that is likely wrong: the image's index, the class that its features suggest, and both classes' scores, 0 to 1."""

    index: int
    suggested: int
    score: float
    suggested_score: float


def out_of_fold(
    features: np.ndarray, classes: np.ndarray, groups: np.ndarray, seed: int, progress: Progress | None = None
) -> np.ndarray:
    """Return each image's scores from logistic regressions that were fitted without it and its copies.

    Args:
        features: float32 (n, features).
        classes: int (n,); each class 0 to the largest has FEWEST or more different images.
        groups: int (n,), the same for copies of each other, which share a fold.
        seed: of the folds.
        progress: if any.

    Returns:
        Softmax scores, float64 (n, classes); zeros for an image that was never held out while others of its class were fitted.
    """
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    from edgecnn.train.regression import choose_strength, regression  # edgecnn.train loads TensorFlow

    scores = np.zeros((len(classes), int(classes.max()) + 1))
    times = np.zeros((len(classes), 1))
    folds = max(2, min(FOLDS, int(distinct(classes, groups).min())))
    # small matrices: on a busy machine, threads waiting for each other took 30 times as long
    with threadpool_limits(1):
        scaled = components(standardised(features))
        strength = choose_strength(scaled, classes, seed)
        for number in range(ROUNDS):
            split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + number)
            for fold, (kept, held) in enumerate(split.split(scaled, classes, groups)):
                if progress:
                    progress("checking labels", number * folds + fold + 1, ROUNDS * folds)
                # a class that was not fitted scores 0, right or wrong
                judged = held[np.isin(classes[held], classes[kept])]
                if not len(judged) or len(np.unique(classes[kept])) < 2:
                    continue
                fitted = regression(strength).fit(scaled[kept], classes[kept])
                scores[np.ix_(judged, fitted.classes_)] += fitted.predict_proba(scaled[judged])
                times[judged] += 1
    return scores / np.maximum(times, 1)


def distinct(classes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return np.bincount(np.unique(np.stack([classes, groups]), axis=1)[0])


def standardised(features: np.ndarray) -> np.ndarray:
    """Return features (n, features) with mean 0 and standard deviation 1; a constant one becomes 0."""
    spread = features.std(axis=0)
    spread = np.where(spread > 1e-6 * max(float(spread.max()), 1e-12), spread, np.inf)
    scaled: np.ndarray = (features - features.mean(axis=0)) / spread
    return scaled


def components(features: np.ndarray) -> np.ndarray:
    """Return the first COMPONENTS principal components of standardised features (n, features)."""
    if features.shape[1] <= COMPONENTS:
        return features
    _, vectors = np.linalg.eigh(np.asarray(features.T @ features, np.float64))
    return features @ vectors[:, : -COMPONENTS - 1 : -1].astype(features.dtype)


def doubts(scores: np.ndarray, classes: np.ndarray) -> list[Doubt]:
    """Return the labels that are likely wrong according to the scores of `out_of_fold`, the likeliest first.

    These are labels for which another class is preferred at ODDS. They are ranked by their own score (self-confidence).

    Source: Northcutt et al. 2021, "Confident Learning" (arXiv:1911.00068), section 3.2, for the ranking.
    """
    everyone = np.arange(len(classes))
    own = scores[everyone, classes]
    others = scores.copy()
    others[everyone, classes] = -1.0
    suggested = others.argmax(axis=1)
    largest = others[everyone, suggested]
    named = np.flatnonzero(largest > ODDS * own)
    return [
        Doubt(int(index), int(suggested[index]), float(own[index]), float(largest[index]))
        for index in named[np.argsort(own[named], kind="stable")]
    ]
