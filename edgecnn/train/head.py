"""Starting from trained weights: the body is kept, and a new head is fitted to its features before everything is trained."""

from collections.abc import Callable

import numpy as np

from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import predictor
from edgecnn.recipe import Recipe

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the regularisation that are tried (scikit-learn's C)."""

FOLDS = 5
SAMPLE = 2_000
"""Images that choose among them, at most, in so many stratified folds, or as many as the smallest class allows."""

BATCH = 100


def take_body(model: "keras.Model", trained: "keras.Model") -> None:
    """Copy a trained network's weights into another of the same layers, all but the last layer's: the head keeps its own.

    Args:
        model: the network that takes them; its classes may be others, and its input's size.
        trained: the network that gives them.

    Raises:
        NetworkError: if the bodies differ; the message names the first layer that does.
    """
    mine = [layer for layer in model.layers if layer.weights]
    theirs = [layer for layer in trained.layers if layer.weights]
    for layer, other in zip(mine[:-1], theirs[:-1], strict=False):
        shapes = [[tuple(weight.shape) for weight in item.weights] for item in (layer, other)]
        if type(layer).__name__ != type(other).__name__ or shapes[0] != shapes[1]:
            raise NetworkError(
                f"cannot start from that network: its layer {other.name} has weights {shapes[1]}, but {layer.name} here has {shapes[0]}. "
                "Use its network, options, channels and input size, which apply if you give none."
            )
    if len(mine) != len(theirs):
        raise NetworkError(
            f"cannot start from that network: it has {len(theirs)} layers with weights, but this one has {len(mine)}. "
            "Use its network and input size, which apply if you give none."
        )
    for layer, other in zip(mine[:-1], theirs[:-1], strict=True):
        layer.set_weights(other.get_weights())


def fit_head(
    model: "keras.Model",
    recipe: Recipe,
    images: np.ndarray,
    classes: np.ndarray,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Fit a network's last dense layer to the features that the layers before it give, by logistic regression.

    Each image's features are computed once. How strongly the regression is regularised is chosen by stratified cross-validation. A network
    that does not end in a dense layer keeps its head.

    Args:
        model: the network; its last layer's weights change.
        recipe: how it reads pixels, and the seed of the folds.
        images: training images, uint8 (n, height, width, channels).
        classes: their classes, int (n,); each class has one or more.
        progress: called as progress(what, done, total).
    """
    head = model.layers[-1]
    if type(head) is not keras.layers.Dense:
        return
    features = compute_features(keras.Model(model.inputs, head.input), recipe, images, progress)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 1e-6 * max(float(spread.max()), 1e-12), spread, np.inf)
    weights, bias = logistic_regression((features - mean) / spread, classes, recipe.seed)
    kernel = weights / spread[:, np.newaxis]
    head.set_weights([kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)][: len(head.get_weights())])


def compute_features(
    body: "keras.Model",
    recipe: Recipe,
    images: np.ndarray,
    progress: Callable[[str, int, int], None] | None = None,
) -> np.ndarray:
    """Return a body's features of uint8 images (n, height, width, channels), float32 (n, features), with progress."""
    predict = predictor(body, recipe.input_scale, recipe.input_zero_point, BATCH)
    parts = []
    for start in range(0, len(images), BATCH):
        parts.append(predict(images[start : start + BATCH]))
        if progress:
            progress("computing features", min(start + BATCH, len(images)), len(images))
    return np.concatenate(parts)


def logistic_regression(features: np.ndarray, classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit a multinomial logistic regression.

    Args:
        features: standardised, shape (n, features).
        classes: int (n,), every class at least once.
        seed: of the folds.

    Returns:
        Weights (features, classes) and bias (classes,).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, StratifiedShuffleSplit

    def regression(strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=500)

    strength = STRENGTHS[1]
    folds = min(FOLDS, int(np.bincount(classes).min()))
    if folds > 1:
        chosen = np.arange(len(classes))
        if len(classes) > SAMPLE:
            draw = StratifiedShuffleSplit(1, train_size=SAMPLE, random_state=seed)
            chosen = next(draw.split(features, classes))[0]
            folds = max(2, min(folds, int(np.bincount(classes[chosen]).min())))
        search = GridSearchCV(
            regression(strength), {"C": STRENGTHS}, cv=StratifiedKFold(folds, shuffle=True, random_state=seed), refit=False,
            scoring="neg_log_loss",
        )  # fmt: skip
        strength = search.fit(features[chosen], classes[chosen]).best_params_["C"]
    fitted = regression(strength).fit(features, classes)
    weights, bias = fitted.coef_.T, fitted.intercept_
    if weights.shape[1] == 1:  # of two classes scikit-learn gives the second's log-odds
        weights, bias = np.concatenate([-weights, weights], axis=1) / 2, np.array([-bias[0], bias[0]]) / 2
    return weights, bias
