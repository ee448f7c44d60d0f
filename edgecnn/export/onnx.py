"""ONNX files: float32 through tf2onnx, float16 from that, and int8 from the TFLite file, on request with the last layer's features."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import ExportError, first_line
from edgecnn.export import onnx_int8
from edgecnn.export.flatbuffer import load_schema, packed, read, unpacked
from edgecnn.export.onnx_int8 import FEATURES, INPUT, OUTPUT
from edgecnn.files import quiet_stderr
from edgecnn.networks.keras import tf
from edgecnn.networks.predict import FloatModel

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


LARGEST_FLOAT16 = float(np.finfo(np.float16).max)


def float32(model: FloatModel, features: bool = False) -> bytes:
    """Convert a float model to a float32 ONNX file with a dynamic batch. Raises ExportError if tf2onnx fails or the file is invalid."""
    with quiet_stderr():
        return _checked(_float32(model, features))


def float16(model: FloatModel, features: bool = False) -> bytes:
    """Convert a float model to a float16 ONNX file with float32 input and output. Raises ExportError also if a weight is too large.

    ONNX Runtime runs it in float16 on CUDA. On a CPU without float16 kernels it inserts casts and is no faster.
    """
    with quiet_stderr():
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        source = _float32(model, features)
        for tensor in source.graph.initializer:  # the converter would clip them
            largest = np.max(np.abs(onnx.numpy_helper.to_array(tensor)), initial=0.0)
            if tensor.data_type == onnx.TensorProto.FLOAT and np.isfinite(largest) and largest > LARGEST_FLOAT16:
                raise ExportError(
                    f"{tensor.name!r} holds {largest:g}, but the largest float16 value is {LARGEST_FLOAT16:g}. "
                    "Export float32 instead."
                )
        converted = OnnxModel(convert_float_to_float16(source, keep_io_types=True, disable_shape_infer=True))
        converted.topological_sort(is_deterministic=True)
        return _checked(converted.model)


def int8(tflite: bytes) -> bytes:
    """Convert a full-int8 TFLite file to an ONNX file with the same weights, scales and zero points: `onnx_int8.convert`."""
    with quiet_stderr():
        return _checked(onnx_int8.convert(tflite))


def _float32(model: FloatModel, features: bool) -> "onnx.ModelProto":
    import tf2onnx

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=INPUT)]
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    forward = tf.function(lambda pixels: model(pixels, training=False), input_signature=signature)
    try:
        converted, _ = tf2onnx.convert.from_function(forward, signature, opset=onnx_int8.OPSET)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise ExportError(f"tf2onnx could not convert the model: {error}") from error
    converted.graph.doc_string = ""  # it contains TensorFlow's running function number
    _name(converted.graph)
    if features:
        add_features(converted.graph, onnx_int8.BATCH)
    return converted


def _checked(model: "onnx.ModelProto") -> bytes:
    """Return a model's bytes once onnx.checker has accepted it, with types and shapes inferred throughout."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX file is not valid: {first_line(error)}") from error
    opsets = {item.domain: item.version for item in model.opset_import if item.domain in ("", "ai.onnx")}
    batches = {value.type.tensor_type.shape.dim[0].dim_param for value in (model.graph.input[0], model.graph.output[0])}
    if set(opsets.values()) != {onnx_int8.OPSET} or batches != {onnx_int8.BATCH}:
        raise ExportError(
            f"the ONNX file has opset {sorted(opsets.values())} and batch {sorted(batches)}, "
            f"expected {onnx_int8.OPSET} and {onnx_int8.BATCH!r}"
        )
    return model.SerializeToString(deterministic=True)


def _name(graph: "onnx.GraphProto") -> None:
    """Name a graph's input, output and batch, and renumber all other names: tf2onnx 1.17 numbers them across the whole process."""
    names = {"": "", graph.input[0].name: INPUT, graph.output[0].name: OUTPUT}

    def named(before: str) -> str:
        return names.setdefault(before, f"{before.partition('__')[0]}__{len(names)}")

    for node in graph.node:
        node.input[:] = map(named, node.input)
        node.output[:] = map(named, node.output)
        node.name = f"{node.op_type}_{node.output[0]}"
    for item in (*graph.initializer, *graph.value_info, graph.input[0], graph.output[0]):
        item.name = named(item.name)
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = onnx_int8.BATCH
