"""MLPerf Tiny's image-classification network, a ResNet with eight layers: 78,666 parameters for CIFAR-10.

Source: Banbury et al. 2021, "MLPerf Tiny Benchmark" (arXiv:2106.07597), image classification.
"""

from edgecnn.networks.blocks import classifier
from edgecnn.networks.keras import keras


def resnet8(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build ResNet-8, ending in logits. The pooling covers the whole map, which for 32 x 32 inputs is the original's 8 x 8."""
    layers = keras.layers

    def convolution(x, filters: int, kernel: int, strides: int):
        return layers.Conv2D(filters, kernel, strides, "same", kernel_initializer="he_normal")(x)

    inputs = keras.Input((height, width, channels))
    x = layers.ReLU()(layers.BatchNormalization()(convolution(inputs, 16, 3, 1)))
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        branch = layers.ReLU()(layers.BatchNormalization()(convolution(x, filters, 3, strides)))
        branch = layers.BatchNormalization()(convolution(branch, filters, 3, 1))
        if strides > 1:
            x = convolution(x, filters, 1, strides)
        x = layers.ReLU()(layers.Add()([x, branch]))
    return classifier(inputs, x, num_classes, "resnet8")
