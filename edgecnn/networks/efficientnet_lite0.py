"""EfficientNet-Lite0, whole or cut after one of its blocks: the backbone that starts from ImageNet, for few photos.

ReLU6 and no squeeze-and-excite: it was designed for int8.

Source: Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog.
"""

from edgecnn.networks.blocks import Build, classifier
from edgecnn.networks.keras import keras

STAGES = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)
"""Tan and Le 2019, table 1 (arXiv:1905.11946), without squeeze-and-excite: blocks, filters, kernel, stride of the first block, and how many
times wider a block is within. Width and depth of Lite0 are those of B0."""

BLOCKS = [
    (filters, kernel, 1 if index else strides, expansion)
    for repeats, filters, kernel, strides, expansion in STAGES
    for index in range(repeats)
]


def _normalised(x, convolution: "keras.layers.Layer", name: str, *, relu: bool = True):
    x = keras.layers.BatchNormalization(name=f"{name}_norm")(convolution(x))
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _convolve(x, filters: int, name: str, *, kernel: int = 1, strides: int = 1, relu: bool = True):
    convolution = keras.layers.Conv2D(
        filters, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    return _normalised(x, convolution, name, relu=relu)


def _block(inputs, filters: int, kernel: int, strides: int, expansion: int, name: str):
    """Widen, filter each channel, narrow, and add the input where the shapes agree. Source: Sandler et al. 2018 (arXiv:1801.04381)."""
    x = _convolve(inputs, inputs.shape[-1] * expansion, f"{name}_expand") if expansion > 1 else inputs
    depthwise = keras.layers.DepthwiseConv2D(
        kernel, strides, "same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_depthwise"
    )
    x = _convolve(_normalised(x, depthwise, f"{name}_depthwise"), filters, f"{name}_project", relu=False)
    same = strides == 1 and inputs.shape[-1] == filters
    return keras.layers.Add(name=f"{name}_add")([inputs, x]) if same else x


def _efficientnet_lite0(name: str, blocks: int) -> Build:
    """Return what builds the first blocks, ending in logits, with random weights; best for sides that are multiples of 32."""

    def build(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
        inputs = keras.Input((height, width, channels))
        x = _convolve(inputs, 32, "stem", kernel=3, strides=2)
        for index, block in enumerate(BLOCKS[:blocks]):
            x = _block(x, *block, name=f"block{index}")
        if blocks == len(BLOCKS):
            x = _convolve(x, 1280, "head")
        return classifier(inputs, x, num_classes, name)

    return build


efficientnet_lite0_150kb = _efficientnet_lite0("efficientnet_lite0_150kb", 6)
efficientnet_lite0_270kb = _efficientnet_lite0("efficientnet_lite0_270kb", 7)
efficientnet_lite0_1200kb = _efficientnet_lite0("efficientnet_lite0_1200kb", 12)
efficientnet_lite0_4000kb = _efficientnet_lite0("efficientnet_lite0_4000kb", 16)
