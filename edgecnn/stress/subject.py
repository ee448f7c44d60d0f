"""What is put under stress: a run or a bundle, its models opened, and the images of a split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecnn.bundle.manifest import InputContract, ModelEntry
from edgecnn.bundle.read import Bundle, read_bundle
from edgecnn.data import Dataset, Split, open_run_dataset
from edgecnn.data.recorded import require_split
from edgecnn.emulate.bundles import recorded_data
from edgecnn.errors import BundleError, RunError
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import export_path
from edgecnn.files import sha256
from edgecnn.recipe import build_recipe, known
from edgecnn.runs import Run, open_run
from edgecnn.runtime.engines import described, open_engine
from edgecnn.runtime.model import Model
from edgecnn.stress.stress_report import StressedModel, StressSplit

INT8_FORMATS = ("tflite", "onnx")
"""Formats of the int8 file that is measured, the first that there is."""


class Opened(NamedTuple):
    """An opened model: what the report says of it, and `call`, from uint8 (n, height, width, channels) to logits (n, num_classes)."""

    described: StressedModel
    call: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run, or a bundle, for which `run` is None, under stress.

    The images are those of the split, at the model's size. The models are "float", if there is one, and "int8"; `train` is the recipe's
    table, as far as recipes have its keys today.
    """

    name: str
    run: Run | None
    dataset: Dataset
    split: StressSplit
    images: Split
    contract: InputContract
    models: Mapping[str, Opened]
    train: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be opened: a run folder or a bundle, None for `runs/latest`; where its images are, None for where they were; the split."""

    path: Path | None
    data: str | None
    split: StressSplit


def open_subject(
    source: Source, progress: Callable[[str, int, int], None], note: Callable[[str], None] = lambda text: None
) -> Subject:
    """Open a run or a bundle and load its images. The note is the run's path, and what of the images is left out.

    Raises:
        RunError, BundleError: if it cannot be opened, or has no int8 model; RunError if the split has changed since the run began.
        DatasetError: if a bundle's images have changed.
    """
    if source.path is not None and source.path.is_file():
        return bundle_subject(read_bundle(source.path), source, progress, note)
    run = open_run(source.path)
    note(f"run {run.path}")
    return run_subject(run, source, progress, note)


def run_subject(run: Run, source: Source, progress: Any, note: Callable[[str], None]) -> Subject:
    int8 = next((format_ for format_ in INT8_FORMATS if export_path(run, format_, "int8").exists()), None)
    if int8 is None:
        raise RunError(f"run {run.path} has no int8 export. First: {run.command('export')} --format tflite --int8")
    float_file = run.read(run.float_model, "train")
    dataset = open_run_dataset(run, source=source.data, progress=progress, note=note)
    require_split(run, dataset, source.split)
    contract = input_contract(run)
    models = {
        "float": keras_model(float_file, contract),
        "int8": engine_model("int8", export_path(run, int8, "int8").read_bytes(), int8, contract),
    }
    return Subject(
        name=run.recipe.name or run.name,
        run=run,
        dataset=dataset,
        split=source.split,
        images=load(dataset, source.split, contract, progress),
        contract=contract,
        models=models,
        train=vars(run.recipe.train),
    )


def bundle_subject(bundle: Bundle, source: Source, progress: Any, note: Callable[[str], None]) -> Subject:
    manifest = bundle.manifest
    entries = {"float": model_entry(bundle, "float32"), "int8": model_entry(bundle, "int8")}
    if entries["int8"] is None:
        raise BundleError(f"{bundle.path} carries no int8 model.")
    dataset = recorded_data(bundle, source.data, source.split, progress, note)
    recipe = build_recipe(known(dict(manifest.provenance["recipe"])), str(bundle.path))
    return Subject(
        name=manifest.name,
        run=None,
        dataset=dataset,
        split=source.split,
        images=load(dataset, source.split, manifest.input, progress),
        contract=manifest.input,
        models={
            name: engine_model(name, bundle.files[entry.file], entry.format, manifest.input)
            for name, entry in entries.items()
            if entry
        },
        train=vars(recipe.train),
    )


def model_entry(bundle: Bundle, precision: str) -> ModelEntry | None:
    entries = {item.format: item for item in bundle.manifest.models if item.precision == precision}
    return next((entries[format_] for format_ in INT8_FORMATS if format_ in entries), None)


def load(dataset: Dataset, split: StressSplit, contract: InputContract, progress: Any) -> Split:
    height, width, channels = contract.height, contract.width, contract.channels
    splits = dataset.load((split,), height=height, width=width, channels=channels, stage="stress", progress=progress)
    return splits[split]


def engine_model(name: str, data: bytes, format_: str, contract: InputContract) -> Opened:
    """Open a TFLite or ONNX file by the engine that a device would use. Raises EngineError if there is none, or it refuses the model."""
    engine = open_engine(None, data, format_, num_threads=1)
    model = StressedModel(name=name, engine=described(engine), sha256=sha256(data))
    return Opened(model, Model(engine, contract).logits)


def keras_model(data: bytes, contract: InputContract) -> Opened:
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import model_from_bytes, predictor

    model = StressedModel(name="float", engine=f"tensorflow {tf.__version__}", sha256=sha256(data))
    return Opened(model, predictor(model_from_bytes(data), contract.scale, contract.zero_point))
