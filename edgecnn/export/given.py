"""Others' model files, changed only at their ends, so that a device can run them: pixels in, logits out.

A softmax at the end is cut off, and so are conversions of int8 from and to float at the ends. Conversions that the input needs are put in
front: from the pixels' codes to other codes, per channel, or to channels first.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.export.flatbuffer import Operator, Tensor, load_schema, packed, read, unpacked
from edgecnn.export.onnx_int8 import INPUT, METADATA
from edgecnn.networks.onnx_model import conversion

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


CLOSE = 2e-3  # relative difference of two scales at which a pixel's code is the same to half a code

Numbers = tuple[Any, Any]


class Given(NamedTuple):
    """A changed file, the scale and zero point of its int8 input's codes, and whether a softmax was cut off."""

    data: bytes
    scale: float
    zero_point: int
    softmax_cut: bool


def tflite(data: bytes, numbers: Numbers, contract: tuple[float, int] | None = None) -> Given:
    """Change a TFLite file that reads S * (pixel - 128 - Z) for the `numbers` S and Z, each one number or one per channel.

    `contract` is the S and Z that a device gives it; by default the file's own, if that is one for all channels, else pixels from -1 to 1.

    Raises ExportError if its input or output cannot be changed so.
    """
    graph, edit = read(data), Edit(data)
    makers = {tensor.index: operator for operator in graph.operators for tensor in operator.outputs}
    readers = [operator for operator in graph.operators if graph.inputs[0] in operator.inputs]
    cut: list[Operator] = []
    end, softmax = graph.outputs[0], False
    while (maker := makers.get(end.index)) and maker.inputs[0] and maker.name in ("DEQUANTIZE", "QUANTIZE", "SOFTMAX"):
        softmax |= maker.name == "SOFTMAX"
        if maker.name == "QUANTIZE" and maker.inputs[0].type == "FLOAT32":
            break
        cut.append(maker)
        end = maker.inputs[0]
    entry = graph.inputs[0]
    if len(readers) == 1 and readers[0].name == "QUANTIZE" and readers[0].outputs[0].type in ("INT8", "UINT8"):
        cut.append(readers[0])
        entry = readers[0].outputs[0]
    one = np.ndim(numbers[0]) == 0 and np.ndim(numbers[1]) == 0
    contract = contract or (own_codes(entry, numbers) if one else None) or ((1 / 128, 0) if not one else numbers)
    edit.end(end, [operator.outputs[0].index for operator in cut])
    edit.begin(entry, numbers, contract)
    return Given(packed(edit.model), float(contract[0]), int(contract[1]), softmax)


def own_codes(entry: Tensor, numbers: Numbers) -> tuple[float, int] | None:
    """Return the scale and zero point of an int8 input that reads the code of each pixel, in the range `numbers`; None for another one."""
    if entry.type not in ("INT8", "UINT8") or len(entry.scale) != 1:
        return None
    scale, zero_point = float(entry.scale[0]), int(entry.zero_point[0]) - (128 if entry.type == "UINT8" else 0)
    same = np.isclose(scale, numbers[0], rtol=CLOSE, atol=0) and zero_point == numbers[1]
    return (scale, zero_point) if same else None


