"""An int8 TFLite file in the form that other programs read: pixels in, scores out, both uint8."""

from typing import Any

import numpy as np

from edgecnn.errors import ExportError
from edgecnn.export.flatbuffer import load_schema, packed, unpacked
from edgecnn.export.qdq import FEATURES

PIXELS = "pixels_uint8"
SCORES = "scores_uint8"

SCORE_SCALE = 1 / 256
"""Scale of a quantized softmax, fixed by TFLite for int8 and uint8; the zero point is -128 or 0."""


def with_scores(data: bytes) -> bytes:
    """Put uint8 pixels before an int8 TFLite file of logits, and a softmax with uint8 scores after it. The features output is removed.

    pixel -> QUANTIZE -> the file's own graph -> SOFTMAX -> QUANTIZE -> score. The first code is pixel - 128, the last is code + 128, both
    exact. The answer is the int8 softmax of the file's logits, with scale 1/256 and zero point 0.
    Raises:
        ExportError: if the file's input or output is not one int8 tensor.
    """
    schema, model = load_schema(), unpacked(data)
    graph = model.subgraphs[0]
    if len(graph.outputs) == 2 and graph.tensors[graph.outputs[1]].name == FEATURES.encode():
        graph.outputs = graph.outputs[:1]
        for signature in model.signatureDefs or ():
            del signature.outputs[1:]
    ends = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
    if len(ends) != 2 or any(tensor.type != schema.TensorType.INT8 for tensor in ends):
        raise ExportError("scores need an int8 file with exactly one input and one output; this file has others.")
    codes, logits = ends

    def tensor(name: str, like: Any, type_: int, scale: float, zero_point: int) -> int:
        added = schema.TensorT()
        added.name, added.type, added.buffer = name.encode(), type_, 0  # buffer 0 is empty by convention
        added.shape, added.shapeSignature = like.shape, like.shapeSignature
        added.quantization = schema.QuantizationParametersT()
        added.quantization.scale = np.array([scale], np.float32)
        added.quantization.zeroPoint = np.array([zero_point], np.int64)
        graph.tensors.append(added)
        return len(graph.tensors) - 1

    def operator(code: int, version: int, read: int, made: int) -> Any:
        known = schema.OperatorCodeT()
        known.builtinCode, known.version = code, version
        known.deprecatedBuiltinCode = min(code, 127)  # the older field holds codes up to 127
        model.operatorCodes.append(known)
        added = schema.OperatorT()
        added.opcodeIndex = len(model.operatorCodes) - 1
        added.inputs, added.outputs = np.array([read], np.int32), np.array([made], np.int32)
        return added

    zero_point = int(codes.quantization.zeroPoint[0]) + 128
    old_input, old_output = int(graph.inputs[0]), int(graph.outputs[0])
    pixels = tensor(PIXELS, codes, schema.TensorType.UINT8, float(codes.quantization.scale[0]), zero_point)
    scores_int8 = tensor("scores_int8", logits, schema.TensorType.INT8, SCORE_SCALE, -128)
    scores = tensor(SCORES, logits, schema.TensorType.UINT8, SCORE_SCALE, 0)
    softmax = operator(schema.BuiltinOperator.SOFTMAX, 2, old_output, scores_int8)
    softmax.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
    softmax.builtinOptions = schema.SoftmaxOptionsT()
    softmax.builtinOptions.beta = 1.0
    quantize = schema.BuiltinOperator.QUANTIZE
    first, last = operator(quantize, 2, pixels, old_input), operator(quantize, 2, scores_int8, scores)
    graph.operators = [first, *graph.operators, softmax, last]
    graph.inputs, graph.outputs = np.array([pixels], np.int32), np.array([scores], np.int32)
    for signature in model.signatureDefs or ():
        (signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex) = (pixels, scores)
        signature.outputs[0].name = b"scores"
    return packed(model)
