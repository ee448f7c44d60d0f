"""The network of the article: Conv32-MaxPool-Conv64-MaxPool-Conv64-Flatten-Dense64-Dense, 122,570 parameters for CIFAR-10."""

from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras

SMALLEST = {"valid": 18, "same": 4}
"""Smallest rows and columns: below them nothing is left after the unpadded convolutions, or after the two poolings."""


def article(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build the article's network, ending in logits. Raises NetworkError if the input is too small.

    The convolutions are unpadded, as in the article, if the input has at least 18 rows and columns.
    """
    smaller = min(height, width)
    padding = "valid" if smaller >= SMALLEST["valid"] else "same"
    if smaller < (least := SMALLEST[padding]):
        raise NetworkError(
            f"article needs an input of at least {least}x{least}, received {height}x{width}. "
            "Choose a larger network.height and network.width."
        )
    layers = keras.layers
    inputs = x = keras.Input((height, width, channels))
    for filters in (32, 64):
        x = layers.MaxPooling2D(2)(layers.Conv2D(filters, 3, padding=padding, activation="relu")(x))
    x = layers.Flatten()(layers.Conv2D(64, 3, padding=padding, activation="relu")(x))
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x), name="article")
