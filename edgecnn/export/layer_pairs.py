"""Which operator of a TFLite file computes which layer of the Keras model that it was made from."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
NOT_COMPUTED = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "PAD", "SHAPE", "STRIDED_SLICE", "PACK")
"""Operators that compute no values of their own; their tensors are skipped."""


class Pair(NamedTuple):
    """A layer in both models: the Keras layer's name, the operator, and the TFLite tensor that it outputs."""

    layer: str
    operator: Any
    tensor: Any


def matched(model: Any, graph: Any, types: Sequence[str] = ("INT8", "UINT8")) -> tuple[list[Pair], list[str]]:
    """Match a graph's operators that make tensors of some `types` with a model's layers.

    Returns the pairs in execution order, and tensors without a layer.
    """
    # The converter names a tensor after the layers it fused, "net/quant_conv2d/Relu;net/…". The last of them in the Keras model counts,
    # followed by the BatchNorm and activation that were fused without being named. If the shape differs, it is not a match.
    order = {layer.name: number for number, layer in enumerate(model.layers)}
    pairs: list[Pair] = []
    unmatched: list[str] = []
    for operator in graph.operators:
        tensor = operator.outputs[0]
        if operator.name in NOT_COMPUTED or tensor.type not in types:
            continue
        parts = [part.removeprefix("quant_") for part in re.split("[;/]", tensor.name)]  # without the toolkit's prefix
        named = [name for name in parts if name in order]
        layer = model.get_layer(max(named, key=order.__getitem__)) if named else None
        if layer is None and tensor.index == graph.outputs[0].index:  # "StatefulPartitionedCall:0" if it is not fused
            layer = model.layers[-1]
        if layer is not None and operator.name in WEIGHTED:
            layer = fused_end(layer, bool(operator.options.fusedActivationFunction))
        if layer is not None and math.prod(layer.output.shape[1:]) == math.prod(tensor.shape[1:]):
            pairs.append(Pair(layer.name, operator, tensor))
        else:
            unmatched.append(tensor.name)
    return pairs, unmatched


def fused_end(layer: Any, activated: bool) -> Any:
    """Follow a weighted layer to the last layer fused with it: BatchNorm, and the activation if there is one."""
    while True:
        followers = [node.outbound_layer for node in layer.outbound_nodes]
        if len(followers) != 1:
            return layer
        kind = type(followers[0]).__name__
        if not (kind == "BatchNormalization" or (activated and kind in ("ReLU", "Activation"))):
            return layer
        layer = followers[0]
