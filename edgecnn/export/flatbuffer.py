"""Operators and tensors of a TFLite file, read from its flatbuffer with TensorFlow's schema, the layers that they compute, and the way back
to a file.
"""

import importlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import flatbuffers
import numpy as np

FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64")
TYPES = ("INT8", "UINT8", "INT16", "INT32", "INT64", "FLOAT32")

ALIGNMENT = 16
"""The schema aligns buffers to a multiple of this many bytes (force_align)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tensor:
    """A tensor of a TFLite graph. In `shape` the batch is 1; in `signature` -1 marks each size that the file leaves open.

    The real value is scale * (code - zero_point). Both hold one value, one per channel along `axis`, or none. `data` holds a
    constant's values.
    """

    index: int
    name: str
    type: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int
    data: np.ndarray | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """An operator of a TFLite graph. `options` is the schema's table of its attributes; an omitted input is None."""

    name: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """The main graph of a TFLite file, with `operators` in execution order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]


def read(data: bytes) -> Graph:
    schema, model = load_schema(), unpacked(data)
    graph = model.subgraphs[0]
    op_names, type_names = _names(schema.BuiltinOperator), _names(schema.TensorType)
    tensors = tuple(
        _tensor(index, tensor, type_names[tensor.type], model.buffers[tensor.buffer].data)
        for index, tensor in enumerate(graph.tensors)
    )

    def name(operator: Any) -> str:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.customCode:
            return code.customCode.decode()
        return op_names[max(code.builtinCode, code.deprecatedBuiltinCode)]  # the older field holds codes up to 127

    def chosen(indices: Any) -> tuple[Tensor, ...]:
        return tuple(tensors[index] for index in indices)

    operators = tuple(
        Operator(
            name=name(operator),
            inputs=tuple(None if index < 0 else tensors[index] for index in operator.inputs),
            outputs=chosen(operator.outputs),
            options=operator.builtinOptions,
        )
        for operator in graph.operators
    )
    return Graph(inputs=chosen(graph.inputs), outputs=chosen(graph.outputs), operators=operators, tensors=tensors)


def load_schema() -> ModuleType:
    importlib.import_module("edgecnn.networks.keras")  # imports TensorFlow without printing its notes on standard error
    return importlib.import_module("tensorflow.lite.python.schema_py_generated")


def unpacked(data: bytes) -> Any:
    """Return a TFLite file as the schema's mutable `ModelT`; `packed` is the inverse."""
    schema = load_schema()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))


def packed(model: Any) -> bytes:
    """Serialize a `ModelT` to a TFLite file, with every buffer aligned to ALIGNMENT bytes."""
    builder = _Aligned(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Aligned(flatbuffers.Builder):
    """A builder that aligns byte vectors as the schema requires of buffers. The Python classes generated from it do not."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
        return super().StartVector(elemSize, numElems, ALIGNMENT if elemSize == 1 else alignment)


def _names(enumeration: type) -> dict[int, str]:
    return {code: name for name, code in vars(enumeration).items() if not name.startswith("_")}


def _tensor(index: int, tensor: Any, type_: str, buffer: Any) -> Tensor:
    quantization = tensor.quantization
    quantized = quantization is not None and quantization.scale is not None
    shape = () if tensor.shape is None else tuple(map(int, tensor.shape))
    signature = shape if tensor.shapeSignature is None else tuple(map(int, tensor.shapeSignature))
    values = None
    if buffer is not None and len(buffer) and type_ in TYPES:
        values = np.frombuffer(np.asarray(buffer, np.uint8).tobytes(), type_.lower()).reshape(shape)
    return Tensor(
        index=index,
        name=tensor.name.decode(),
        type=type_,
        shape=shape,
        signature=signature,
        scale=np.asarray(quantization.scale if quantized else [], np.float32),
        zero_point=np.asarray(quantization.zeroPoint if quantized else [], np.int64),
        axis=quantization.quantizedDimension if quantized else 0,
        data=values,
    )


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
        # a BatchNorm that was folded is a linear activation
        folded = kind == "Activation" and followers[0].get_config()["activation"] == "linear"
        if not (kind == "BatchNormalization" or folded or (activated and kind in ("ReLU", "Activation"))):
            return layer
        layer = followers[0]
