"""A network's cost: parameters, multiply-accumulates, and the size of its int8 file."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras

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
