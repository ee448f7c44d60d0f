"""Logistic regression on a network's features, with its regularisation strength."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # candidates for the inverse regularisation strength (scikit-learn's C)

FOLDS = 5
SAMPLE = 2_000
"""Cross-validation of the strength: at most FOLDS stratified folds, fewer if the smallest class is smaller, on at most SAMPLE images."""


def regression(strength: float, iterations: int = 500) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=iterations)


def choose_strength(features: np.ndarray, classes: np.ndarray, seed: int) -> float:
    """Return the value of STRENGTHS with the best log-likelihood in stratified cross-validation.

    `features` are float (n, length) of magnitude about 1, `classes` int (n,).
    """
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit

    strength = STRENGTHS[1]
    folds = min(FOLDS, int(np.bincount(classes).min()))
    if folds < 2:
        return strength
    chosen = np.arange(len(classes))
    if len(classes) > SAMPLE:
        draw = StratifiedShuffleSplit(1, train_size=SAMPLE, random_state=seed)
        chosen = next(draw.split(features, classes))[0]
        folds = max(2, min(folds, int(np.bincount(classes[chosen]).min())))
    search = GridSearchCV(
        regression(strength), {"C": STRENGTHS}, cv=StratifiedKFold(folds, shuffle=True, random_state=seed), refit=False,
        scoring="neg_log_loss",
    )  # fmt: skip
    return float(search.fit(features[chosen], classes[chosen]).best_params_["C"])
