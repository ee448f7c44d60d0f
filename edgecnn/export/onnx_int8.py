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
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.export.few_channels import FOLD, fold
from edgecnn.export.flatbuffer import Operator, Tensor, read
from edgecnn.export.qdq import FEATURES, INPUT, OFFSETS, OUTPUT, TO_NCHW, TO_NHWC, Builder, zero_point

if TYPE_CHECKING:
    import onnx

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

    Raises:
        ExportError: for an operator without a translation here, a float tensor, or other inputs and outputs; the message names it.
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
