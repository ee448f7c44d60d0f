"""What a network costs: parameters, multiply-accumulates and the bytes of its int8 file."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras

OPERATOR_BYTES = 170
KERNEL_BYTES = 730
CHANNEL_BYTES = 24
"""Int8 file size without the weights: bytes for each operator, more for one with a kernel, and bytes for each of its output channels
(scales, zero points and the bias). Fitted to files of TensorFlow 2.21, the networks' own for several inputs and counts of
classes, within 4 %; their weights were random, since biases that are all zero share their bytes."""

WITHIN_OTHERS = ("InputLayer", "BatchNormalization", "ReLU")
"""Layers that are not operators in the file: quantization folds them into the convolution or addition before them."""


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer: its output shape (height, width, channels), parameters and MACs per image."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """A network for one input shape. `int8_bytes` is an estimate; `parameters` counts BatchNorm's four per channel."""

    layers: tuple[LayerCost, ...]
    parameters: int
    macs: int
    int8_bytes: int


def describe(model: "keras.Model") -> NetworkCost:
    """Count a built network's parameters, MACs and expected int8 bytes.

    MACs are those of convolutions and dense layers, the usual count (one multiply and one add are one MAC).

    Args:
        model: a tf_keras functional model.

    Returns:
        The cost, per layer and whole.
    """
    layers = []
    int8_bytes = 0
    for layer in model.layers:
        output = (
            tuple(int(size) for size in layer.output_shape[-1][1:])
            if isinstance(layer.output_shape, list)
            else tuple(int(size) for size in layer.output_shape[1:])
        )
        macs = 0
        kernel = getattr(layer, "depthwise_kernel", getattr(layer, "kernel", None))
        if kernel is not None:
            weights = math.prod(kernel.shape)
            depthwise = hasattr(layer, "depthwise_kernel")
            positions = math.prod(output[:-1])
            macs = positions * weights
            channels = weights // math.prod(kernel.shape[:-2]) if depthwise else kernel.shape[-1]
            int8_bytes += weights + KERNEL_BYTES + CHANNEL_BYTES * channels
        kind = type(layer).__name__
        if kind not in WITHIN_OTHERS:
            int8_bytes += OPERATOR_BYTES
        layers.append(
            LayerCost(
                name=layer.name,
                kind=kind,
                shape=output,
                parameters=layer.count_params(),
                macs=macs,
            )
        )
    return NetworkCost(
        layers=tuple(layers),
        parameters=model.count_params(),
        macs=sum(layer.macs for layer in layers),
        int8_bytes=int8_bytes,
    )
