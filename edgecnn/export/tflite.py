"""TFLite files, made with TensorFlow's own converter, and the images that calibrate them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edgecnn.data import Dataset, Progress, open_run_dataset
from edgecnn.data.dataset import require_split
from edgecnn.data.decoding import balanced
from edgecnn.errors import ExportError, first_line, nearest
from edgecnn.export.flatbuffer import FLOATS, matched, read
from edgecnn.files import quiet_stderr, sha256
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import FloatModel
from edgecnn.pixels import to_real
from edgecnn.run_info import RepresentativeInfo
from edgecnn.runs import Run

INPUT = "pixels"
OUTPUT = "logits"
IO_TYPES = {"int8": tf.int8, "uint8": tf.uint8, "float32": tf.float32}


class RepresentativeDataset(NamedTuple):
    """A converter's calibration data: uint8 images (n, height, width, channels), and the scale and zero point of their codes."""

    images: np.ndarray
    scale: float
    zero_point: int

    def batches(self) -> Iterator[list[np.ndarray]]:
        """Yield one real input at a time. The first gets a black and a white corner pixel, so the converter sees the full range."""
        for index, image in enumerate(self.images):
            if index == 0:
                image = image.copy()
                image[0, 0], image[-1, -1] = 0, 255
            yield [to_real(image[np.newaxis], self.scale, self.zero_point)]


def float32(model: FloatModel) -> bytes:
    """Convert a float model, (batch, height, width, channels) to logits, to float32 TFLite. Raises ExportError if the converter fails."""
    return _convert(_converter(model), "float32")


def float16(model: FloatModel) -> bytes:
    """Convert a float model to a TFLite file with float16 weights. Input, output and arithmetic are float32. See `float32`."""
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return _convert(converter, "float16")


def int16x8(model: FloatModel, dataset: RepresentativeDataset) -> bytes:
    """Convert a float model to a TFLite file with int16 activations, int8 weights (per channel), and float32 input and output.

    Raises ExportError if the converter fails, or any other tensor is float; the message names the op.
    """
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = dataset.batches
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        tf.lite.OpsSet.TFLITE_BUILTINS,  # so that the error below can name an operator without an int16 form
    ]
    data = _convert(converter, "int16x8")
    refuse_float(data, "float32", "int16x8")
    return data


def int8(model: "keras.Model", io: str = "int8", *, signature: bool = True) -> bytes:
    """Convert a fake-quantized Keras model to a TFLite file with int8 weights and activations. Its ranges become the file's scales.

    `io` is the type of input and output, one of IO_TYPES. For float32 the graph's ends quantize and dequantize. Without a signature, which
    names input and output, the file gives the same answers and takes a third of the time to make.
    Raises ExportError if the converter fails, or the file contains an internal float tensor; the message names the op that makes it.
    """
    return _int8(_converter(model, signature), io)


def int8_post_training(
    model: FloatModel,
    dataset: RepresentativeDataset,
    io: str = "int8",
    *,
    signature: bool = True,
    in_float: Sequence[str] = (),
) -> bytes:
    """Quantize a float model to an int8 TFLite file after training, as in `int8`; the layers `in_float` of a Keras model stay in float.

    Raises ExportError also if the file's input codes are not the dataset's, or a layer is not an operator of the file.
    """
    converter = _converter(model, signature)
    converter.representative_dataset = dataset.batches
    data = _partly_int8(converter, model, io, in_float) if in_float else _int8(converter, io)
    if io != "float32":
        tensor = read(data).inputs[0]
        scale, zero_point = float(tensor.scale[0]), int(tensor.zero_point[0]) - (128 if io == "uint8" else 0)
        if not np.isclose(scale, dataset.scale, rtol=1e-5, atol=0) or zero_point != dataset.zero_point:
            raise ExportError(
                f"the converter chose the input scale {scale:.8g} and zero point {zero_point}, expected "
                f"{dataset.scale:.8g} and {dataset.zero_point}. The model's first layer may clip its input. "
                "Set its range with --input-scale and --input-zero-point."
            )
    return data


def _int8(converter: "tf.lite.TFLiteConverter", io: str) -> bytes:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = IO_TYPES[io]
    converter.inference_output_type = IO_TYPES[io]
    data = _convert(converter, "int8")
    refuse_float(data, io)
    return data


