"""ONNX files: float32 by tf2onnx, int8 from the TFLite file by `onnx_int8`."""

import logging
from typing import TYPE_CHECKING

from edgecnn.errors import ExportError
from edgecnn.export import onnx_int8
from edgecnn.export.qdq import INPUT, OUTPUT
from edgecnn.files import quiet_stderr
from edgecnn.networks.keras import keras, tf

if TYPE_CHECKING:
    import onnx


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
    with quiet_stderr():
        import onnx
        import tf2onnx

        logging.getLogger("tf2onnx").setLevel(logging.ERROR)
        try:
            converted, _ = tf2onnx.convert.from_keras(model, signature, opset=onnx_int8.OPSET)
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
            raise ExportError(f"tf2onnx could not convert the model: {error}") from error
        _name(converted.graph)
        onnx.checker.check_model(converted, full_check=True)
    return converted.SerializeToString(deterministic=True)


def int8(tflite: bytes) -> bytes:
    """Convert an int8 TFLite file to an ONNX file of the same weights, scales and zero points: `onnx_int8.convert`.

    Args:
        tflite: a full-int8 TFLite file's bytes.

    Returns:
        The file's bytes, checked by onnx.checker: uint8 (batch, height, width, channels) to uint8 logits
        (batch, num_classes).

    Raises:
        ExportError: for an operator that has no translation; the message names it.
    """
    with quiet_stderr():
        import onnx

        model = onnx_int8.convert(tflite)
        onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _name(graph: "onnx.GraphProto") -> None:
    """Name a graph's input, output and batch, and number all other names by their order.

    tf2onnx 1.17 numbers names on through the process, so that the same model would give another file each time.
    """
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
