"""An int8 TFLite file as an ONNX graph that ONNX Runtime runs in integers.

The graph uses the TFLite file's own operators, weights, scales and zero points, between QuantizeLinear and DequantizeLinear
nodes (QDQ), in the patterns that ONNX Runtime fuses: QLinearConv, QGemm, QLinearAdd and the like.

- Activations are uint8 and weights int8: on x86, ONNX Runtime has fast kernels only for that pair. A code and its zero
  point both move by 128, so every real value stays the same. On x86 without VNNI the pair saturates unless a session
  option is set. `edgecnn.runtime.engines.onnxruntime` sets it; other programs have to.
- Operators that only move values (max pooling, reshape, concatenation, padding) work on the codes themselves.
- A fused ReLU needs no node if the smallest code is already zero. Otherwise it becomes a Clip of the codes.
- Four-dimensional tensors are (batch, channels, height, width) here and (batch, height, width, channels) there. ONNX
  Runtime's own layout choice absorbs the Transposes, one at the input and one before a flatten.

ONNX Runtime gathers a convolution's input pixel by pixel, which is slow for pixels of one to three bytes. So four pixels of a row are
folded into the channels of one, and the kernel holds the weights four times, shifted and padded with zeros. If columns cannot be folded,
the channels are repeated until there are four, and the copies get zero weights.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.export.flatbuffer import Graph, Operator, Tensor, read

if TYPE_CHECKING:
    import onnx


INPUT, OUTPUT, FEATURES = "pixels", "logits", "features"
"""Names of the input, the output, and the optional second output: the features that the last layer reads."""

TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
OFFSETS = {"INT8": 128, "UINT8": 0}
"""Offset that turns an activation's codes into uint8, by the TFLite file's type."""

ACTIVATIONS: dict[int, tuple[float | None, float | None]] = {0: (None, None), 1: (0, None), 2: (-1, 1), 3: (0, 6)}


def zero_point(tensor: Tensor) -> int:
    return int(tensor.zero_point[0]) + OFFSETS[tensor.type]


class Builder:
    """An ONNX graph under construction. `codes` names the uint8 value of each TFLite tensor."""

    def __init__(self, source: Graph) -> None:
        shapes = [[tensor.shape for tensor in tensors] for tensors in (source.inputs, source.outputs)]
        if [[len(shape) for shape in side] for side in shapes] not in ([[4], [2]], [[4], [2, 2]]):
            raise ExportError(f"the TFLite file maps {shapes[0]} to {shapes[1]}, expected one image to one vector")
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.codes: dict[int, str] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._reals: dict[tuple[str, ...], str] = {}
        self._count = 0
        self._outputs = source.outputs
        self._entry = source.inputs[0]
        self._flat = {self._entry.index: INPUT}

    def add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        import onnx

        self._count += 1
        name = f"{op_type.lower()}_{self._count}"
        self.nodes.append(onnx.helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: Any, *, shared: bool = True) -> str:
        """Return the name of an initializer with these values. It is reused unless it must not be shared."""
        import onnx

        array = np.asarray(values, dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if not shared or key not in self._names:
            name = f"{array.dtype}_{len(self.constants) + 1}"
            self.constants.append(onnx.numpy_helper.from_array(array, name))
            if not shared:
                return name
            self._names[key] = name
        return self._names[key]

    def parameters(self, tensor: Tensor) -> list[str]:
        """Return the names of an activation's scale and uint8 zero point. Raises ExportError unless it has 8 bits and one scale."""
        if tensor.type not in OFFSETS or len(tensor.scale) != 1:
            quantization = f"{tensor.type} with {len(tensor.scale)} scales"
            raise ExportError(f"the TFLite tensor {tensor.name!r} is {quantization}, expected INT8 with one scale")
        return [self.constant(tensor.scale[0], np.float32), self.constant(zero_point(tensor), np.uint8)]

    def code(self, tensor: Tensor, rank: int | None = None) -> str:
        """Return the name of a tensor's uint8 value; a constant gets `rank` dimensions."""
        self.parameters(tensor)
        if tensor.data is None:
            if rank not in (None, len(tensor.shape)):
                raise ExportError(f"{tensor.name!r} has the shape {tensor.shape}, expected {rank} dimensions")
            if tensor.index not in self.codes:
                self.codes[tensor.index] = self.add("Transpose", [self._flat[tensor.index]], perm=TO_NCHW)
            return self.codes[tensor.index]
        shape = (1,) * ((rank or 0) - tensor.data.ndim) + tensor.data.shape
        values = (tensor.data.astype(np.int16) + OFFSETS[tensor.type]).reshape(shape)
        return self.constant(values.transpose(TO_NCHW) if values.ndim == 4 else values, np.uint8)

    def real(self, tensor: Tensor, rank: int | None = None) -> str:
        return self.dequantize(self.code(tensor, rank), tensor)

    def dequantize(self, code: str, like: Tensor) -> str:
        """Return the name of the real value of codes with a tensor's scale and zero point. The node is made once."""
        value = (code, *self.parameters(like))
        if value not in self._reals:
            self._reals[value] = self.add("DequantizeLinear", value)
        return self._reals[value]

    def recode(self, tensor: Tensor, like: Tensor) -> str:
        """Return the name of a tensor's value in another's codes. If scale and zero point are equal, it is its own value."""
        if self.parameters(tensor) == self.parameters(like):
            return self.code(tensor)
        # with real values between them, ONNX Runtime would merge the two quantizations and drop the first
        ratio = self.constant(like.scale[0] / tensor.scale[0], np.float32)
        bare = self.bare(self.code(tensor), tensor, zero_point(tensor))
        return self.add("QuantizeLinear", [bare, ratio, self.parameters(like)[1]])

    def bare(self, code: str, like: Tensor, zero: int) -> str:
        """Return the name of codes as float32, code - zero. The codes have the scale and zero point of `like`."""
        if code == self.codes.get(self._entry.index):  # the first node to read the input defines its scale
            code = self.add("QuantizeLinear", [self.dequantize(code, like), *self.parameters(like)])
        return self.add("DequantizeLinear", [code, self.constant(1, np.float32), self.constant(zero, np.uint8)])

    def weights(self, values: np.ndarray, tensor: Tensor) -> str:
        """Return the name of int8 weights' real value, quantized per tensor or per output: the first axis, or a matrix's last."""
        axis = 1 if values.ndim == 2 else 0
        if tensor.type != "INT8" or np.any(tensor.zero_point) or len(tensor.scale) not in (1, values.shape[axis]):
            raise ExportError(f"the weights {tensor.name!r} are {tensor.type}, expected INT8 with zero points of 0")
        return self._dequantized(values, np.int8, tensor.scale, axis)

    def bias(self, tensor: Tensor, scale: np.ndarray) -> str:
        """Return the name of an int32 bias's real value; `scale` is the input's scale times the weights'."""
        if tensor.type != "INT32" or tensor.data is None:
            raise ExportError(f"the bias {tensor.name!r} is {tensor.type}, expected a constant of INT32")
        return self._dequantized(tensor.data, np.int32, scale)

    def _dequantized(self, values: np.ndarray, dtype: Any, scale: np.ndarray, axis: int = 0) -> str:
        scale = scale if len(scale) > 1 else scale[0]
        # on x86 without VNNI, ONNX Runtime 1.32 converts int8 weights to uint8, which fails the second time for a shared initializer
        zeros = self.constant(np.zeros(np.shape(scale)), dtype, shared=False)
        inputs = [self.constant(values, dtype, shared=False), self.constant(scale, np.float32), zeros]
        return self.add("DequantizeLinear", inputs, axis=axis)

    def quantize(self, real: str, tensor: Tensor, activation: int = 0) -> None:
        """Define a TFLite tensor as the quantized real value, after the fused activation."""
        self.store(self.add("QuantizeLinear", [real, *self.parameters(tensor)]), tensor, activation)

    def store(self, code: str, tensor: Tensor, activation: int = 0) -> None:
        """Define a tensor as these codes, after the fused activation (kernel_util.cc, CalculateActivationRangeQuantized)."""
        if activation not in ACTIVATIONS:
            known = ", ".join(map(str, ACTIVATIONS))
            raise ExportError(f"{tensor.name!r} has TFLite's fused activation {activation}, expected one of {known}")
        bounds = ["", ""]
        for side, limit in enumerate(ACTIVATIONS[activation]):
            if limit is not None:
                bound = min(max(round(limit / float(tensor.scale[0])) + zero_point(tensor), 0), 255)
                if bound != (0, 255)[side]:
                    bounds[side] = self.constant(bound, np.uint8)
        self.codes[tensor.index] = self.add("Clip", [code, *bounds]) if any(bounds) else code

    def flat(self, tensor: Tensor) -> str:
        """Return the name of a tensor's uint8 value in TFLite's order of dimensions."""
        if tensor.index in self._flat or len(tensor.shape) != 4:
            return self._flat.get(tensor.index) or self.code(tensor)
        return self.add("Transpose", [self.code(tensor)], perm=TO_NHWC)

    def reshape(self, code: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", [code, self.constant([0, *shape], np.int64)])

    def finish(self) -> None:
        for tensor, title in zip(self._outputs, (OUTPUT, FEATURES), strict=False):
            code, parameters = self.codes[tensor.index], self.parameters(tensor)
            last = next(node for node in self.nodes if code in node.output)
            if last.op_type != "QuantizeLinear" or list(last.input[1:]) != parameters:
                code = self.add("QuantizeLinear", [self.add("DequantizeLinear", [code, *parameters]), *parameters])
            for node in self.nodes:
                node.input[:] = [title if name == code else name for name in node.input]
                node.output[:] = [title if name == code else name for name in node.output]


FOLD = 4


def fold(kernel: np.ndarray, pads: list[int], width: int, out_width: int) -> tuple[np.ndarray, list[int]] | None:
    """Return kernel and padding of a convolution over rows folded by FOLD, stride 1 and dilation 1; None if the columns do not divide.

    out[FOLD * J + b] = sum over k of in[FOLD * J + b - left + k] * kernel[k] becomes a sum over whole groups of FOLD columns.

    Args:
        kernel: int8, shape (outputs, channels, height, width).
        pads: top, left, bottom, right.

    Returns:
        int8 kernel, shape (FOLD * outputs, FOLD * channels, height, groups), and its padding, in groups left and right.
    """
    outputs, channels, rows, columns = kernel.shape
    top, left, bottom, _ = pads
    before = -(-left // FOLD)
    groups = before + (FOLD - 1 - left + columns - 1) // FOLD + 1
    after = out_width // FOLD - width // FOLD - before + groups - 1
    if width % FOLD or out_width % FOLD or after < 0:
        return None
    folded = np.zeros((FOLD, outputs, FOLD, channels, rows, groups), kernel.dtype)
    for column in range(FOLD):
        for k in range(columns):
            group, within = divmod(column - left + k, FOLD)
            folded[column, :, within, :, :, group + before] = kernel[:, :, :, k]
    return folded.reshape(FOLD * outputs, FOLD * channels, rows, groups), [top, before, bottom, after]


OPSET = 17
IR_VERSION = 8  # the oldest with this opset

BATCH = "batch"
METADATA = "edgecnn.quantization"
"""The `metadata_props` key under which an int8 file stores the scale and zero point of its input and outputs, as JSON."""

METADATA_NAMES = {INPUT: "input", OUTPUT: "output", FEATURES: FEATURES}

TIE = 2.0**-20
"""An average is enlarged by this fraction before rounding: more than float32's error, and too little to push an average
of up to 4,096 codes past the next tie."""


def convert(tflite: bytes) -> "onnx.ModelProto":
    """Build the ONNX graph of a full-int8 TFLite file with one image input, and one vector or that and its features as outputs.

    Input and output are uint8. If the int8 code is pixel - 128, the input is the pixel itself. Scales and zero points are stored in
    `metadata_props` under METADATA, because ONNX Runtime does not expose those of the DequantizeLinear and QuantizeLinear nodes.
    Raises ExportError for an operator without a translation here, a float tensor, or other inputs and outputs; the message names it.
    """
    import onnx

    source = read(tflite)
    builder = Builder(source)
    for operator in source.operators:
        if all(tensor.type.startswith("INT") and not tensor.scale.size for tensor in operator.outputs):
            continue  # it computes a shape, which the output tensor already states
        if operator.name not in OPERATORS:
            raise ExportError(
                f"the int8 TFLite file holds {operator.name}, which edgecnn cannot convert to ONNX int8. "
                f"Replace the layer that makes it, or export float32 instead. Supported: {', '.join(sorted(OPERATORS))}."
            )
        OPERATORS[operator.name](builder, operator)
    builder.finish()
    ends = {INPUT: source.inputs[0], **dict(zip((OUTPUT, FEATURES), source.outputs, strict=False))}
    entry_info, *output_infos = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, [BATCH, *tensor.shape[1:]])
        for name, tensor in ends.items()
    )
    graph = onnx.helper.make_graph(builder.nodes, "int8", [entry_info], output_infos, builder.constants)
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="edgecnn")
    numbers = {
        METADATA_NAMES[name]: {"scale": float(item.scale[0]), "zero_point": zero_point(item)}
        for name, item in ends.items()
    }
    onnx.helper.set_model_props(model, {METADATA: json.dumps(numbers, sort_keys=True)})
    return model


