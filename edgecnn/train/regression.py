"""Logistic regression on a network's features, and how strongly it is regularised."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths of the regularisation that are tried (scikit-learn's C)

FOLDS = 5
SAMPLE = 2_000
"""Images that choose among them, at most, in so many stratified folds, or as many as the smallest class allows."""


def regression(strength: float, iterations: int = 500) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=iterations)


def choose_strength(features: np.ndarray, classes: np.ndarray, seed: int) -> float:
    """Return the one of STRENGTHS with the best log-likelihood in stratified cross-validation; arguments as of `logistic_regression`."""
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


def logistic_regression(features: np.ndarray, classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a multinomial logistic regression to features (n, features), about 1, and classes (n,); return weights and bias."""
    fitted = regression(choose_strength(features, classes, seed)).fit(features, classes)
    weights, bias = fitted.coef_.T, fitted.intercept_
    if weights.shape[1] == 1:  # of two classes scikit-learn gives the second's log-odds
        weights, bias = np.concatenate([-weights, weights], axis=1) / 2, np.array([-bias[0], bias[0]]) / 2
    return weights, bias
