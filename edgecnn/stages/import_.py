"""The stage that starts a run from a model that edgecnn did not train, or from a finished file, which is verified and bundled unchanged."""

import collections
import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.calibrate.input_range import InputRange, Labelled, Stated, find_range, line
from edgecnn.data import Dataset, open_dataset
from edgecnn.data.dataset import write_known
from edgecnn.errors import ExportError, first_line
from edgecnn.evaluate.answers import contract_of, device_model, in_chunks, input_contract, milliseconds
from edgecnn.export import convert, export, export_path, given
from edgecnn.export.flatbuffer import read
from edgecnn.export.imported import LOAD_ERRORS, SourceModel, layers_of, read_model, refuse_scores, with_range
from edgecnn.export.tflite import IMAGES
from edgecnn.files import write_atomic
from edgecnn.labels import plural
from edgecnn.networks.onnx_model import conversion, read_onnx
from edgecnn.networks.onnx_parity import BOUND
from edgecnn.networks.predict import FrozenModel, model_bytes, model_from_bytes, predictor, real_input
from edgecnn.recipe import INPUT_RANGES, Recipe, Settled
from edgecnn.report.sections import taught_line
from edgecnn.run_info import ImportedFrom, InputSize, Int8Method, RepresentativeInfo, RunInfo
from edgecnn.runs import FLOAT_GRAPH, FLOAT_MODEL, INFO, RECIPE, Run, create_run, free_path, locked, run_path
from edgecnn.stages import Reporter
from edgecnn.stages.choose import RANGE_IMAGES, labelled, splits_to_try
from edgecnn.stages.last_layer import Int8Files
from edgecnn.train.settle import settle
from edgecnn.train.train import TrainingPhotos, distil, load_splits, round_weights
from edgecnn.verify.golden import golden_images
from edgecnn.verify.layers import LAYER_IMAGES, layer_errors
from edgecnn.verify.model_files import ModelFile, open_model_file, refused_layers
from edgecnn.versions import library_versions

if TYPE_CHECKING:
    from edgecnn.networks.keras import keras


SPLIT = "validation"

SHOWN = 5  # layers that the note names


def keep_in_float(run: Run, info: RunInfo, asked: int | Sequence[str], dataset: Dataset, reporter: Reporter) -> RunInfo:
    """Return the record `info` of an imported run of layers, whose int8 TFLite file is to keep some of them in float.

    `asked` names them, or is the number of those that are furthest from the float model on validation images.

    Raises ExportError if a layer does not exist, or is not an operator of the file.
    """
    assert info.imported is not None
    progress = reporter.working
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".") as folder:
        # with a record, which the run itself gets last: a killed import must not look finished
        trial = Run(Path(folder))
        for file in filter(Path.is_file, run.path.iterdir()):
            trial.file(file.name).symlink_to(file.resolve())
        trial.write_info(info)
        before = export(trial, "tflite", "int8", force=True, dataset=dataset, progress=progress).read_bytes()
        if isinstance(asked, int):
            asked = [error.layer for error in layer_errors(trial, dataset, progress).layers[:asked]]
        info = dataclasses.replace(info, imported=dataclasses.replace(info.imported, float_layers=tuple(asked)))
        trial.write_info(info)
        after = convert(trial, "tflite", "int8", dataset=dataset, progress=progress)
        contract = input_contract(trial)
    images = dataset.load((SPLIT,), **vars(info.input), stage="import", progress=progress)[SPLIT].images[:LAYER_IMAGES]
    calls = {name: device_model(data, "tflite", contract).logits for name, data in (("int8", before), ("mixed", after))}
    float_model = predictor(model_from_bytes(run.read(FLOAT_MODEL, "import")), contract.scale, contract.zero_point)
    reference = float_model(images).argmax(axis=1)
    agreed = {
        name: float(np.mean(in_chunks(call, images, "agreement", progress).argmax(axis=1) == reference))
        for name, call in calls.items()
    }
    times = milliseconds(calls, images[:1])
    reporter.note(
        f"{plural(len(asked), 'layer')} in float ({', '.join(asked[:SHOWN])}{', …' if len(asked) > SHOWN else ''}): the int8 TFLite file "
        f"agrees with the float model on {agreed['mixed']:.1%} of {plural(len(images), f'{SPLIT} image')}, not {agreed['int8']:.1%}; "
        f"{len(after):,} bytes, not {len(before):,}; {times['mixed']:.2f} ms per image on this machine, not {times['int8']:.2f}"
    )
    return info


