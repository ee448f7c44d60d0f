"""Model files from any source, opened according to their contents, and whether a user's own network can be quantized."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.errors import EngineError, ExportError, NetworkError, first_line
from edgecnn.export.given import quantization
from edgecnn.files import sha256, sha256_file
from edgecnn.pixels import to_codes, to_real
from edgecnn.runtime.engines import Tensor, engine_text, open_engine
from edgecnn.runtime.model import dequantized

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFile:
    """An opened model with one image input (batch, height, width, channels) and one output (batch, num_classes).

    Input sizes that the file leaves open are -1. `run` takes images of the input's own type and returns the raw output.
    """

    format: str
    engine: str
    size_bytes: int
    sha256: str
    input: Tensor
    output: Tensor
    run: Callable[[np.ndarray], np.ndarray]

    def outputs(self, pixels: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
        """Run the model on uint8 pixels (n, height, width, channels), which it reads as scale * (pixel - 128 - zero_point).

        A quantized input reads the code of that value. An integer input without a scale reads the pixel (uint8) or pixel - 128 (int8).
        """
        dtype = self.input.dtype
        if np.issubdtype(dtype, np.floating):
            return self.run(to_real(pixels, scale, zero_point).astype(dtype))
        if not self.input.scale:
            return self.run(pixels if dtype == np.uint8 else to_codes(pixels).astype(dtype))
        limits = np.iinfo(dtype)
        codes = np.rint(to_real(pixels, scale, zero_point) / np.float32(self.input.scale)) + self.input.zero_point
        return self.run(np.clip(codes, limits.min, limits.max).astype(dtype))

    def values(self, pixels: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
        return self.dequantize(self.outputs(pixels, scale, zero_point))

    def dequantize(self, outputs: np.ndarray) -> np.ndarray:
        """Convert raw outputs to float32: scale * (code - zero_point), or the outputs themselves."""
        if not self.output.scale:
            return outputs.astype(np.float32)
        return dequantized(outputs, np.float32(self.output.scale), np.float32(self.output.zero_point))


def open_model_file(path: Path) -> ModelFile:
    """Open a model file by its type: .tflite, .onnx, .keras, .h5 or .hdf5, or a SavedModel folder.

    Raises NetworkError if a Keras file holds Python code; EngineError if the file is missing or of another type, or does not map one image
    to one vector of scores.
    """
    if not path.exists():
        raise EngineError(f"{path} does not exist. Name a .tflite, .onnx, .keras or .h5 file, or a SavedModel folder.")
    if path.is_dir():
        model = _tensorflow("saved-model", path)
    elif path.suffix in (".tflite", ".onnx"):
        model = _engine(path)
    elif path.suffix in (".keras", ".h5", ".hdf5"):
        model = _tensorflow("keras", path)
    else:
        raise EngineError(f"{path} is not a .tflite, .onnx, .keras or .h5 file, nor a SavedModel folder.")
    if len(model.input.shape) != 4 or len(model.output.shape) != 2 or model.input.shape[3] not in (1, 3):
        raise EngineError(
            f"{path} reads {model.input.shape} and gives {model.output.shape}; expected (batch, height, width, 1 or 3) "
            "and (batch, num_classes)."
        )
    return model


def _engine(path: Path) -> ModelFile:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read {path}: {first_line(error)}") from None
    engine = open_engine(None, data, path.suffix[1:])
    read, given, run = engine.input, engine.output, engine.run
    if path.suffix == ".onnx":
        # ONNX Runtime does not expose scales, and only edgecnn's own files have them in their metadata
        (scale, zero_point), (output_scale, output_zero_point) = quantization(data)
        read = read._replace(scale=scale, zero_point=zero_point)
        given = given._replace(scale=output_scale, zero_point=output_zero_point)
    channels_first = len(read.shape) == 4 and read.shape[1] in (1, 3) and read.shape[3] not in (1, 3)
    if channels_first:  # as in PyTorch
        read = read._replace(shape=tuple(read.shape[axis] for axis in (0, 2, 3, 1)))

        def run(batch: np.ndarray) -> np.ndarray:
            return engine.run(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))

    return ModelFile(
        format=path.suffix[1:],
        engine=engine_text(engine),
        size_bytes=len(data),
        sha256=sha256(data),
        input=read,
        output=given,
        run=run,
    )


def _tensorflow(format_: str, path: Path) -> ModelFile:
    from edgecnn.export.imported import LOAD_ERRORS, open_source
    from edgecnn.networks.keras import tf

    try:
        source = open_source(path)
    except NetworkError:
        raise
    except (ExportError, *LOAD_ERRORS) as error:
        raise EngineError(f"{path} cannot be opened: {first_line(error)}") from None

    def tensor(shape: Sequence[int | None], dtype: Any) -> Tensor:
        sizes = tuple(-1 if size is None else int(size) for size in shape)
        return Tensor("", sizes, np.dtype(tf.as_dtype(dtype).as_numpy_dtype), 0.0, 0)

    forward = tf.function(source.call, reduce_retracing=True)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listed = "".join(f"{file.relative_to(path).as_posix()} {sha256_file(file)}\n" for file in files)
    return ModelFile(
        format=format_,
        engine=source.program,
        size_bytes=sum(file.stat().st_size for file in files),
        sha256=sha256(listed.encode()) if path.is_dir() else sha256_file(path),
        input=tensor(source.shape, source.dtype),
        output=tensor(source.output.shape, source.output.dtype),
        run=lambda batch: forward(tf.constant(batch)).numpy(),
    )


ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "softmax", "tanh")
"""Activations inside a layer that can be quantized. For others, tensorflow-model-optimization 0.8.1 silently leaves floats."""


def refused_layers(model: "keras.Model") -> dict[str, str]:
    """Return the type of each layer that the quantization toolkit can neither wrap nor fold into others, in model order."""
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_configs,
        default_8bit_quantize_registry,
        default_8bit_quantize_scheme,
    )

    from edgecnn.networks.keras import keras

    nested = {layer.name: "a model within the model" for layer in model.layers if isinstance(layer, keras.Model)}
    if nested:
        return nested
    refused: dict[str, str] = {}
    for layer in model.layers:
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        if activation not in ACTIVATIONS:
            refused[layer.name] = f"{type(layer).__name__} with activation {activation}"

    class Registry(default_8bit_quantize_registry.Default8BitQuantizeRegistry):
        def supports(self, layer) -> bool:
            if not super().supports(layer):
                refused.setdefault(layer.name, type(layer).__name__)
            return True

        def get_quantize_config(self, layer):
            if super().supports(layer):
                return super().get_quantize_config(layer)
            return default_8bit_quantize_configs.NoOpQuantizeConfig()

    class Scheme(default_8bit_quantize_scheme.Default8BitQuantizeScheme):
        def get_quantize_registry(self):
            return Registry()

    toolkit = tfmot.quantization.keras
    with toolkit.quantize_scope():
        toolkit.quantize_apply(toolkit.quantize_annotate_model(model), Scheme())
    order = {layer.name: index for index, layer in enumerate(model.layers)}
    return dict(sorted(refused.items(), key=lambda item: order.get(item[0], len(order))))


def check_quantizable(model: "keras.Model", name: str, scale: float, zero_point: int) -> None:
    """Raise NetworkError unless a fresh float32 network can be fake-quantized and converted to a fully int8 file."""
    from edgecnn.export import tflite
    from edgecnn.train.phases import fake_quantize

    try:
        refused = [f"{layer} ({kind})" for layer, kind in refused_layers(model).items()]
        if not refused:
            tflite.int8(fake_quantize(model, scale, zero_point), signature=False)
            return
        more = f" and {len(refused) - 6} more" if len(refused) > 6 else ""
        reason = f"{', '.join(refused[:6])}{more} cannot be quantized."
    except (ExportError, RuntimeError, ValueError, TypeError) as error:
        reason = f"{first_line(error).removesuffix('.')}."
    raise NetworkError(
        f"{name} does not support quantization-aware training: {reason} "
        "Replace these parts, or quantize after training instead: --set qat.method=ptq"
    )
