"""The network of the article: Conv32-MaxPool-Conv64-MaxPool-Conv64-Flatten-Dense64-Dense, 122,570 parameters for CIFAR-10."""

from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras

SMALLEST_VALID = 18
"""Rows or columns below which the unpadded convolutions leave nothing."""

SMALLEST = 4
"""Rows or columns below which two poolings leave nothing."""


def article(
    height: int,
    width: int,
    channels: int,
    num_classes: int,
    *,
    activation: str = "relu",
    pooling: str = "max",
    padding: str = "auto",
) -> "keras.Model":
    """Build the article's network, ending in logits.

    Args:
        height, width, channels: the input's shape; any size from 4 x 4.
        num_classes: units of the last layer.
        activation: "relu" or "sigmoid", after every layer but the last.
        pooling: "max" or "average", 2 x 2 twice.
        padding: of the 3 x 3 convolutions: "valid" as in the article, "same", or "auto": valid where the input
            has at least 18 rows and columns, else same.

    Returns:
        A tf_keras functional model, float32 (batch, height, width, channels) to (batch, num_classes).

    Raises:
        NetworkError: if the input is too small.
    """
    smaller = min(height, width)
    if padding == "auto":
        padding = "valid" if smaller >= SMALLEST_VALID else "same"
    least = SMALLEST_VALID if padding == "valid" else SMALLEST
    if smaller < least:
        raise NetworkError(
            f"article with padding={padding} needs an input of at least {least}x{least}, received {height}x{width}. "
            "Choose a larger network.height and network.width."
        )
    layers = keras.layers
    pool = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}[pooling]
    inputs = keras.Input((height, width, channels))
    x = layers.Conv2D(32, 3, padding=padding, activation=activation)(inputs)
    x = pool(2)(x)
    x = layers.Conv2D(64, 3, padding=padding, activation=activation)(x)
    x = pool(2)(x)
    x = layers.Conv2D(64, 3, padding=padding, activation=activation)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(64, activation=activation)(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x), name="article")


OPTIONS = {"activation": ("relu", "sigmoid"), "pooling": ("max", "average"), "padding": ("auto", "valid", "same")}