class Edit:
    """A TFLite file under change."""

    def __init__(self, data: bytes) -> None:
        self.model = unpacked(data)
        self.graph = self.model.subgraphs[0]
        self.model.signatureDefs = None  # they name the old ends
        self.schema = load_schema()
        self.first: list[Any] = []

    def end(self, tensor: Tensor, gone: Sequence[int]) -> None:
        self.graph.outputs = np.array([tensor.index], np.int32)
        self.graph.operators = [one for one in self.graph.operators if int(one.outputs[0]) not in gone]

    def begin(self, entry: Tensor, numbers: Numbers, contract: tuple[float, int]) -> None:
        """Make an input that reads pixels in the `contract`'s range, and the operators from there to the old input."""
        (scale, zero_point), (own_scale, own_zero) = numbers, contract
        _, *sides = entry.shape
        first = sides[0] in (1, 3) and sides[2] not in (1, 3)
        shape = [1, *sides[1:], sides[0]] if first else [1, *sides]
        integer = entry.type in ("INT8", "UINT8")
        if integer and len(entry.scale) != 1:
            raise ExportError(f"its {entry.type} input has no scale, expected one. Convert it again, with float input.")
        codes = own_codes(entry, (own_scale, own_zero)) if integer else None
        channelwise = np.ndim(scale) > 0 or np.ndim(zero_point) > 0
        same = not channelwise and np.isclose(scale, own_scale, rtol=1e-6) and zero_point == own_zero
        if same and not first and (codes == contract if integer else True):
            self.graph.inputs = np.array([entry.index], np.int32)
            return
        coded = integer and same
        type_ = entry.type if coded else "FLOAT32"
        quantization = (own_scale, own_zero + (128 if type_ == "UINT8" else 0)) if coded else None
        start = now = self.tensor(INPUT, shape, type_, quantization=quantization)
        if not same:
            for name, values in zip(("MUL", "ADD"), conversion(numbers, contract), strict=True):
                constant = self.tensor(f"{INPUT}_{name.lower()}", [values.size], "FLOAT32", values.reshape(-1))
                now = self.add(name, [now, constant], self.tensor(f"{INPUT}_{name}", shape, "FLOAT32"))
        if integer and not (coded and codes == contract):
            parameters = float(entry.scale[0]), int(entry.zero_point[0])
            there = (
                entry.index if not first else self.tensor(f"{INPUT}_codes", shape, entry.type, quantization=parameters)
            )
            now = self.add("QUANTIZE", [now], there)
        if first:
            order = self.tensor(f"{INPUT}_order", [4], "INT32", np.array([0, 3, 1, 2], np.int32))
            now = self.add("TRANSPOSE", [now, order], entry.index)
        elif now != entry.index:
            self.renamed(entry.index, now)
        self.graph.operators = [*self.first, *self.graph.operators]
        self.graph.inputs = np.array([start], np.int32)

    def renamed(self, old: int, new: int) -> None:
        for operator in self.graph.operators:
            operator.inputs = np.array([new if index == old else index for index in operator.inputs], np.int32)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        type_: str,
        data: np.ndarray | None = None,
        quantization: tuple[float, int] | None = None,
    ) -> int:
        buffer, tensor = self.schema.BufferT(), self.schema.TensorT()
        if data is not None:
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.buffer = name.encode(), list(shape), len(self.model.buffers) - 1
        tensor.type = getattr(self.schema.TensorType, type_)
        if quantization:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [quantization[0]], [quantization[1]]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add(self, name: str, inputs: Sequence[int], output: int) -> int:
        code, operator = self.schema.OperatorCodeT(), self.schema.OperatorT()
        number = getattr(self.schema.BuiltinOperator, name)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        if name == "QUANTIZE":
            code.version = 2
        self.model.operatorCodes.append(code)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), [output]
        options = f"{name.title()}Options"
        operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
        operator.builtinOptions = getattr(self.schema, f"{options}T")()
        self.first.append(operator)
        return output


def onnx_file(model: "onnx.ModelProto", numbers: Numbers, contract: tuple[float, int] | None = None) -> Given:
    """Change an ONNX file with float input as `tflite` does."""
    import onnx

    helper, graph = onnx.helper, model.graph
    constants = {tensor.name for tensor in graph.initializer}
    (entry,) = (item for item in graph.input if item.name not in constants)
    if entry.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise ExportError("its input is not float32, expected float pixels. Quantize it again with float input.")
    one = np.ndim(numbers[0]) == 0 and np.ndim(numbers[1]) == 0
    contract = contract or (numbers if one else (1 / 128, 0))
    sides = [size.dim_value for size in entry.type.tensor_type.shape.dim]
    first = sides[1] in (1, 3) and sides[3] not in (1, 3)
    shape = ["batch" if not sides[0] else 1, *([*sides[2:], sides[1]] if first else sides[1:])]
    nodes, now = [], f"{INPUT}_read"
    if not (one and np.isclose(numbers[0], contract[0], rtol=1e-6) and numbers[1] == contract[1]):
        for name, array in zip(("Mul", "Add"), conversion(numbers, contract), strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), f"{INPUT}_{name}"))
            nodes.append(helper.make_node(name, [now, f"{INPUT}_{name}"], [f"{now}_{name}"]))
            now = f"{now}_{name}"
    if first:
        nodes.append(helper.make_node("Transpose", [now], [f"{now}_first"], perm=[0, 3, 1, 2]))
        now = f"{now}_first"
    for node in graph.node:
        node.input[:] = [now if name == entry.name else name for name in node.input]
    (before,), (end, softmax) = list(graph.output), cut_end(graph)
    old = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*nodes, *old])
    graph.input.append(helper.make_tensor_value_info(f"{INPUT}_read", onnx.TensorProto.FLOAT, shape))
    graph.output.append(
        before if end == before.name else helper.make_tensor_value_info(end, onnx.TensorProto.UNDEFINED, None)
    )
    model = onnx.shape_inference.infer_shapes(model)
    output, zero_point = quantization(model.SerializeToString())[1]
    if output:  # ONNX Runtime does not report it
        entry_ = model.metadata_props.add()
        entry_.key, entry_.value = METADATA, json.dumps({"output": {"scale": output, "zero_point": zero_point}})
    return Given(model.SerializeToString(deterministic=True), float(contract[0]), int(contract[1]), softmax)


def cut_end(graph: "onnx.GraphProto") -> tuple[str, bool]:
    """Return the value before a softmax and before the conversion to float at the end of a graph, and whether there is a softmax."""
    makers = {name: node for node in graph.node for name in node.output}
    end, softmax = graph.output[0].name, False
    while (maker := makers.get(end)) and maker.op_type in ("DequantizeLinear", "QuantizeLinear", "Softmax"):
        before = makers.get(maker.input[0])
        if maker.op_type == "QuantizeLinear" and not (before and before.op_type == "Softmax"):
            break
        softmax |= maker.op_type == "Softmax"
        end = maker.input[0]
    return end, softmax
