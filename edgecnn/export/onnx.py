"""ONNX files, by tf2onnx."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.errors import ExportError
from edgecnn.files import quiet_stderr
from edgecnn.networks.keras import keras, tf

if TYPE_CHECKING:
    import onnx

OPSET = 17
INPUT = "pixels"
OUTPUT = "logits"
BATCH = "batch"


def float32(model: "keras.Model") -> bytes:
    """Convert a float Keras model to a float32 ONNX file with a dynamic batch.

    Args:
        model: float32 (batch, height, width, channels) to logits (batch, num_classes).

    Returns:
        The file's bytes, checked by onnx.checker.

    Raises:
        ExportError: if tf2onnx fails.
    """
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name=INPUT)]
    return _finish(lambda tf2onnx: tf2onnx.convert.from_keras(model, signature, opset=OPSET))


def int8(tflite: bytes) -> bytes:
    """Convert an int8 TFLite file to an ONNX graph of quantize and dequantize nodes (QDQ) with the same parameters.

    Args:
        tflite: a full-int8 TFLite file's bytes.

    Returns:
        The file's bytes: int8 (batch, height, width, channels) to int8 logits (batch, num_classes), checked by onnx.checker.

    Raises:
        ExportError: if tf2onnx fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(tflite)
        return _finish(lambda tf2onnx: tf2onnx.convert.from_tflite(str(path), opset=OPSET))


def _finish(convert: Any) -> bytes:
    """Run a tf2onnx conversion and return the named, checked model's bytes."""
    with quiet_stderr():
        import onnx
        import tf2onnx

        logging.getLogger("tf2onnx").setLevel(logging.ERROR)
        try:
            model, _ = convert(tf2onnx)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
            raise ExportError(f"tf2onnx could not convert the model: {error}") from error
        _rename(model.graph, model.graph.input[0], INPUT)
        _rename(model.graph, model.graph.output[0], OUTPUT)
        onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _rename(graph: "onnx.GraphProto", value: "onnx.ValueInfoProto", name: str) -> None:
    """Rename a graph's input or output wherever it stands, and its first dimension to the batch."""
    before = value.name
    for node in graph.node:
        node.input[:] = [name if item == before else item for item in node.input]
        node.output[:] = [name if item == before else item for item in node.output]
    value.name = name
    value.type.tensor_type.shape.dim[0].dim_param = BATCH
