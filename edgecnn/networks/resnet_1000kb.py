"""A residual network of ten wide layers, 1,000 kB as int8: 55 million MACs at 32 x 32 x 3."""

from edgecnn.networks.blocks import residual_network
from edgecnn.networks.keras import keras


def resnet_1000kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build the ladder's residual network of about 1,000 kB, ending in logits.

    A stem of 32 filters, then residual blocks of 64, 128, 128 and 144; all but the third halve the map. Most of its work is done at 16 x 16
    and 8 x 8 by wide layers, which processors multiply best.

    Args:
        height, width, channels: the input's shape; any size. The stem halves large ones: see `blocks.halvings`.
        num_classes: units of the last layer.

    Returns:
        A tf_keras functional model, float32 (batch, height, width, channels) to (batch, num_classes).
    """
    return residual_network(
        (height, width, channels),
        num_classes,
        "resnet_1000kb",
        stem_filters=32,
        blocks=((64, 2), (128, 2), (128, 1), (144, 2)),
    )


OPTIONS: dict[str, tuple[str, ...]] = {}