def padding(options: Any, x: Tensor, out: Tensor, kernel: Sequence[int]) -> list[int]:
    """Return a window's padding: top, left, bottom, right. TFLite's "same" puts the odd one at the end."""
    if options.padding == 1:  # VALID
        return [0, 0, 0, 0]
    dilations = (getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1))
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    strides = (options.strideH, options.strideW)
    totals = [max((out.shape[1 + i] - 1) * strides[i] + spans[i] - x.shape[1 + i], 0) for i in (0, 1)]
    return [total // 2 for total in totals] + [total - total // 2 for total in totals]


def entry(operator: Operator) -> Tensor:
    assert operator.inputs[0] is not None
    return operator.inputs[0]


def constant(operator: Operator, position: int) -> tuple[Tensor, np.ndarray]:
    tensor = operator.inputs[position] if position < len(operator.inputs) else None
    if tensor is None or tensor.data is None:
        where = f"{operator.name} {operator.outputs[0].name!r}"
        raise ExportError(f"{where} computes its input {position}, expected a constant. Export float32 instead.")
    return tensor, tensor.data


def weighted(
    builder: Builder, operator: Operator, x: str, weights: Tensor, values: np.ndarray, times: int = 1
) -> list[str]:
    """Return the inputs of a Conv or Gemm: `x`, the weights, which hold the outputs `times` times, and the bias, if any."""
    scale = np.tile(weights.scale, times if len(weights.scale) > 1 else 1)
    inputs = [x, builder.weights(values, dataclasses.replace(weights, scale=scale))]
    if len(operator.inputs) > 2 and operator.inputs[2] is not None:
        bias, data = constant(operator, 2)
        bias = dataclasses.replace(bias, data=np.tile(data, times))
        inputs.append(builder.bias(bias, entry(operator).scale[0] * scale))
    return inputs


def convolution(builder: Builder, operator: Operator) -> None:
    """CONV_2D, and DEPTHWISE_CONV_2D, whose weights are (1, height, width, channels)."""
    x, out, options = entry(operator), operator.outputs[0], operator.options
    weights, values = constant(operator, 1)
    kernel = values.transpose((3, 0, 1, 2) if operator.name == "DEPTHWISE_CONV_2D" else TO_NCHW)
    group = x.shape[3] // kernel.shape[1]
    pads = padding(options, x, out, kernel.shape[2:])
    few = x.shape[3] < FOLD and group == 1 and kernel.shape[2:] != (1, 1)
    folded = None
    if few and options.strideW == options.dilationWFactor == 1:
        folded = fold(kernel, pads, x.shape[2], out.shape[2])
    if folded:
        kernel, pads = folded
        code = builder.reshape(builder.flat(x), [x.shape[1], x.shape[2] // FOLD, FOLD * x.shape[3]])
        code = builder.add("Transpose", [code], perm=TO_NCHW)
    elif few:
        code = channels_repeated(builder, x)
        kernel = np.pad(kernel, ((0, 0), (0, FOLD - x.shape[3]), (0, 0), (0, 0)))
    else:
        code = builder.code(x)
    real = builder.add(
        "Conv",
        weighted(builder, operator, builder.dequantize(code, x), weights, kernel, FOLD if folded else 1),
        kernel_shape=kernel.shape[2:],
        strides=[options.strideH, options.strideW],
        dilations=[options.dilationHFactor, options.dilationWFactor],
        pads=pads,
        group=group,
    )
    code = builder.add("QuantizeLinear", [real, *builder.parameters(out)])
    if folded:
        code = builder.reshape(builder.add("Transpose", [code], perm=TO_NHWC), out.shape[1:])
        code = builder.add("Transpose", [code], perm=TO_NCHW)
    builder.store(code, out, options.fusedActivationFunction)


def channels_repeated(builder: Builder, x: Tensor) -> str:
    code = builder.code(x)
    whole, rest = divmod(FOLD, x.shape[3])
    codes = [code] * whole
    if rest:
        codes.append(builder.add("Slice", [code, *(builder.constant([value], np.int64) for value in (0, rest, 1))]))
    return builder.add("Concat", codes, axis=1)


def fully_connected(builder: Builder, operator: Operator) -> None:
    """FULLY_CONNECTED: a Gemm with its input flattened if necessary. Transposed weights are the faster form."""
    x, out, options = entry(operator), operator.outputs[0], operator.options
    weights, values = constant(operator, 1)
    if len(out.shape) != 2 or options.weightsFormat:
        raise ExportError(
            f"FULLY_CONNECTED {out.name!r} has the shape {out.shape} or shuffled weights, expected two dimensions and plain weights"
        )
    code = builder.code(x) if len(x.shape) == 2 else builder.reshape(builder.flat(x), [values.shape[1]])
    inputs = weighted(builder, operator, builder.dequantize(code, x), weights, values.T)
    builder.quantize(builder.add("Gemm", inputs), out, options.fusedActivationFunction)


def pooling(builder: Builder, operator: Operator) -> None:
    x, out, options = entry(operator), operator.outputs[0], operator.options
    window: dict[str, Any] = {
        "kernel_shape": [options.filterHeight, options.filterWidth],
        "strides": [options.strideH, options.strideW],
        "pads": padding(options, x, out, (options.filterHeight, options.filterWidth)),
    }
    code = builder.recode(x, out)
    if operator.name == "MAX_POOL_2D":
        code = builder.add("MaxPool", [code], **window)
    else:
        # TFLite averages int8 codes and rounds ties away from code zero; ONNX Runtime rounds ties to even. Here the
        # average of the codes is slightly enlarged, so there are no ties.
        zero = OFFSETS[out.type]
        average = builder.add("AveragePool", [builder.bare(code, out, zero)], **window)
        inputs = [average, builder.constant(1 - TIE, np.float32), builder.constant(zero, np.uint8)]
        code = builder.add("QuantizeLinear", inputs)
    builder.store(code, out, options.fusedActivationFunction)


def mean(builder: Builder, operator: Operator) -> None:
    x, out = entry(operator), operator.outputs[0]
    over = sorted(int(axis) % len(x.shape) for axis in constant(operator, 1)[1].ravel())
    if len(x.shape) != 4 or over != [1, 2]:
        raise ExportError(
            f"MEAN {out.name!r} is over the axes {over} of {x.shape}, expected axes 1 and 2 of four dimensions"
        )
    code = builder.add(
        "QuantizeLinear", [builder.add("GlobalAveragePool", [builder.real(x)]), *builder.parameters(out)]
    )
    if not operator.options.keepDims:
        code = builder.reshape(builder.add("Transpose", [code], perm=TO_NHWC), out.shape[1:])
    builder.store(code, out)


def arithmetic(builder: Builder, operator: Operator) -> None:
    out = operator.outputs[0]
    real = [builder.real(tensor, len(out.shape)) for tensor in operator.inputs if tensor is not None]
    builder.quantize(builder.add(operator.name.title(), real), out, operator.options.fusedActivationFunction)


def function(builder: Builder, operator: Operator) -> None:
    x, out = entry(operator), operator.outputs[0]
    attributes = {}
    if operator.name == "SOFTMAX":
        if operator.options.beta != 1:
            raise ExportError(f"SOFTMAX {out.name!r} has beta {operator.options.beta:g}, expected 1")
        attributes["axis"] = 1 if len(x.shape) == 4 else -1
    op_type = {"LOGISTIC": "Sigmoid", "TANH": "Tanh", "SOFTMAX": "Softmax"}[operator.name]
    builder.quantize(builder.add(op_type, [builder.real(x)], **attributes), out)


def recoding(builder: Builder, operator: Operator) -> None:
    """QUANTIZE, RELU, RELU6 and RELU_N1_TO_1: the same values in other codes, within the activation's range."""
    x, out = entry(operator), operator.outputs[0]
    activation = {"QUANTIZE": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}[operator.name]
    builder.store(builder.recode(x, out), out, activation)


def reshaping(builder: Builder, operator: Operator) -> None:
    """RESHAPE, SQUEEZE and EXPAND_DIMS: the batch stays first, and values keep TFLite's order."""
    x, out = entry(operator), operator.outputs[0]
    sizes = out.signature[1:]
    if sizes.count(-1) > 1 or (-1 not in sizes and math.prod(sizes) != math.prod(x.shape[1:])):
        into = f"turns {x.signature} into {out.signature}"
        raise ExportError(f"{operator.name} {out.name!r} {into}, expected the same batch and at most one unknown size")
    code = builder.reshape(builder.flat(x), sizes)
    builder.store(builder.add("Transpose", [code], perm=TO_NCHW) if len(out.shape) == 4 else code, out)


def concatenation(builder: Builder, operator: Operator) -> None:
    out, options = operator.outputs[0], operator.options
    axis = options.axis % len(out.shape)
    if axis == 0 or any(tensor is None for tensor in operator.inputs):
        raise ExportError(f"CONCATENATION {out.name!r} is along the batch, expected another axis")
    codes = [builder.recode(tensor, out) for tensor in operator.inputs if tensor is not None]
    axis = TO_NHWC[axis] if len(out.shape) == 4 else axis
    builder.store(builder.add("Concat", codes, axis=axis), out, options.fusedActivationFunction)


def pad(builder: Builder, operator: Operator) -> None:
    """PAD and PADV2, with a constant: the real zero, or PADV2's own value."""
    x, out = entry(operator), operator.outputs[0]
    order = TO_NCHW if len(out.shape) == 4 else range(len(out.shape))
    pads = constant(operator, 1)[1][list(order)].T.ravel()
    fill = zero_point(out)
    if operator.name == "PADV2":
        fill = int(constant(operator, 2)[1].ravel()[0]) + OFFSETS[out.type]
    inputs = [builder.recode(x, out), builder.constant(pads, np.int64), builder.constant(fill, np.uint8)]
    builder.store(builder.add("Pad", inputs), out)


OPERATORS: dict[str, Callable[[Builder, Operator], None]] = {
    **dict.fromkeys(("ADD", "MUL", "SUB"), arithmetic),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), pooling),
    "CONCATENATION": concatenation,
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D"), convolution),
    **dict.fromkeys(("EXPAND_DIMS", "RESHAPE", "SQUEEZE"), reshaping),
    "FULLY_CONNECTED": fully_connected,
    **dict.fromkeys(("LOGISTIC", "SOFTMAX", "TANH"), function),
    "MEAN": mean,
    **dict.fromkeys(("PAD", "PADV2"), pad),
    **dict.fromkeys(("QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1"), recoding),
}