IMPORTED = "imported"

CHECKED, CHECKED_LEAST = 200, 100  # images on which an ONNX file is compared with ONNX Runtime, and with many MACs
TRIED_LEAST = 32  # images on which the input ranges of a network with many MACs are tried
MACS, PIXELS = 10**11, 2**26
"""How many multiply-accumulates one input range may take, and how many pixels all images may have; fewer images are then used."""

COMPARED = 32  # and on which the model as layers is compared with its graph


def import_stage(
    path: Path,
    recipe: Recipe,
    out: Path | None,
    reporter: Reporter,
    *,
    images: int | None = None,
    size: tuple[int, int] | None = None,
    stated: Stated = Stated(),
    float_layers: int | tuple[str, ...] = (),
    force: bool = False,
) -> Run:
    """Start a run from a model that edgecnn did not train. Exports, verification and bundles then work as for any other run.

    `images` calibrate the int8 and int16x8 exports. `float_layers` as in `keep_in_float`. A range with a mean and a deviation per channel
    becomes a part of the model, which then reads -1 to 1.
    Raises ExportError if the model cannot be read, it has another number of outputs than labels, or ends in a softmax that cannot be
    removed.
    """
    reporter.note(f"reading {path}")
    recipe = as_stated(recipe, stated)
    opened = read_model(path, size)
    model = opened.frozen
    dataset = open_classes(recipe, stated, model.output_shape[1], path, reporter)
    shape = model.input_shape[1:]
    recipe = imported_recipe(recipe, path, shape)
    tried = labelled_images(shape, dataset, reporter, max(TRIED_LEAST, MACS // max(opened.macs, 1)))
    reading = find_range(lambda pixels, *numbers: predictor(model, *numbers)(pixels), None, tried, stated.input_range)
    pixels = labelled_images(shape, dataset, reporter, max(CHECKED_LEAST, len(tried.images))).images[:CHECKED]
    require_numbers(predictor(model, *reading.numbers)(pixels), path)
    if opened.check:
        difference = opened.check(pixels, lambda part: real_input(part, *reading.numbers).numpy())
        reporter.note(
            f"{path.name}: answers {plural(len(pixels), 'image')} as ONNX Runtime does "
            f"(largest difference {difference:.0e} of the largest output)"
        )
    ranges = None
    if reading.mean is not None:
        ranges = reading.numbers, INPUT_RANGES[recipe.network.input_range]
        model = with_range(model, *ranges)
    elif reading.name in INPUT_RANGES:
        recipe = dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, input_range=reading.name))
    note_range(reporter, path, reading)
    images_ = golden_images(contract_of(recipe, model.input_shape[1:]))
    refuse_scores(predictor(model, recipe.input_scale, recipe.input_zero_point)(images_))
    layers = None
    if opened.layers or recipe.qat.epochs is not None or float_layers:
        try:
            layers = layered(opened, model, ranges, tried, recipe)
        except ExportError as error:
            if recipe.qat.epochs is not None:
                raise ExportError(f"{path}: {error} Without --qat-epochs it can be imported as a graph.") from None
            if float_layers:
                raise ExportError(f"{path} has no layers to keep in float: {error} Leave out --float-layers.") from None
            reporter.note(f"{path.name} is stored as a graph, so edgecnn layers cannot measure it: {error}")
    again = out or run_path(path.stem)
    folder = again if out or unfinished(again) else free_path(path.stem, force)
    with locked(folder):
        run = create_run(recipe, folder, force=force or unfinished(folder))
        if layers:
            write_atomic(run.file(FLOAT_MODEL), layers)
        else:
            write_atomic(run.file(FLOAT_GRAPH), model.to_bytes())
        imported = ImportedFrom(
            file=path.name, format=opened.what, softmax_cut=opened.cut, range=line(path.name, reading)
        )
        info = dataclasses.replace(
            imported_info(dataset, shape, model.count_params(), imported),
            representative_dataset=RepresentativeInfo(images=images or IMAGES, seed=recipe.seed),
        )
        write_known(run, dataset)
        reporter.note(taught_line(recipe.data.unseen, dataset.sizes["test"]))
        if layers and recipe.qat.epochs is not None:
            info = dataclasses.replace(
                info, int8=better_int8(run, settle(recipe, dataset), dataset, reporter, train=not float_layers)
            )
        if layers and float_layers:
            info = keep_in_float(run, info, float_layers, dataset, reporter)
        run.write_info(info)  # last: without it, no other command takes the run, and the same import begins again
        run.make_latest()
    return run


