"""A residual network with ten layers, 97 kB as int8: 20.4 million MACs at 32 x 32 x 3."""

from edgecnn.networks.blocks import classifier, convolution, residual, stem
from edgecnn.networks.keras import keras


def resnet_100kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build a stem with 16 filters, then residual blocks with 16, 32 and 46, ending in logits. Max pooling sees more than strides."""
    inputs = keras.Input((height, width, channels))
    x = residual(stem(inputs, 16), 16)
    for filters in (32, 46):
        x = keras.layers.MaxPooling2D()(convolution(x, filters))
        x = residual(x, filters)
    return classifier(inputs, x, num_classes, "resnet_100kb")
