"""Starting from trained weights: keep the body and fit a new head to its features, before all layers are trained."""

import numpy as np

from edgecnn.data import Progress
from edgecnn.data.decoding import balanced
from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import predictor
from edgecnn.recipe import Recipe
from edgecnn.train.candidates import folds_of
from edgecnn.train.last_layer import STRENGTHS, Images, fit, held_out

BATCH = 100

SAMPLE = 2_000  # images, at most, that choose the regularization; balanced by class


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

    The regularization is that with the highest likelihood on held-out images, as in `edgecnn.train.last_layer`.
    """
    head = model.layers[-1]
    if type(head) is not keras.layers.Dense:
        return
    features = compute_features(keras.Model(model.inputs, head.input), recipe, images, progress)
    shares = np.ones(len(classes)) if weights is None else weights
    everything = Images(features, classes, shares, head.units)
    drawn, strength = everything.some(np.sort(balanced(classes, SAMPLE, recipe.seed))), STRENGTHS[1]
    if np.bincount(classes).max() > 1:  # otherwise no class can be divided
        _, strength = held_out(drawn, folds_of(drawn.classes, list(map(str, range(len(drawn.classes)))), recipe.seed))
    layer = fit(everything, strength)
    head.set_weights([layer.weights.astype(np.float32), layer.bias.astype(np.float32)][: len(head.get_weights())])


def compute_features(body: "keras.Model", recipe: Recipe, images: np.ndarray, progress: Progress | None) -> np.ndarray:
    predict = predictor(body, recipe.input_scale, recipe.input_zero_point, BATCH)
    parts = []
    for start in range(0, len(images), BATCH):
        parts.append(predict(images[start : start + BATCH]))
        if progress:
            progress("computing features", min(start + BATCH, len(images)), len(images))
    return np.concatenate(parts)