def unfinished(path: Path) -> bool:
    run = Run(path)
    return run.file(RECIPE).exists() and not run.file(INFO).exists() and run.recipe.network.name == IMPORTED


def layered(
    opened: SourceModel,
    model: FrozenModel,
    ranges: tuple[Any, tuple[float, int]] | None,
    tried: Labelled,
    recipe: Recipe,
) -> bytes:
    """Return an imported model built of layers, as the bytes of a file: it reads what `model` reads, and answers as it does.

    Raises ExportError if it cannot be built or stored so.
    """
    layers = opened.layers(conversion(*ranges) if ranges else None) if opened.layers else layers_of(model)
    pixels = tried.images[:COMPARED]
    numbers = recipe.input_scale, recipe.input_zero_point
    try:
        data = model_bytes(layers)
        mine = predictor(model_from_bytes(data), *numbers)(pixels)
    except LOAD_ERRORS as error:
        raise ExportError(f"its layers cannot be stored: {first_line(error)}") from error
    other = predictor(model, *numbers)(pixels)
    apart = float(np.abs(mine - other).max() / max(float(np.abs(other).max()), 1e-6))
    if not apart <= BOUND:
        raise ExportError(f"its layers differ from its graph by {apart:.2g} of the largest output, expected {BOUND:g}.")
    return data


def better_int8(run: Run, recipe: Settled, dataset: Dataset, reporter: Reporter, train: bool) -> Int8Method:
    """Train a run's int8 model, or, without `train` or if it has layers that cannot be trained as int8, round its weights."""
    photos = TrainingPhotos(load_splits(recipe, dataset, reporter.working), recipe.seed)
    layers = model_from_bytes(run.read(FLOAT_MODEL, "import"))
    refused = refused_by_training(layers)
    if train and not refused:
        return distil(run, recipe, photos, Int8Files(recipe), reporter.training)
    if refused:
        reporter.note(
            f"{named_layers(refused, layers)} cannot be trained as int8, so its weights are rounded better, and it is quantized after "
            "training. If that loses too much, --float-layers keeps the worst in float"
        )
    recipe = dataclasses.replace(recipe, qat=dataclasses.replace(recipe.qat, method="ptq"))
    return round_weights(run, recipe, photos, Int8Files(recipe))


def refused_by_training(model: "keras.Model") -> dict[str, str]:
    """Return the kind of each layer that cannot be trained as int8."""
    return operators_of(model) or refused_layers(model)


def named_layers(refused: Mapping[str, str], model: "keras.Model") -> str:
    """Count and name layers, for a message."""
    kinds = collections.Counter(refused.values())
    named = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(SHOWN))
    return f"{plural(len(refused), 'layer')} of {len(model.layers)} ({named}; first {next(iter(refused))!r})"


def operators_of(model: "keras.Model") -> dict[str, str]:
    """Return the function of each layer that is a bare TensorFlow operator, which cannot be trained as int8, in model order."""
    return {
        layer.name: str(layer.get_config().get("function", "slice")).removeprefix("__operators__.")
        for layer in model.layers
        if type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda")
    }


