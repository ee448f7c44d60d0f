"""Starting from trained weights: keep the body and fit a new head to its features, before all layers are trained."""

import numpy as np

from edgecnn.data import Progress
from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import predictor
from edgecnn.recipe import Recipe
from edgecnn.train.regression import logistic_regression

BATCH = 100


def take_body(model: "keras.Model", trained: "keras.Model") -> None:
    """Copy a trained network's weights, except the last layer's. Raises NetworkError, which names the first layer that differs."""
    mine, theirs = ([layer for layer in network.layers if layer.weights] for network in (model, trained))
    for layer, other in zip(mine[:-1], theirs[:-1], strict=False):
        shapes = [[tuple(weight.shape) for weight in item.weights] for item in (layer, other)]
        if type(layer).__name__ != type(other).__name__ or shapes[0] != shapes[1]:
            raise NetworkError(
                f"cannot start from that network: its layer {other.name} has weights {shapes[1]}, but {layer.name} here has {shapes[0]}. "
                "Use that network's name, options, channels and input size; they are the defaults if you set none."
            )
    if len(mine) != len(theirs):
        raise NetworkError(
            f"cannot start from that network: it has {len(theirs)} layers with weights, but this one has {len(mine)}. "
            "Use that network's name and input size; they are the defaults if you set none."
        )
    for layer, other in zip(mine[:-1], theirs[:-1], strict=True):
        layer.set_weights(other.get_weights())


def fit_head(
    model: "keras.Model",
    recipe: Recipe,
    images: np.ndarray,
    classes: np.ndarray,
    weights: np.ndarray | None = None,
    progress: Progress | None = None,
) -> None:
    """Fit the network's last layer, if it is dense, by logistic regression on the features of uint8 images, which must cover all classes.

    `weights` are those of the images, (n,); by default all weigh the same.

    All features share one scale. With a scale per feature, one that hardly varies would get a weight too large for int8.
    """
    head = model.layers[-1]
    if type(head) is not keras.layers.Dense:
        return
    features = compute_features(keras.Model(model.inputs, head.input), recipe, images, progress)
    mean = features.mean(axis=0)
    centred = features - mean
    scale = max(float(centred.std()), 1e-12)
    fitted, bias = logistic_regression(centred / scale, classes, recipe.seed, weights)
    kernel = fitted / scale
    head.set_weights([kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)][: len(head.get_weights())])


def compute_features(body: "keras.Model", recipe: Recipe, images: np.ndarray, progress: Progress | None) -> np.ndarray:
    predict = predictor(body, recipe.input_scale, recipe.input_zero_point, BATCH)
    parts = []
    for start in range(0, len(images), BATCH):
        parts.append(predict(images[start : start + BATCH]))
        if progress:
            progress("computing features", min(start + BATCH, len(images)), len(images))
    return np.concatenate(parts)
