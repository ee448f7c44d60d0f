"""The last layer of a frozen network: logistic regression on features, fitted on all folds but one, and as an int8 file computes it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from edgecnn.train.ranges import narrow, on_grid
from edgecnn.train.regression import regression
from edgecnn.train.rounding import CODES, round_matrix
from edgecnn.versions import processors

STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularization strengths (scikit-learn's C). The one with the highest held-out likelihood is used."""

MOST_ITERATIONS = 200

MOVED_DAMPING = 0.1  # how strongly moved weights stay near the others, as a share of the features' mean sum of squares

ABSENT = 20.0  # how far below all others the logit of a class stays that has no image in training


class Layer(NamedTuple):
    """A dense layer: weights (features, classes) and bias (classes,), float64."""

    weights: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        values: np.ndarray = (features @ self.weights + self.bias).astype(np.float32)
        return values


class Images(NamedTuple):
    """Features (n, length), classes (n,) and weights (n,) of images; `num_classes` classes exist, of which some may have no image."""

    features: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    num_classes: int

    def some(self, chosen: np.ndarray) -> "Images":
        return Images(self.features[chosen], self.classes[chosen], self.weights[chosen], self.num_classes)


def fit(images: Images, strength: float) -> Layer:
    """Fit the layer. All features share one scale: otherwise one that hardly varies would get a weight too large for int8."""
    features, classes, shares, count = images
    mean = features.mean(axis=0)
    centred = (features - mean).astype(np.float64)
    scale = max(float(centred.std()), 1e-12)
    present = np.unique(classes)
    weights, bias = np.zeros((features.shape[1], count)), np.zeros(count)
    if len(present) > 1:
        fitted = regression(strength, MOST_ITERATIONS).fit(centred / scale, classes, shares)
        own, offsets = fitted.coef_.T / scale, fitted.intercept_
        if len(present) == 2:  # scikit-learn gives the log-odds of the second class
            own, offsets = np.concatenate([-own, own], axis=1) / 2, np.array([-offsets[0], offsets[0]]) / 2
        weights[:, present], bias[present] = own, offsets - mean @ own
    absent = np.setdiff1d(np.arange(count), present)
    bias[absent] = (features @ weights + bias).min() - ABSENT
    return Layer(weights, bias)


def moved(layer: Layer, before: np.ndarray, after: np.ndarray) -> Layer:
    """Return the layer nearest to `layer` whose logits for some features differ least from its own for these photos' features `before`.

    Features are (n, length). Another logistic regression on the same photos would agree with this layer on fewer others.
    """
    mean = after.mean(axis=0, dtype=np.float64)
    centred = after - mean
    logits = before @ layer.weights
    products = centred.T @ centred
    damping = MOVED_DAMPING * max(float(np.mean(np.diag(products))), 1e-12)
    missing = centred.T @ (logits - logits.mean(axis=0)) - products @ layer.weights
    weights = layer.weights + np.linalg.solve(products + damping * np.eye(len(mean)), missing)
    return Layer(weights, layer.bias + logits.mean(axis=0) - mean @ weights)


def parts(folds: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training indices, held-out indices) for each fold of `folds`, int (n,)."""
    for fold in np.unique(folds):
        yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)


def held_out(images: Images, folds: np.ndarray) -> tuple[np.ndarray, float]:
    """Return each image's logits by the layer fitted without its fold, float32 (n, num_classes), and the likeliest strength."""
    return held_out_layers(images, folds)[:2]


def held_out_layers(images: Images, folds: np.ndarray) -> tuple[np.ndarray, float, list[Layer]]:
    """Do as `held_out`, and also return the layers, in the order of `parts`."""
    from threadpoolctl import threadpool_limits

    best: tuple[np.ndarray, float, list[Layer]] = (np.empty(0), 0.0, [])
    least = np.inf
    with (
        threadpool_limits(1),
        ThreadPoolExecutor(processors()) as pool,
    ):  # small matrices: BLAS's own threads would wait for each other
        for strength in STRENGTHS:
            layers = list(pool.map(lambda part, strength=strength: fit(images.some(part[0]), strength), parts(folds)))
            logits = np.empty((len(folds), images.num_classes), np.float32)
            for (_, held), layer in zip(parts(folds), layers, strict=True):
                logits[held] = layer.logits(images.features[held])
            loss = float(np.mean(images.weights * log_losses(logits, images.classes)))
            if loss >= least:  # it falls and then rises, and the weakest regularization takes longest
                break
            best, least = (logits, strength, layers), loss
    return best


def log_losses(logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return -log softmax(logits) of the true classes, in nats, float64 (n,)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    values: np.ndarray = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(classes)), classes]
    return values


class Int8Layer(NamedTuple):
    """A layer whose weights lie on the codes of one `step`, and the range of its logits' codes."""

    layer: Layer
    step: float
    ends: tuple[float, float]

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Return the logits of an int8 file for features that are the values of codes: float32 (n, classes)."""
        values: np.ndarray = on_grid(self.layer.logits(features), *self.ends).astype(np.float32)
        return values


def quantize(layer: Layer, features: np.ndarray) -> Int8Layer:
    """Round a layer's weights so that its products with the features are preserved, as `edgecnn.train.rounding` rounds any kernel."""
    step = max(float(np.abs(layer.weights).max()) / CODES, 1e-12)
    values = features.astype(np.float64)
    codes = round_matrix(layer.weights, np.array(step), values.T @ values)
    return Int8Layer(Layer(codes * step, layer.bias), step, narrow(layer.logits(features)))
