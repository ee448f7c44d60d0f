"""EfficientNet-Lite0 and Lite2, whole or cut after one of their blocks: the backbones that start from ImageNet, for few photos.

The family is designed for int8: it uses ReLU6 and no squeeze-and-excite.

Source: Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog.
"""

import functools
import math
from collections.abc import Mapping

from edgecnn.networks.blocks import Build, classifier
from edgecnn.networks.describe import NetworkCost, describe
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
"""Tan and Le 2019, table 1 (arXiv:1905.11946), without squeeze-and-excite: blocks, filters, kernel, stride of the first block, and
expansion factor. Lite0 has the width and depth of B0."""

STEM, HEAD = 32, 1280  # filters of the first and last convolution, the same for every width

SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}
"""Factors for each stage's filters and blocks."""

RUNGS = {
    "efficientnet_lite0_150kb": 6,
    "efficientnet_lite0_270kb": 7,
    "efficientnet_lite0_1200kb": 12,
    "efficientnet_lite0_4000kb": 16,
    "efficientnet_lite2_1800kb": 16,
    "efficientnet_lite2_5600kb": 21,
}
"""The number of blocks after which each network is cut. One with all of its blocks also has the head."""


def family_of(rung: str) -> str:
    """Return the network from which a rung is cut: "efficientnet_lite0" or "efficientnet_lite2"."""
    return rung.rpartition("_")[0]


def is_whole(rung: str) -> bool:
    """Return whether a rung has all of its family's blocks, and the head."""
    return RUNGS[rung] == len(blocks_of(family_of(rung)))


def blocks_of(family: str) -> list[tuple[int, int, int, int]]:
    """Return filters, kernel, stride and expansion of each block. The depth factor does not apply to the first and last stages."""
    width, depth = SCALES[family]
    ends = (0, len(STAGES) - 1)
    return [
        (_multiple_of_8(filters * width), kernel, 1 if index else strides, expansion)
        for stage, (repeats, filters, kernel, strides, expansion) in enumerate(STAGES)
        for index in range(repeats if stage in ends else math.ceil(repeats * depth))
    ]


def _multiple_of_8(filters: float) -> int:
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * filters else nearest + 8


def _normalised(x, convolution: "keras.layers.Layer", name: str, *, relu: bool = True):
    x = keras.layers.BatchNormalization(name=f"{name}_norm")(convolution(x))
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _convolve(x, filters: int, name: str, *, kernel: int = 1, strides: int = 1, relu: bool = True):
    convolution = keras.layers.Conv2D(
        filters, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
    )
    return _normalised(x, convolution, name, relu=relu)


def _block(inputs, filters: int, kernel: int, strides: int, expansion: int, name: str):
    """Widen, filter each channel, narrow, and add the input if the shapes match. Source: Sandler et al. 2018 (arXiv:1801.04381)."""
    x = _convolve(inputs, inputs.shape[-1] * expansion, f"{name}_expand") if expansion > 1 else inputs
    depthwise = keras.layers.DepthwiseConv2D(
        kernel, strides, "same", use_bias=False, depthwise_initializer="he_normal", name=f"{name}_depthwise"
    )
    x = _convolve(_normalised(x, depthwise, f"{name}_depthwise"), filters, f"{name}_project", relu=False)
    same = strides == 1 and inputs.shape[-1] == filters
    return keras.layers.Add(name=f"{name}_add")([inputs, x]) if same else x


def _rung(name: str) -> Build:
    """Return a function that builds a rung with random weights, ending in logits. Input sides that are multiples of 32 work best."""

    def build(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
        inputs, ends = _body(name, height, width, channels)
        return classifier(inputs, ends[-1], num_classes, name)

    return build


def _body(rung: str, height: int, width: int, channels: int):
    """Build a rung without its classifier. Returns its inputs, and the outputs of each block and then of the head, if it has one."""
    inputs = keras.Input((height, width, channels))
    x = _convolve(inputs, STEM, "stem", kernel=3, strides=2)
    ends = []
    for index, block in enumerate(blocks_of(family_of(rung))[: RUNGS[rung]]):
        x = _block(x, *block, name=f"block{index}")
        ends.append(x)
    if is_whole(rung):
        ends.append(_convolve(x, HEAD, "head"))
    return inputs, ends


@functools.lru_cache(maxsize=8)
def all_features(family: str, height: int, width: int, channels: int) -> tuple[tuple[str, ...], "keras.Model"]:
    """Return a family's rungs, and a model from an input to a list of outputs: each rung's features before its dense layer.

    It takes seconds to build, so the last ones are kept.
    """
    rungs = tuple(rung for rung in RUNGS if family_of(rung) == family)
    inputs, ends = _body(max(rungs, key=RUNGS.__getitem__), height, width, channels)
    cut = [ends[-1] if is_whole(rung) else ends[RUNGS[rung] - 1] for rung in rungs]
    return rungs, keras.Model(inputs, [keras.layers.GlobalAveragePooling2D()(end) for end in cut])


@functools.cache
def costs(family: str, height: int, width: int, channels: int, num_classes: int) -> Mapping[str, NetworkCost]:
    """Return the cost of each rung of a family. All rungs are parts of one network, which is built once to save seconds."""
    rungs, model = all_features(family, height, width, channels)
    ends = (keras.Model(model.inputs, keras.layers.Dense(num_classes)(end)) for end in model.outputs)
    return dict(zip(rungs, map(describe, ends), strict=True))


efficientnet_lite0_150kb = _rung("efficientnet_lite0_150kb")
efficientnet_lite0_270kb = _rung("efficientnet_lite0_270kb")
efficientnet_lite0_1200kb = _rung("efficientnet_lite0_1200kb")
efficientnet_lite0_4000kb = _rung("efficientnet_lite0_4000kb")
efficientnet_lite2_1800kb = _rung("efficientnet_lite2_1800kb")
efficientnet_lite2_5600kb = _rung("efficientnet_lite2_5600kb")
