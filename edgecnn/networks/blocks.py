"""The networks that edgecnn has, what one costs, and the blocks that they consist of.

BatchNorm directly follows its convolution, so it can be folded. The EfficientNet-Lite family is designed for int8: it uses ReLU6 and no
squeeze-and-excite.

Source: Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.pretrained import folded_weights, read_weights, source_of

OPERATOR_BYTES, KERNEL_BYTES, CHANNEL_BYTES = 170, 730, 24
"""Int8 file size without the weights: bytes per operator, more for one with a kernel, and bytes per output channel of a kernel (scales,
zero points and the bias). Fitted within 4 % to files from TensorFlow 2.21: our networks with several inputs and numbers of classes. Their
weights were random, since biases that are all zero share their bytes."""

WITHIN_OTHERS = ("InputLayer", "BatchNormalization", "ReLU")
"""Layers that are not operators in the file: quantization folds them into the preceding convolution or addition."""


@dataclass(frozen=True)
class LayerCost:
    """One layer: its output shape (height, width, channels), parameters and MACs per image."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class NetworkCost:
    """A network's cost for one input shape. `int8_bytes` is an estimate; `parameters` counts BatchNorm's four per channel."""

    layers: tuple[LayerCost, ...]
    parameters: int
    macs: int
    int8_bytes: int


def describe(model: "keras.Model") -> NetworkCost:
    """Count a tf_keras functional model's parameters and MACs (of convolutions and dense layers), and estimate its int8 bytes."""
    layers = []
    int8_bytes = 0
    for layer in model.layers:
        output = layer.output_shape[-1] if isinstance(layer.output_shape, list) else layer.output_shape
        shape, kind, macs = tuple(map(int, output[1:])), type(layer).__name__, 0
        depthwise = hasattr(layer, "depthwise_kernel")
        kernel = layer.depthwise_kernel if depthwise else getattr(layer, "kernel", None)
        if kernel is not None:
            macs = math.prod(shape[:-1]) * math.prod(kernel.shape)
            channels = math.prod(kernel.shape[-2:]) if depthwise else kernel.shape[-1]
            int8_bytes += math.prod(kernel.shape) + KERNEL_BYTES + CHANNEL_BYTES * channels
        if kind not in WITHIN_OTHERS:
            int8_bytes += OPERATOR_BYTES
        layers.append(LayerCost(layer.name, kind, shape, layer.count_params(), macs))
    return NetworkCost(tuple(layers), model.count_params(), sum(layer.macs for layer in layers), int8_bytes)


Build = Callable[[int, int, int, int], "keras.Model"]
"""Maps the input's height, width and channels, and the number of classes, to a model that ends in logits."""

STEM_SIDE = 32  # approximate rows or columns after the stem; the networks' costs are stated for this size


def halvings(height: int, width: int) -> int:
    """Return how often a stem halves an input to bring the shorter side near 32: 0 below 46, 1 up to 90, 2 up to 181, 3 up to 362."""
    return max(0, round(math.log2(min(height, width) / STEM_SIDE)))


