"""TFLite files, by TensorFlow's own converter."""

import warnings

from edgecnn.errors import ExportError
from edgecnn.files import quiet_stderr
from edgecnn.networks.keras import keras, tf

INPUT = "pixels"
OUTPUT = "logits"


def float32(model: "keras.Model") -> bytes:
    """Convert a float Keras model to a float32 TFLite file.

    Args:
        model: float32 (batch, height, width, channels) to logits (batch, num_classes).

    Returns:
        The file's bytes.

    Raises:
        ExportError: if the converter fails.
    """
    return _convert(_converter(model), "float32")


def int8(model: "keras.Model") -> bytes:
    """Convert a fake-quantized Keras model to a TFLite file of int8 input, weights (per channel) and output.

    Args:
        model: trained quantization-aware; its ranges become the file's scales, so no representative dataset is asked for.

    Returns:
        The file's bytes.

    Raises:
        ExportError: if the converter fails, or the file holds a float tensor; the message names the op that makes it.
    """
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    data = _convert(converter, "int8")
    refuse_float(data)
    return data


def _converter(model: "keras.Model") -> "tf.lite.TFLiteConverter":
    shape = (None, *model.input_shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name=INPUT)])
    def forward(pixels):
        return {OUTPUT: model(pixels, training=False)}

    return tf.lite.TFLiteConverter.from_concrete_functions([forward.get_concrete_function()], model)


def _convert(converter: "tf.lite.TFLiteConverter", precision: str) -> bytes:
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Statistics for quantized inputs were expected": they are the QAT ranges
        try:
            return converter.convert()
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"TensorFlow could not convert the model to {precision} TFLite: {reason}") from error


def float_tensors(data: bytes) -> list[tuple[str, str]]:
    """Find the float tensors of a TFLite file.

    Args:
        data: a TFLite file's bytes.

    Returns:
        (operator, tensor name) of each float16, float32 or float64 tensor; the operator is the one that makes it, or
        that reads it where none does.
    """
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    float_types = {schema.TensorType.FLOAT16, schema.TensorType.FLOAT32, schema.TensorType.FLOAT64}
    op_names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    found = []
    for graph in model.subgraphs:
        touched_by = {}
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = op_names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            touched_by.update({index: name for index in operator.outputs})
            for index in operator.inputs:
                touched_by.setdefault(index, name)
        for index, tensor in enumerate(graph.tensors):
            if tensor.type in float_types:
                found.append((touched_by.get(index, "no operator"), tensor.name.decode()))
    return found


def refuse_float(data: bytes) -> None:
    """Raise ExportError if an int8 TFLite file holds a float tensor, naming the operators."""
    found = float_tensors(data)
    if found:
        operators = ", ".join(sorted({operator for operator, _ in found}))
        raise ExportError(
            f"the int8 TFLite file holds {len(found)} float tensors, at: {operators} (the first is {found[0][1]!r}). "
            "A layer there cannot be quantized; replace it by one that can."
        )
