"""Detects values that an ONNX file keeps in other files, which a bundle's hashes do not cover. The package onnx is not needed."""

from collections.abc import Iterator

LOCATION = b"location"
"""The key for the path of another file: ONNX Runtime refuses external data without it."""

RUNTIME_FORMAT = b"ORTM"
"""The identifier, at byte 4, of ONNX Runtime's own format, which it would also open."""

INNER = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""The messages of onnx.proto that lead to tensors: their field numbers, and the message in each field."""

EXTERNAL_DATA, DATA_LOCATION = 13, 14
"""Fields of a tensor: the entries that name another file, and whether the values are in it."""


def has_external_data(model: bytes) -> bool:
    """Return whether an ONNX file has values in another file, or is too damaged to rule that out."""
    if model[4:8] == RUNTIME_FORMAT:
        return True
    if LOCATION not in model:
        return False
    try:
        return _any_external(memoryview(model))
    except (IndexError, ValueError):
        return True


def _any_external(model: memoryview) -> bool:
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        for number, value in _fields(message):
            if kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
                return True
            inner = INNER[kind].get(number)
            if inner is not None:
                if not isinstance(value, memoryview):
                    raise ValueError("a number where a message belongs")
                waiting.append((inner, value))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield each field's number and value (0 for fixed-width numbers); IndexError or ValueError if the message is not protobuf."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        tag &= 0xFFFFFFFF  # as protobuf reads it
        value: int | memoryview = 0
        match tag & 7:
            case 0:
                value, position = _varint(message, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(message, position)
                value, position = message[position : position + length], position + length
            case 5:
                position += 4
            case _:
                raise ValueError("a group")
        if position > len(message):
            raise ValueError("cut off")
        yield tag >> 3, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise ValueError("a number of more than 64 bits")