def open_classes(recipe: Recipe, stated: Stated, classes: int, path: Path, reporter: Reporter) -> Dataset:
    """Open the recipe's data, with the classes in the order of a model's outputs; ExportError if it has another number of outputs."""
    dataset = open_dataset(recipe.data, progress=reporter.working, note=reporter.note)
    dataset.check()
    if stated.labels:
        dataset.order_classes(stated.labels)
    if classes != len(dataset.labels):
        raise ExportError(
            f"{path} has {classes} outputs, but {dataset.name} has {len(dataset.labels)} classes: "
            f"{', '.join(dataset.labels[:8])} … Expected one output per class, in this order. "
            "If the model has more or other classes, name its outputs in order with --labels FILE."
        )
    return dataset


def as_stated(recipe: Recipe, stated: Stated) -> Recipe:
    """Return a recipe that reads images as the user states that the model does."""
    return dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, fit=stated.fit, resampling=stated.resampling)
    )


def imported_recipe(recipe: Recipe, path: Path, shape: Sequence[int]) -> Recipe:
    height, width, channels = shape
    network = dataclasses.replace(recipe.network, name=IMPORTED, height=height, width=width, channels=channels)
    return dataclasses.replace(recipe, name=path.stem, network=network)


def imported_info(dataset: Dataset, shape: Sequence[int], parameters: int, imported: ImportedFrom) -> RunInfo:
    height, width, channels = shape
    return RunInfo(
        state="imported",
        data=dataset.info({}),
        input=InputSize(height=height, width=width, channels=channels),
        parameters=parameters,
        versions=library_versions(),
        imported=imported,
    )


def note_range(reporter: Reporter, path: Path, reading: InputRange) -> None:
    reporter.note(line(path.name, reading))
    if reading.warning:
        reporter.note(f"WARNING: {path.name}: {reading.warning}")


def labelled_images(shape: Sequence[int], dataset: Dataset, reporter: Reporter, most: int = RANGE_IMAGES) -> Labelled:
    """Return at most `most` images outside the test split, at the model's size, to try the usual input ranges on."""
    height, width, channels = shape
    most = min(most, RANGE_IMAGES, PIXELS // (height * width))
    loaded = dataset.load(
        splits_to_try(dataset), height=height, width=width, channels=channels, stage="import", progress=reporter.working
    )
    tried = labelled(loaded, most=most)
    return dataclasses.replace(tried, labels=tuple(dataset.labels))


def require_numbers(values: np.ndarray, path: Path) -> None:
    wrong = int(np.sum(~np.isfinite(values).all(axis=1)))
    if wrong:
        raise ExportError(
            f"{path} gives outputs that are not numbers for {wrong} of {plural(len(values), 'image')}. Train it again, or set its input "
            "range with --input-range, if it reads another one."
        )


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


def ships_unchanged(path: Path) -> bool:
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
    recipe = as_stated(recipe, stated)
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
    recipe = imported_recipe(recipe, path, shape)
    tried = labelled_images(shape, dataset, reporter)
    reading = find_range(model.values, model.input, tried, stated.input_range)
    note_range(reporter, path, reading)
    changed = finished.changed(reading)
    contract = changed.scale, changed.zero_point
    network = dataclasses.replace(recipe.network, input_scale=contract[0], input_zero_point=contract[1])
    recipe = dataclasses.replace(recipe, network=network)
    pixels = tried.images[:CHECKED]
    require_numbers(model.values(pixels, *reading.numbers), path)
    require_unchanged(
        path, model.values(pixels, *reading.numbers), changed.data, pixels, recipe, finished.precision == "int8"
    )
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
        run.write_info(imported_info(dataset, shape, finished.parameters, imported))
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
        frozen = read_model(path).frozen
        read_shape, outputs = frozen.input_shape[1:], frozen.output_shape[1]

        def call(pixels: np.ndarray, *numbers: Any) -> np.ndarray:
            return predictor(frozen, *numbers)(pixels)

    if (*read_shape, outputs) != (*shape, classes):
        raise ExportError(
            f"--reference {path} maps images of {read_shape} to {outputs} outputs, expected {shape} and {classes}, as {finished.path} does."
        )
    reading = find_range(call, None, tried, stated.input_range)
    if reference:
        note_range(reporter, path, reading)
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
