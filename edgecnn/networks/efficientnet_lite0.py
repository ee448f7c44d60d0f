"""EfficientNet-Lite0, whole or cut after one of its blocks: the backbone that starts from ImageNet, for few photos.

ReLU6 and no squeeze-and-excite: it was designed for int8.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edgecnn.networks.blocks import classifier
from edgecnn.networks.keras import keras

STEM_FILTERS = 32
HEAD_FILTERS = 1280


@dataclass(frozen=True, kw_only=True)
class Block:
    """An inverted residual block: its filters, kernel, stride and how many times wider it is within."""

    filters: int
    kernel: int
    strides: int
    expansion: int


def _stage(repeats: int, filters: int, kernel: int, strides: int, expansion: int) -> list[Block]:
    return [
        Block(filters=filters, kernel=kernel, strides=1 if index else strides, expansion=expansion)
        for index in range(repeats)
    ]


BLOCKS = (
    *_stage(1, 16, 3, 1, 1),
    *_stage(2, 24, 3, 2, 6),
    *_stage(2, 40, 5, 2, 6),
    *_stage(3, 80, 3, 2, 6),
    *_stage(3, 112, 5, 1, 6),
    *_stage(4, 192, 5, 2, 6),
    *_stage(1, 320, 3, 1, 6),
)
"""Tan and Le 2019, table 1 (arXiv:1905.11946), without squeeze-and-excite. Width and depth of Lite0 are those of B0."""


def _normalised(x, convolution: "keras.layers.Layer", name: str, *, relu: bool = True):
    layers = keras.layers
    x = layers.BatchNormalization(name=f"{name}_norm")(convolution(x))
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _convolve(x, filters: int, name: str, *, kernel: int = 1, strides: int = 1, relu: bool = True):
    convolution = keras.layers.Conv2D(
        filters, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    return _normalised(x, convolution, name, relu=relu)


def _block(x, block: Block, name: str):
    """Widen by a 1x1 convolution, filter each channel, narrow by another, and add the input where the shapes agree.

    Source: Sandler et al. 2018, "MobileNetV2" (arXiv:1801.04381).
    """
    inputs = x
    if block.expansion > 1:
        x = _convolve(x, x.shape[-1] * block.expansion, f"{name}_expand")
    depthwise = keras.layers.DepthwiseConv2D(
        block.kernel, block.strides, "same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_depthwise"
    )
    x = _normalised(x, depthwise, f"{name}_depthwise")
    x = _convolve(x, block.filters, f"{name}_project", relu=False)
    if block.strides == 1 and inputs.shape[-1] == block.filters:
        x = keras.layers.Add(name=f"{name}_add")([inputs, x])
    return x


def _efficientnet_lite0(name: str, blocks: int) -> Callable[[int, int, int, int], "keras.Model"]:
    def build(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
        inputs = keras.Input((height, width, channels))
        x = _convolve(inputs, STEM_FILTERS, "stem", kernel=3, strides=2)
        for index, block in enumerate(BLOCKS[:blocks]):
            x = _block(x, block, f"block{index}")
        if blocks == len(BLOCKS):
            x = _convolve(x, HEAD_FILTERS, "head")
        return classifier(inputs, x, num_classes, name)

    build.__name__ = name
    build.__doc__ = f"""Build EfficientNet-Lite0's first {blocks} of {len(BLOCKS)} blocks, ending in logits.

    Args:
        height, width, channels: the input's shape; any size, best multiples of 32.
        num_classes: units of the last layer.

    Returns:
        A tf_keras functional model, float32 (batch, height, width, channels) to (batch, num_classes), with random weights:
        `pretrained.load_weights` has those of ImageNet.

    Source: Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog.
    """
    return build


efficientnet_lite0_150kb = _efficientnet_lite0("efficientnet_lite0_150kb", 6)
efficientnet_lite0_270kb = _efficientnet_lite0("efficientnet_lite0_270kb", 7)
efficientnet_lite0_1200kb = _efficientnet_lite0("efficientnet_lite0_1200kb", 12)
efficientnet_lite0_4000kb = _efficientnet_lite0("efficientnet_lite0_4000kb", 16)
OPTIONS: dict[str, tuple[str, ...]] = {}
