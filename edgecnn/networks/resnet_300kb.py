"""A residual network of twelve layers, 300 kB as int8: 20.8 million MACs at 32 x 32 x 3."""

from edgecnn.networks.blocks import residual_network
from edgecnn.networks.keras import keras


def resnet_300kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build the ladder's residual network of about 300 kB, ending in logits.

    A stem of 32 filters, then residual blocks of 32, 32, 64, 64 and 80; the first, third and last halve the map.

    Args:
        height, width, channels: the input's shape; any size. The stem halves large ones: see `blocks.halvings`.
        num_classes: units of the last layer.

    Returns:
        A tf_keras functional model, float32 (batch, height, width, channels) to (batch, num_classes).
    """
    return residual_network(
        (height, width, channels),
        num_classes,
        "resnet_300kb",
        stem_filters=32,
        blocks=((32, 2), (32, 1), (64, 2), (64, 1), (80, 2)),
    )


OPTIONS: dict[str, tuple[str, ...]] = {}
