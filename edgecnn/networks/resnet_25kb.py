"""A residual network of six layers, 25 kB as int8: 16,950 parameters and 2.2 million MACs at 32 x 32 x 3 for ten classes."""

from edgecnn.networks.blocks import classifier, residual, stem
from edgecnn.networks.keras import keras


def resnet_25kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build the smallest residual network of the ladder, ending in logits.

    A stem of 12 filters, then two residual blocks of 16 and 28, each halving the map.

    Args:
        height, width, channels: the input's shape; any size. The stem halves large ones: see `blocks.halvings`.
        num_classes: units of the last layer.

    Returns:
        A tf_keras functional model, float32 (batch, height, width, channels) to (batch, num_classes).
    """
    inputs = keras.Input((height, width, channels))
    x = stem(inputs, 12)
    for filters in (16, 28):
        x = residual(x, filters, 2)
    return classifier(inputs, x, num_classes, "resnet_25kb")


OPTIONS: dict[str, tuple[str, ...]] = {}
