"""Convolutions, residual blocks and a stem for any input size. BatchNorm directly follows its convolution, so it can be folded."""

import math
from collections.abc import Callable

from edgecnn.networks.keras import keras

Build = Callable[[int, int, int, int], "keras.Model"]
"""Maps the input's height, width and channels, and the number of classes, to a model that ends in logits."""

STEM_SIDE = 32  # approximate rows or columns after the stem; the networks' costs are stated for this size


def halvings(height: int, width: int) -> int:
    """Return how often a stem halves an input to bring the shorter side near 32: 0 below 46, 1 up to 90, 2 up to 181, 3 up to 362."""
    return max(0, round(math.log2(min(height, width) / STEM_SIDE)))


def convolution(x, filters: int, kernel: int = 3, strides: int = 1, *, relu: bool = True):
    """Apply a padded convolution without bias, BatchNorm and, unless `relu` is false, a ReLU."""
    layers = keras.layers
    x = layers.Conv2D(filters, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x


def residual(x, filters: int, strides: int = 1):
    """Add two 3x3 convolutions to their input, projected if the shapes differ. Source: He et al. 2015 (arXiv:1512.03385)."""
    layers = keras.layers
    branch = convolution(convolution(x, filters, strides=strides), filters, relu=False)
    if strides > 1 or x.shape[-1] != filters:
        x = convolution(x, filters, 1, strides, relu=False)
    return layers.ReLU()(layers.Add()([x, branch]))


def stem(x, filters: int):
    """Apply 3x3 convolutions, one per halving that `halvings` calls for; all but the last have half the filters."""
    times = halvings(x.shape[1], x.shape[2])
    for _ in range(times - 1):
        x = convolution(x, filters // 2, strides=2)
    return convolution(x, filters, strides=2 if times else 1)


def residual_network(name: str, stem_filters: int, *blocks: tuple[int, int]) -> Build:
    """Return a function that builds a stem and residual blocks, each (filters, strides), for an input of any size."""

    def build(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
        inputs = keras.Input((height, width, channels))
        x = stem(inputs, stem_filters)
        for filters, strides in blocks:
            x = residual(x, filters, strides)
        return classifier(inputs, x, num_classes, name)

    return build


def classifier(inputs, x, num_classes: int, name: str) -> "keras.Model":
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(num_classes, kernel_initializer="he_normal")(x)
    return keras.Model(inputs, logits, name=name)
