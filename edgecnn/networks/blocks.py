"""Convolutions, residual blocks and a stem that suits the input's size. BatchNorm follows its convolution, so that it can be folded."""

import math
from collections.abc import Callable

from edgecnn.networks.keras import keras

Build = Callable[[int, int, int, int], "keras.Model"]
"""From the input's height, width and channels, and the number of classes, to a model that ends in logits."""

STEM_SIDE = 32  # rows or columns to which the stem reduces an input, about: the networks' costs are given for it


def halvings(height: int, width: int) -> int:
    """Return how often a stem halves an input, until the shorter side is near 32: 0 below 46, 1 to 90, 2 to 181, 3 to 362."""
    return max(0, round(math.log2(min(height, width) / STEM_SIDE)))


def convolution(x, filters: int, kernel: int = 3, strides: int = 1, *, relu: bool = True):
    """Convolve without a bias, padded, and normalise; then a ReLU unless `relu` is false."""
    layers = keras.layers
    x = layers.Conv2D(filters, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x


def depthwise(x, filters: int, strides: int = 1):
    """Convolve 3x3 channel by channel, then 1x1 across channels, each normalised and with a ReLU."""
    layers = keras.layers
    x = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, depthwise_initializer="he_normal")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return convolution(x, filters, 1)


def residual(x, filters: int, strides: int = 1):
    """Add two 3x3 convolutions to their input, projected where the shapes differ. Source: He et al. 2015 (arXiv:1512.03385)."""
    layers = keras.layers
    branch = convolution(convolution(x, filters, strides=strides), filters, relu=False)
    if strides > 1 or x.shape[-1] != filters:
        x = convolution(x, filters, 1, strides, relu=False)
    return layers.ReLU()(layers.Add()([x, branch]))


def stem(x, filters: int):
    """Convolve 3x3, halving the map as often as `halvings` says: one convolution for each time, all but the last with half the filters."""
    times = halvings(x.shape[1], x.shape[2])
    for _ in range(times - 1):
        x = convolution(x, filters // 2, strides=2)
    return convolution(x, filters, strides=2 if times else 1)


def residual_network(name: str, stem_filters: int, *blocks: tuple[int, int]) -> Build:
    """Return what builds a stem and residual blocks, each of (filters, strides), for an input of any size."""

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
