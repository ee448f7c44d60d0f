"""A residual network of six layers, 28 kB as int8: 16,950 parameters and 2.2 million MACs at 32 x 32 x 3 for ten classes."""

from edgecnn.networks.blocks import residual_network
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
    return residual_network(
        (height, width, channels),
        num_classes,
        "resnet_25kb",
        stem_filters=12,
        blocks=((16, 2), (28, 2)),
    )


OPTIONS: dict[str, tuple[str, ...]] = {}