def convolution(x, filters: int, kernel: int = 3, strides: int = 1, *, relu: bool = True):
    """Apply a padded convolution without bias, BatchNorm and, unless `relu` is false, a ReLU."""
    layers = keras.layers
    x = layers.Conv2D(filters, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization()(x)
    return layers.ReLU()(x) if relu else x


def residual(x, filters: int, strides: int = 1):
    """Add two 3x3 convolutions to their input, projected if the shapes differ. Source: He et al. 2015 (arXiv:1512.03385)."""
    layers = keras.layers
    branch = convolution(convolution(x, filters, strides=strides), filters, relu=False)
    if strides > 1 or x.shape[-1] != filters:
        x = convolution(x, filters, 1, strides, relu=False)
    return layers.ReLU()(layers.Add()([x, branch]))


def stem(x, filters: int):
    """Apply 3x3 convolutions, one per halving that `halvings` calls for; all but the last have half the filters."""
    times = halvings(x.shape[1], x.shape[2])
    for _ in range(times - 1):
        x = convolution(x, filters // 2, strides=2)
    return convolution(x, filters, strides=2 if times else 1)


def residual_network(name: str, stem_filters: int, *blocks: tuple[int, int]) -> Build:
    """Return a function that builds a stem and residual blocks, each (filters, strides), for an input of any size."""

    def build(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
        inputs = keras.Input((height, width, channels))
        x = stem(inputs, stem_filters)
        for filters, strides in blocks:
            x = residual(x, filters, strides)
        return classifier(inputs, x, num_classes, name)

    return build


def classifier(inputs, x, num_classes: int, name: str) -> "keras.Model":
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(num_classes, kernel_initializer="he_normal")(x)
    return keras.Model(inputs, logits, name=name)


SMALLEST = {"valid": 18, "same": 4}
"""Smallest rows and columns: below them nothing is left after the unpadded convolutions, or after the two poolings."""


def article(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build the article's network, ending in logits. Raises NetworkError if the input is too small.

    The convolutions are unpadded, as in the article, if the input has at least 18 rows and columns.
    """
    smaller = min(height, width)
    padding = "valid" if smaller >= SMALLEST["valid"] else "same"
    if smaller < (least := SMALLEST[padding]):
        raise NetworkError(
            f"article needs an input of at least {least}x{least}, received {height}x{width}. "
            "Choose a larger network.height and network.width."
        )
    layers = keras.layers
    inputs = x = keras.Input((height, width, channels))
    for filters in (32, 64):
        x = layers.MaxPooling2D(2)(layers.Conv2D(filters, 3, padding=padding, activation="relu")(x))
    x = layers.Flatten()(layers.Conv2D(64, 3, padding=padding, activation="relu")(x))
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x), name="article")


def resnet8(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build ResNet-8, ending in logits. The pooling covers the whole map, which for 32 x 32 inputs is the original's 8 x 8.

    Source: Banbury et al. 2021, "MLPerf Tiny Benchmark" (arXiv:2106.07597), image classification.
    """
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


resnet_25kb = residual_network("resnet_25kb", 12, (16, 2), (28, 2))


def resnet_100kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build a stem with 16 filters, then residual blocks with 16, 32 and 46, ending in logits. Max pooling sees more than strides."""
    inputs = keras.Input((height, width, channels))
    x = residual(stem(inputs, 16), 16)
    for filters in (32, 46):
        x = keras.layers.MaxPooling2D()(convolution(x, filters))
        x = residual(x, filters)
    return classifier(inputs, x, num_classes, "resnet_100kb")


resnet_300kb = residual_network("resnet_300kb", 32, (32, 2), (32, 1), (64, 2), (64, 1), (80, 2))


def resnet_500kb(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
    """Build a stem with 32 filters, then two residual blocks with 64 and one with 112, each behind max pooling, ending in logits."""
    inputs = keras.Input((height, width, channels))
    x = stem(inputs, 32)
    for filters in (64, 64, 112):
        x = keras.layers.MaxPooling2D()(convolution(x, filters))
        x = residual(x, filters)
    return classifier(inputs, x, num_classes, "resnet_500kb")


# wide layers at 16 x 16 and 8 x 8, which processors multiply most efficiently, do most of its work
resnet_1000kb = residual_network("resnet_1000kb", 32, (64, 2), (128, 2), (128, 1), (144, 2))


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


class Convolution(NamedTuple):
    """One convolution, with BatchNorm and, unless `relu` is false, a ReLU6 behind it; `add` names the sum with its block's input."""

    name: str
    filters: int
    kernel: int = 1
    strides: int = 1
    relu: bool = True
    add: str = ""

    @property
    def is_depthwise(self) -> bool:
        return self.name.endswith("_depthwise")


def rungs_of(family: str) -> tuple[str, ...]:
    return tuple(rung for rung in RUNGS if family_of(rung) == family)


def parts_of(rung: str) -> list[list[Convolution]]:
    """Return the convolutions of a rung's stem, of each of its blocks, and of its head, if it has one.

    A block widens, filters each channel, and narrows. Source: Sandler et al. 2018 (arXiv:1801.04381).
    """
    parts, inputs = [[Convolution("stem", STEM, kernel=3, strides=2)]], STEM
    for index, (filters, kernel, strides, expansion) in enumerate(blocks_of(family_of(rung))[: RUNGS[rung]]):
        name, wide = f"block{index}", inputs * expansion
        add = f"{name}_add" if strides == 1 and inputs == filters else ""
        block = [Convolution(f"{name}_expand", wide)] if expansion > 1 else []
        block.append(Convolution(f"{name}_depthwise", wide, kernel, strides))
        parts.append([*block, Convolution(f"{name}_project", filters, relu=False, add=add)])
        inputs = filters
    return [*parts, [Convolution("head", HEAD)]] if is_whole(rung) else parts


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


def _rung(name: str) -> Build:
    """Return a function that builds a rung with random weights, ending in logits. Input sides that are multiples of 32 work best."""

    def build(height: int, width: int, channels: int, num_classes: int) -> "keras.Model":
        inputs = x = keras.Input((height, width, channels))
        for part in parts_of(name):
            before = x
            for one in part:
                x = _apply(one, x)
            if add := part[-1].add:
                x = keras.layers.Add(name=add)([before, x])
        return classifier(inputs, x, num_classes, name)

    return build


def _apply(one: Convolution, x):
    layers = keras.layers
    if one.is_depthwise:
        convolution = layers.DepthwiseConv2D(
            one.kernel, one.strides, "same", use_bias=False, depthwise_initializer="he_normal", name=one.name
        )
    else:
        convolution = layers.Conv2D(
            one.filters, one.kernel, one.strides, "same", use_bias=False, kernel_initializer="he_normal", name=one.name
        )
    x = layers.BatchNormalization(name=f"{one.name}_norm")(convolution(x))
    return layers.ReLU(6.0, name=f"{one.name}_relu")(x) if one.relu else x


def frozen_network(family: str, channels: int) -> Callable[[Any], dict[str, Any]]:
    """Return a function from float32 images (n, height, width, channels) of any size to each rung's features with trained weights.

    Features are float32 (n, length): what the rung's dense layer reads. One pass serves all rungs, which are parts of one network. Plain
    operations are ready seconds before a Keras model. Raises NetworkError or ModuleNotFoundError like `pretrained.read_weights`.
    """
    rungs = rungs_of(family)
    parts = parts_of(max(rungs, key=RUNGS.__getitem__))
    source = source_of(rungs[0])
    assert source is not None
    weights = folded_weights(read_weights(source), (one.name for part in parts for one in part), channels)

    def features(images):
        x, ends = images, []
        for part in parts:
            before = x
            for one in part:
                kernel, bias = weights[one.name]
                apply = tf.nn.depthwise_conv2d if one.is_depthwise else tf.nn.conv2d
                x = tf.nn.bias_add(apply(x, kernel, [1, one.strides, one.strides, 1], "SAME"), bias)
                x = tf.nn.relu6(x) if one.relu else x
            x = before + x if part[-1].add else x
            ends.append(x)
        return {rung: tf.reduce_mean(ends[len(parts_of(rung)) - 1], (1, 2)) for rung in rungs}

    return features


def costs(rung: str, height: int, width: int, channels: int, num_classes: int) -> NetworkCost:
    """Return a rung's cost, but not its layers', as `describe` does, without building it, which takes seconds."""
    parameters = macs = 0
    size, inputs = OPERATOR_BYTES, channels  # of the pooling
    for part in parts_of(rung):
        for one in part:
            weights = one.kernel**2 * one.filters * (1 if one.is_depthwise else inputs)
            height, width, inputs = -(-height // one.strides), -(-width // one.strides), one.filters
            parameters += weights + 4 * one.filters
            macs += weights * height * width
            size += weights + KERNEL_BYTES + CHANNEL_BYTES * one.filters + OPERATOR_BYTES * (2 if one.add else 1)
    weights = inputs * num_classes
    size += weights + KERNEL_BYTES + CHANNEL_BYTES * num_classes + OPERATOR_BYTES
    return NetworkCost((), parameters + weights + num_classes, macs + weights, size)


efficientnet_lite0_150kb = _rung("efficientnet_lite0_150kb")
efficientnet_lite0_270kb = _rung("efficientnet_lite0_270kb")
efficientnet_lite0_1200kb = _rung("efficientnet_lite0_1200kb")
efficientnet_lite0_4000kb = _rung("efficientnet_lite0_4000kb")
efficientnet_lite2_1800kb = _rung("efficientnet_lite2_1800kb")
efficientnet_lite2_5600kb = _rung("efficientnet_lite2_5600kb")