def _partly_int8(converter: "tf.lite.TFLiteConverter", model: "keras.Model", io: str, in_float: Sequence[str]) -> bytes:
    # what TensorFlow's own QuantizationDebugger calls, TensorFlow 2.21
    from tensorflow.lite.python.convert import mlir_quantize

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter._experimental_calibrate_only = True
    calibrated = _convert(converter, "int8")
    pairs, _ = matched(model, read(calibrated), FLOATS)
    layers = {pair.layer: pair.tensor.name for pair in pairs}
    if missing := [name for name in in_float if name not in layers]:
        raise ExportError(
            f"no layer {missing[0]!r} in the TFLite file. {nearest(missing[0], layers)} edgecnn layers names them all."
        )
    with quiet_stderr():
        data: bytes = mlir_quantize(
            calibrated,
            fully_quantize=True,
            input_data_type=IO_TYPES[io],
            output_data_type=IO_TYPES[io],
            denylisted_nodes=[layers[name] for name in in_float],
        )
    changing = ("QUANTIZE", "DEQUANTIZE")
    floats = [one for one in read(data).operators if one.name not in changing and one.outputs[0].type in FLOATS]
    if len(floats) != len(set(in_float)):
        names = ", ".join(one.name for one in floats)
        raise ExportError(f"the TFLite file has {len(floats)} operators in float ({names}), expected {len(in_float)}.")
    return data


def _converter(model: FloatModel, signature: bool = True) -> "tf.lite.TFLiteConverter":
    shape = (None, *model.input_shape[1:])

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name=INPUT)])
    def forward(pixels):
        return {OUTPUT: model(pixels, training=False)}

    # the converter stores the object passed next to the function: a Keras model would be traced layer by layer, its variables are not
    variables = tf.Module()
    variables.held = list(model.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([forward.get_concrete_function()], variables)
    converter.experimental_lower_to_saved_model = signature  # only a saved model on the way gives the file a signature
    return converter


def _convert(converter: "tf.lite.TFLiteConverter", precision: str) -> bytes:
    with quiet_stderr(), warnings.catch_warnings():
        # "Statistics for quantized inputs were expected": the QAT ranges serve as these
        warnings.simplefilter("ignore")
        try:
            return converter.convert()
        except (tf.errors.OpError, ValueError, RuntimeError) as error:
            raise ExportError(
                f"TensorFlow could not convert the model to {precision} TFLite: {first_line(error)}"
            ) from error


def float_tensors(data: bytes, io: str = "int8") -> list[tuple[str, str]]:
    """Return (operator that makes or reads it, name) of each float tensor in a TFLite file, except its ends if `io` is float32."""
    graph = read(data)
    ends = {tensor.index for tensor in (*graph.inputs, *graph.outputs)} if io == "float32" else set()
    touched_by: dict[int, str] = {}
    for operator in graph.operators:
        touched_by.update({tensor.index: operator.name for tensor in operator.outputs})
        for tensor in operator.inputs:
            if tensor is not None:
                touched_by.setdefault(tensor.index, operator.name)
    floats = [tensor for tensor in graph.tensors if tensor.type in FLOATS and tensor.index not in ends]
    return [(touched_by.get(tensor.index, "no operator"), tensor.name) for tensor in floats]


def refuse_float(data: bytes, io: str = "int8", precision: str = "int8") -> None:
    """Raise ExportError if a quantized TFLite file holds a float tensor, naming the operators. `io` as in `float_tensors`."""
    tensors = float_tensors(data, io)
    if tensors:
        operators = ", ".join(sorted({operator for operator, _ in tensors}))
        raise ExportError(
            f"the {precision} TFLite file holds {len(tensors)} float tensors, at: {operators} (the first is {tensors[0][1]!r}). "
            "Its layer cannot be quantized; replace it with one that can."
        )


IMAGES = 500


def needs_representative_dataset(run: Run, precision: str) -> bool:
    """Return whether an export needs a representative dataset: int16x8 does, and int8 that is quantized after training."""
    return precision in ("int16x8", "int8-ptq") or (precision == "int8" and run.int8_method == "ptq")


def representative_dataset(
    run: Run, dataset: Dataset | None = None, progress: Progress | None = None
) -> RepresentativeDataset:
    """Draw a run's representative dataset from its training split, and record its hash in `run.json`.

    `run.json` sets the number of images and the seed under "representative_dataset"; the defaults are IMAGES and the recipe's seed.
    """
    info = run.info
    dataset = dataset or open_run_dataset(run, progress=progress)
    require_split(run, dataset, "train")
    settings = info.representative_dataset or RepresentativeInfo(images=IMAGES, seed=run.recipe.seed)
    split = dataset.load(("train",), **vars(info.input), stage="export", progress=progress)["train"]
    images = split.images[balanced(split.classes, settings.images, settings.seed)]
    drawn = replace(settings, split="train", drawn=len(images), sha256=sha256(images.tobytes()))
    if drawn != info.representative_dataset:
        run.write_info(replace(info, representative_dataset=drawn))
    return RepresentativeDataset(images, run.recipe.input_scale, run.recipe.input_zero_point)
