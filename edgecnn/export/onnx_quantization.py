"""The scale and zero point of an ONNX file's quantized input and output, read from its graph, for files that edgecnn did not make."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

SAME_SCALE = (
    *("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"),
    *("Slice", "Concat", "Pad", "MaxPool", "Clip"),
)
"""Operators whose output has the scale and zero point of their first input: they move, drop or clip codes."""

Quantization = tuple[float, int]
NONE: Quantization = (0.0, 0)


def quantization(model: bytes) -> tuple[Quantization, Quantization]:
    """Return (scale, zero point) of a file's first input and first output; (0.0, 0) for one without a single quantization scale."""
    import onnx

    graph = onnx.ModelProto.FromString(model).graph
    constants = {item.name for item in graph.initializer}
    entry = next(item.name for item in graph.input if item.name not in constants)
    return _of_input(graph, entry), _of_output(graph, graph.output[0].name)


def _of_input(graph: "onnx.GraphProto", name: str) -> Quantization:
    names = {name}
    for node in graph.node:  # in execution order
        if names.intersection(node.input[:1]):
            if node.op_type == "DequantizeLinear":
                return _parameters(graph, node)
            if node.op_type in SAME_SCALE:
                names.update(node.output)
    return NONE


def _of_output(graph: "onnx.GraphProto", name: str) -> Quantization:
    for node in reversed(graph.node):
        if node.output[:1] == [name]:
            if node.op_type == "QuantizeLinear":
                return _parameters(graph, node)
            if node.op_type not in SAME_SCALE:
                break
            name = node.input[0]
    return NONE


def _parameters(graph: "onnx.GraphProto", node: "onnx.NodeProto") -> Quantization:
    import onnx

    constants = {item.name: item for item in graph.initializer}
    values = [onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:3] if name in constants]
    if len(values) != len(node.input[1:3]) or any(value.size != 1 for value in values):
        return NONE
    scale, *zero_point = (value.item() for value in values)
    return float(scale), int(zero_point[0]) if zero_point else 0
