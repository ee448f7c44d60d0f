"""Training only the last layer: logistic regression on a frozen body's features, in float and in int8.

The int8 body is calibrated and rounded once, on all photos without their labels. Only the last layer differs between folds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgecnn.data import Progress
from edgecnn.data.decoding import balanced
from edgecnn.networks.keras import keras
from edgecnn.recipe import Recipe
from edgecnn.train.last_layer import Images, Int8Layer, Layer, fit, held_out_layers, moved, parts, quantize
from edgecnn.train.qat_phase import fake_quantize, set_batch_norm
from edgecnn.train.ranges import measure, set_logits_range
from edgecnn.train.rounding import round_kernels

MEASURED, BATCH = 128, 32  # photos that set the int8 body's ranges, and per batch

ROUNDING_IMAGES, ROWS = 64, 8_192  # photos that guide the rounding, and rows of inputs per kernel


class Trained(NamedTuple):
    """A float and a fake-quantized model, and each photo's answers by layers fitted without its fold.

    `float_logits` and `int8_logits` are float32 (n, num_classes); `features` are those of the int8 body, float32 (n, length).
    """

    model: Any
    student: Any
    float_logits: np.ndarray
    int8_logits: np.ndarray
    features: np.ndarray


def train_head(
    model: "keras.Model",
    recipe: Recipe,
    pixels: np.ndarray,
    images: Images,
    folds: np.ndarray,
    features_of: Callable[["keras.Model"], np.ndarray],
    progress: Progress,
) -> Trained:
    """Fit the last layer of a network with trained weights to uint8 pixels (n, height, width, channels) and their float features.

    `features_of` returns the features of the pixels that a fake-quantized model's int8 file computes, as the values of their codes.
    """
    float_logits, strength, of_folds = held_out_layers(images, folds)
    layer = fit(images, strength)
    model.layers[-1].set_weights([layer.weights.astype(np.float32), layer.bias.astype(np.float32)])
    student = fake_quantize(model, recipe.input_scale, recipe.input_zero_point)
    drawn = pixels[balanced(images.classes, MEASURED, recipe.seed)]
    measure(student, model, recipe, np.array_split(drawn, -(-len(drawn) // BATCH)))
    progress("int8 body", 1, 3)
    round_kernels(
        student,
        pixels,
        recipe.input_scale,
        recipe.input_zero_point,
        recipe.seed,
        images=ROUNDING_IMAGES,
        rows=ROWS,
        shift=True,
    )
    progress("int8 body", 2, 3)
    codes = features_of(student)
    progress("int8 body", 3, 3)
    int8_logits = np.empty_like(float_logits)
    for (kept, held), of_fold in zip(parts(folds), of_folds, strict=True):
        int8_logits[held] = int8_layer(of_fold, images.features[kept], codes[kept]).logits(codes[held])
    set_int8_layer(student, int8_layer(layer, images.features, codes))
    set_batch_norm(student, trainable=True)
    return Trained(model, student, float_logits, int8_logits, codes)


def int8_layer(layer: Layer, features: np.ndarray, codes: np.ndarray) -> Int8Layer:
    """Return the layer that gives a float layer's logits on the values of the int8 body's codes, both (n, length), rounded."""
    return quantize(moved(layer, features, codes), codes)


def set_int8_layer(student: "keras.Model", int8: Int8Layer) -> None:
    """Give a fake-quantized model's last layer these weights, their step and the range of its logits."""
    wrapper = student.layers[-1]
    wrapper.layer.bias.assign(int8.layer.bias.astype(np.float32))
    (kernel, _, ends), *_ = wrapper._weight_vars
    kernel.assign(int8.layer.weights.astype(np.float32))
    reach = np.float32(int8.step * 127)
    ends["min_var"].assign(np.full(ends["min_var"].shape, -reach))
    ends["max_var"].assign(np.full(ends["max_var"].shape, reach))
    set_logits_range(student, *int8.ends)
