"""TFLite files, by TensorFlow's own converter."""

import warnings

from edgecnn.errors import ExportError
from edgecnn.export.flatbuffer import FLOATS, read
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
        model: trained quantization-aware; its ranges become the file's scales, and no representative dataset is needed.

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
    graph = read(data)
    touched_by: dict[int, str] = {}
    for operator in graph.operators:
        touched_by.update({tensor.index: operator.name for tensor in operator.outputs})
        for tensor in operator.inputs:
            if tensor is not None:
                touched_by.setdefault(tensor.index, operator.name)
    floats = [tensor for tensor in graph.tensors if tensor.type in FLOATS]
    return [(touched_by.get(tensor.index, "no operator"), tensor.name) for tensor in floats]


def refuse_float(data: bytes) -> None:
    """Raise ExportError if an int8 TFLite file holds a float tensor, naming the operators."""
    found = float_tensors(data)
    if found:
        operators = ", ".join(sorted({operator for operator, _ in found}))
        raise ExportError(
            f"the int8 TFLite file holds {len(found)} float tensors, at: {operators} (the first is {found[0][1]!r}). "
            "A layer there cannot be quantized; replace it by one that can."
        )
