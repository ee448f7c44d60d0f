"""Read from an ONNX file what ONNX Runtime does not tell: the scale and zero point of a quantized input or output.

The file is Protocol Buffers; the few fields needed are walked here, so that a device needs neither `onnx` nor `protobuf`. The
numbers are those of onnx.proto3.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_OP = 1, 2, 4
TENSOR_TYPE, TENSOR_FLOATS, TENSOR_INTS, TENSOR_NAME, TENSOR_RAW = 2, 4, 5, 8, 9
TYPES: dict[int, np.dtype] = {1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1")}

SAME_SCALE = (
    *("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"),
    *("Slice", "Concat", "Pad", "MaxPool", "Clip"),
)
"""Operators whose output has the scale and zero point of their first input: they move codes, leave some out or bound them."""


class _Node(NamedTuple):
    op: str
    inputs: list[str]
    outputs: list[str]


class Graph:
    """The nodes and initializers of an ONNX file."""

    def __init__(self, model: bytes) -> None:
        """Walk a file that ONNX Runtime has opened.

        Raises:
            ValueError: if it ends inside a field, or has a field of an unknown kind.
        """
        self._nodes: list[_Node] = []
        self._initializers: dict[str, memoryview] = {}
        for number, graph in _fields(memoryview(model)):
            if number == MODEL_GRAPH and isinstance(graph, memoryview):
                self._read_graph(graph)

    def _read_graph(self, graph: memoryview) -> None:
        for number, value in _fields(graph):
            if number == GRAPH_NODE and isinstance(value, memoryview):
                texts = _texts(value)
                op = texts.get(NODE_OP, [""])[0]
                self._nodes.append(_Node(op, texts.get(NODE_INPUT, []), texts.get(NODE_OUTPUT, [])))
            elif number == GRAPH_INITIALIZER and isinstance(value, memoryview):
                self._initializers[_texts(value).get(TENSOR_NAME, [""])[0]] = value

    def input_quantization(self, name: str) -> tuple[float, int]:
        """Return (scale, zero point) by which a graph input is dequantized; (0.0, 0) if it is not."""
        names = {name}
        for node in self._nodes:  # an ONNX file has them in the order in which they run
            if names.intersection(node.inputs[:1]):
                if node.op == "DequantizeLinear":
                    return self._parameters(node)
                if node.op in SAME_SCALE:
                    names.update(node.outputs)
        return 0.0, 0

    def output_quantization(self, name: str) -> tuple[float, int]:
        """Return (scale, zero point) by which a graph output is quantized; (0.0, 0) if it is not."""
        for node in reversed(self._nodes):
            if node.outputs[:1] == [name]:
                if node.op == "QuantizeLinear":
                    return self._parameters(node)
                if node.op not in SAME_SCALE:
                    break
                name = node.inputs[0]
        return 0.0, 0

    def _parameters(self, node: _Node) -> tuple[float, int]:
        scale = self._scalar(node.inputs[1])
        zero_point = self._scalar(node.inputs[2]) if len(node.inputs) > 2 else 0
        return (0.0, 0) if scale is None or zero_point is None else (float(scale), int(zero_point))

    def _scalar(self, name: str) -> float | int | None:
        """Return an initializer's one value; None if it is no initializer, or not of one value."""
        kind, values = 0, np.empty(0)
        for number, value in _fields(self._initializers.get(name, memoryview(b""))):
            if number == TENSOR_TYPE and isinstance(value, int):
                kind = value
            elif number == TENSOR_RAW and kind in TYPES and isinstance(value, memoryview):
                values = np.frombuffer(value, TYPES[kind])
            elif number == TENSOR_FLOATS and isinstance(value, memoryview):
                values = np.frombuffer(value, "<f4")
            elif number == TENSOR_INTS and isinstance(value, memoryview):
                values = np.array(list(_varints(value)), np.uint64).astype(np.int64)
        return values[0].item() if len(values) == 1 else None


def _texts(message: memoryview) -> dict[int, list[str]]:
    """Return the strings of a message's fields below 9, where nodes and tensors keep names and no data, by field number."""
    texts: dict[int, list[str]] = {}
    for number, value in _fields(message):
        if number in (NODE_INPUT, NODE_OUTPUT, NODE_OP, TENSOR_NAME) and isinstance(value, memoryview):
            texts.setdefault(number, []).append(bytes(value).decode("utf-8", "replace"))
    return texts


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield a message's (field number, value): an int for a varint, else the bytes."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire}")
        if position + size > len(message):
            raise ValueError(f"field {number} is truncated")
        yield number, message[position : position + size]
        position += size


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a variable-length integer and the position after it."""
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number is truncated")
