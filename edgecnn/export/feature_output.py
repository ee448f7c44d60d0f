"""A second output for an exported file: the features that its last layer reads, with which a device detects out-of-distribution images."""

from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.export.flatbuffer import load_schema, packed, read, unpacked
from edgecnn.export.qdq import FEATURES

if TYPE_CHECKING:
    import onnx

TYPES = ("INT8", "UINT8", "FLOAT32")


def with_features(data: bytes) -> bytes:
    """Add the output FEATURES, (batch, length), to a TFLite file unless it is int16. Raises ExportError if its last layer is not dense."""
    graph = read(data)
    made_by = {tensor.index: operator for operator in graph.operators for tensor in operator.outputs}
    operator = made_by.get(graph.outputs[0].index)
    while operator and operator.name in ("QUANTIZE", "DEQUANTIZE") and operator.inputs[0]:
        operator = made_by.get(operator.inputs[0].index)
    features = operator.inputs[0] if operator and operator.name == "FULLY_CONNECTED" else None
    if features is None or len(features.shape) != 2:
        raise _not_dense()
    if features.type not in TYPES:
        return data
    model = unpacked(data)
    changed = model.subgraphs[0]
    changed.tensors[features.index].name = FEATURES.encode()
    changed.outputs = np.array([*changed.outputs, features.index], np.int32)
    for signature in model.signatureDefs or ():
        entry = load_schema().TensorMapT()
        entry.name, entry.tensorIndex = FEATURES.encode(), features.index
        signature.outputs.append(entry)
    return packed(model)


def add_features(graph: "onnx.GraphProto", batch: str) -> None:
    """Add the output FEATURES, (batch, length), to a float ONNX graph, in place. Raises ExportError if its last layer is not dense."""
    import onnx

    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    node: Any = made_by.get(graph.output[0].name)
    while node and node.op_type in ("Add", "Identity"):  # the bias
        node = next((made_by[name] for name in node.input if name in made_by), None)
    if not node or node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
        raise _not_dense()
    before, weights = node.input[0], constants[node.input[1]]
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    for other in graph.node:
        other.input[:] = [FEATURES if name == before else name for name in other.input]
        other.output[:] = [FEATURES if name == before else name for name in other.output]
    length = weights.dims[1 if transposed else 0]
    graph.output.append(onnx.helper.make_tensor_value_info(FEATURES, onnx.TensorProto.FLOAT, [batch, length]))


def _not_dense() -> ExportError:
    return ExportError(
        "strangers are detected from the features that a dense last layer reads; this network has no such layer. "
        "Train with --set stranger.rate=0, or end the network with a dense layer."
    )
