"""A depthwise-separable network with ten layers, 26 kB as int8. It has the fewest MACs of the ladder."""

from edgecnn.networks.blocks import classifier, depthwise, stem
from edgecnn.networks.keras import keras


def separable_25kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build a stem, then pairs of a 3x3 depthwise and a 1x1 convolution, ending in logits. Howard et al. 2017, arXiv:1704.04861."""
    inputs = keras.Input((height, width, channels))
    x = stem(inputs, 16)
    for filters, strides in ((28, 2), (40, 1), (48, 2), (56, 1)):
        x = depthwise(x, filters, strides)
    return classifier(inputs, x, num_classes, "separable_25kb")
