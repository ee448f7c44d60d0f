"""The stage that starts a run from a finished file, int8 or float, which another program made: it is verified and bundled as it is."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.calibrate.input_range import InputRange, Labelled, Stated, find_range, line
from edgecnn.data.dataset import write_known
from edgecnn.errors import ExportError
from edgecnn.evaluate.answers import contract_of, device_model
from edgecnn.export import export_path, given
from edgecnn.export.flatbuffer import read
from edgecnn.export.imported import read_model, with_range
from edgecnn.files import write_atomic
from edgecnn.labels import plural
from edgecnn.networks.onnx_model import read_onnx
from edgecnn.networks.predict import predictor
from edgecnn.recipe import Recipe
from edgecnn.run_info import ImportedFrom
from edgecnn.runs import FLOAT_GRAPH, Run, create_run, free_path, locked
from edgecnn.stages.import_ import CHECKED, labelled_images, named, open_classes, require_numbers, started, warn
from edgecnn.stages.reporter import Reporter
from edgecnn.verify.model_files import ModelFile, open_model_file
from edgecnn.verify.unknown import taught_line

WITHIN = 0.02  # images whose answer may change because of the new ends of a file: a tie, or a code of the input

QUANTIZED = re.compile("Quantize|Integer|QLinear")


class Finished:
    """A finished file, opened: its `path` and `format`, and its `precision`, by its operators."""

    def __init__(self, path: Path) -> None:
        self.path, self.format = path, path.suffix[1:]
        self.opened: ModelFile = open_model_file(path)
        self.precision = precision_of(path)

    @property
    def parameters(self) -> int:
        if self.format == "tflite":
            return sum(tensor.data.size for tensor in read(self.path.read_bytes()).tensors if tensor.data is not None)
        return sum(math.prod(tensor.dims) for tensor in read_onnx(self.path).graph.initializer)

    def changed(self, reading: InputRange, contract: tuple[float, int] | None = None) -> given.Given:
        try:
            if self.format == "tflite":
                return given.tflite(self.path.read_bytes(), reading.numbers, contract)
            return given.onnx_file(read_onnx(self.path), reading.numbers, contract)
        except ExportError as error:
            raise ExportError(f"{self.path}: {error}") from None


def precision_of(path: Path) -> str:
    if path.suffix == ".tflite":
        types = [tensor.type for tensor in read(path.read_bytes()).tensors]
        if "INT16" in types:
            return "int16x8"
        weighted = any(kind in ("INT8", "UINT8") for kind in types)
        return "int8" if weighted else "float16" if "FLOAT16" in types else "float32"
    quantized = any(QUANTIZED.search(node.op_type) for node in read_onnx(path).graph.node)
    return "int8" if quantized else "float32"


def is_finished(path: Path) -> bool:
    """Return whether a file ships as it is: any TFLite file, and a quantized ONNX file."""
    if not path.is_file():
        return False
    return path.suffix == ".tflite" or (path.suffix == ".onnx" and precision_of(path) == "int8")


def import_given(
    path: Path,
    reference: Path | None,
    recipe: Recipe,
    out: Path | None,
    reporter: Reporter,
    *,
    stated: Stated = Stated(),
    force: bool = False,
) -> Run:
    """Start a run from a finished file, which must answer like the `reference`, a float model; a float file may be its own.

    Only the file's ends are changed, see `edgecnn.export.given`. Raises ExportError, EngineError or DatasetError if it cannot be used.
    """
    reporter.note(f"reading {path}")
    finished = Finished(path)
    if finished.precision not in ("float32", "float16") and reference is None:
        raise ExportError(
            f"{path} is quantized ({finished.precision}). Name the float model that it must answer like: --reference float.tflite, .onnx "
            "or .keras. Without one, nothing can be verified."
        )
    model = finished.opened
    if -1 in model.input.shape[1:]:
        raise ExportError(
            f"{path} reads {model.input.shape}, expected a fixed height and width. Convert it again with both."
        )
    shape = model.input.shape[1:]
    dataset = open_classes(recipe, stated, model.output.shape[1], path, reporter)
    recipe = named(recipe, path, shape)
    tried = labelled_images(shape, dataset, reporter)
    reading = find_range(model.values, model.input, tried, stated.input_range)
    reporter.note(line(path.name, reading))
    changed = finished.changed(reading)
    contract = changed.scale, changed.zero_point
    network = dataclasses.replace(recipe.network, input_scale=contract[0], input_zero_point=contract[1])
    recipe = dataclasses.replace(recipe, network=network)
    pixels = tried.images[:CHECKED]
    require_numbers(model.values(pixels, *reading.numbers), path)
    require_unchanged(
        path, model.values(pixels, *reading.numbers), changed.data, pixels, recipe, finished.precision == "int8"
    )
    warn(reporter, path, reading)
    name, data = reference_file(finished, reference, contract, shape, len(dataset.labels), tried, stated, reporter)
    folder = out or free_path(path.stem, force)
    with locked(folder):
        run = create_run(recipe, folder, force=force)
        write_atomic(export_path(run, finished.format, finished.precision), changed.data)
        write_atomic(run.file(name), data)
        imported = ImportedFrom(
            file=path.name,
            format=f"{'TFLite' if finished.format == 'tflite' else 'ONNX'} {finished.precision}",
            softmax_cut=changed.softmax_cut,
            range=line(path.name, reading),
            ships=True,
            reference=reference.name if reference else None,
        )
        run.write_info(started(dataset, shape, finished.parameters, imported))
        write_known(run, dataset)
        run.make_latest()
        reporter.note(taught_line(recipe.data.unseen, dataset.sizes["test"]))
    return run


def reference_file(
    finished: Finished,
    reference: Path | None,
    contract: tuple[float, int],
    shape: tuple[int, ...],
    classes: int,
    tried: Labelled,
    stated: Stated,
    reporter: Reporter,
) -> tuple[str, bytes]:
    """Return the name and content of the float model in the run, which reads pixels in the `contract`'s range."""
    path = reference or finished.path
    call: Callable[[np.ndarray, Any, Any], np.ndarray]
    if path.suffix in (".tflite", ".onnx"):
        opened = Finished(path)
        if opened.precision not in ("float32", "float16"):
            raise ExportError(f"--reference {path} is quantized itself ({opened.precision}). Expected the float model.")
        read_shape, outputs, call = opened.opened.input.shape[1:], opened.opened.output.shape[1], opened.opened.values
    else:
        frozen = read_model(path).model
        read_shape, outputs = frozen.input_shape[1:], frozen.output_shape[1]

        def call(pixels: np.ndarray, *numbers: Any) -> np.ndarray:
            return predictor(frozen, *numbers)(pixels)

    if (*read_shape, outputs) != (*shape, classes):
        raise ExportError(
            f"--reference {path} maps images of {read_shape} to {outputs} outputs, expected {shape} and {classes}, as {finished.path} does."
        )
    reading = find_range(call, None, tried, stated.input_range)
    if reference:
        reporter.note(line(path.name, reading))
        warn(reporter, path, reading)
    if path.suffix in (".tflite", ".onnx"):
        return f"reference{path.suffix}", opened.changed(reading, contract).data
    return FLOAT_GRAPH, (
        frozen if reading.numbers == contract else with_range(frozen, reading.numbers, contract)
    ).to_bytes()


def require_unchanged(
    path: Path, before: np.ndarray, data: bytes, pixels: np.ndarray, recipe: Recipe, quantized: bool
) -> None:
    """Raise ExportError if a file with new ends is `quantized` but gives floats, or gives other answers to more than WITHIN of the images.

    Ties count as equal.
    """
    model = device_model(data, path.suffix[1:], contract_of(recipe, pixels.shape[1:]))
    if quantized and model.engine.output.dtype == np.float32:
        raise ExportError(
            f"{path} is quantized, but not to its end: it gives float32. Expected int8 activations throughout, as full integer "
            "quantization makes them; dynamic range quantization leaves them in float."
        )
    answers = np.argmax(model.logits(pixels), axis=1)
    best = before.max(axis=1)
    changed = int(np.sum(before[np.arange(len(before)), answers] < best - 1e-3 * np.abs(best)))
    if changed > WITHIN * len(pixels):
        raise ExportError(
            f"{path} answers {changed} of {plural(len(pixels), 'image')} differently after its ends were changed for a device. "
            "Convert it again with int8 or float32 input and output, channels last."
        )
