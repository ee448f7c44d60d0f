"""A residual network of ten layers, 97 kB as int8: 20.4 million MACs at 32 x 32 x 3."""

from edgecnn.networks.blocks import classifier, convolution, residual, stem
from edgecnn.networks.keras import keras


def resnet_100kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build the ladder's residual network of about 100 kB, ending in logits.

    A stem of 16 filters, then residual blocks of 16, 32 and 46. Before the second and the third, a convolution brings the map to their
    filters before max pooling halves it: a convolution that strides would cost a quarter of the MACs, and sees less.

    Args:
        height, width, channels: the input's shape; any size. The stem halves large ones: see `blocks.halvings`.
        num_classes: units of the last layer.

    Returns:
        A tf_keras functional model, float32 (batch, height, width, channels) to (batch, num_classes).
    """
    inputs = keras.Input((height, width, channels))
    x = residual(stem(inputs, 16), 16)
    for filters in (32, 46):
        x = keras.layers.MaxPooling2D()(convolution(x, filters))
        x = residual(x, filters)
    return classifier(inputs, x, num_classes, "resnet_100kb")


OPTIONS: dict[str, tuple[str, ...]] = {}
