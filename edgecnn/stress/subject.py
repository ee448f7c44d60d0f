"""The subject of a stress test: a run or a bundle with its models opened, and the images of a split."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecnn.bundle.manifest import InputContract, ModelEntry
from edgecnn.bundle.read import Bundle, read_bundle
from edgecnn.data import Dataset, Progress, Split, open_run_dataset
from edgecnn.data.recorded import require_split
from edgecnn.emulate.bundles import recorded_data
from edgecnn.errors import BundleError, RunError
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import export_path
from edgecnn.files import sha256
from edgecnn.recipe import build_recipe
from edgecnn.runs import Run, open_run
from edgecnn.runtime.engines import described, open_engine
from edgecnn.runtime.model import Model
from edgecnn.stress.stress_report import StressedModel, StressSplit
from edgecnn.tables import Struct

INT8_FORMATS = ("tflite", "onnx")  # candidate formats of the int8 file; the first available is measured


class Opened(NamedTuple):
    """An opened model: its description for the report, and `call`, from uint8 (n, height, width, channels) to logits (n, num_classes)."""

    described: StressedModel
    call: Callable[[np.ndarray], np.ndarray]


class Subject(Struct):
    """A run or a bundle under stress; for a bundle `run` is None. `robust` means that it was trained with train.robust."""

    name: str
    run: Run | None
    dataset: Dataset
    split: StressSplit
    images: Split
    contract: InputContract
    models: Mapping[str, Opened]
    robust: bool


def open_subject(
    path: Path | None,
    data: str | None,
    split: StressSplit,
    progress: Progress,
    note: Callable[[str], None] = lambda text: None,
) -> Subject:
    """Open a run folder or a bundle (None for `runs/latest`), and load a split's images from `data` (None for their recorded location).

    `note` receives the run's path, and a report of images that are left out.

    Raises:
        RunError, BundleError: if it cannot be opened, or has no int8 model; RunError if the split has changed since the run began.
        DatasetError: if a bundle's images have changed.
    """
    run = None
    if path is not None and path.is_file():
        bundle = read_bundle(path)
        name, contract = bundle.manifest.name, bundle.manifest.input
        entries = {"float": model_entry(bundle, "float32"), "int8": model_entry(bundle, "int8")}
        if entries["int8"] is None:
            raise BundleError(f"{path} has no int8 model.")
        recipe = build_recipe(dict(bundle.manifest.provenance["recipe"]), str(path))
        dataset = recorded_data(bundle, data, split, progress, note)
        models = {
            name: engine_model(name, bundle.files[entry.file], entry.format, contract)
            for name, entry in entries.items()
            if entry
        }
    else:
        run = open_run(path)
        note(f"run {run.path}")
        recipe = run.recipe
        if run.info.folds:
            raise RunError(
                f"the model of {run.path} was trained on all images, so stress could only measure it on images that it has seen. "
                "Stress a run that was trained without --folds."
            )
        if run.info.head_ships and split == "validation":
            raise RunError(
                f"the model of {run.path} learnt from the validation photos too, so stress cannot measure it on them. Use --split test."
            )
        name, contract = recipe.name or run.name, input_contract(run)
        exports = {format_: export_path(run, format_, "int8") for format_ in INT8_FORMATS}
        int8 = next((format_ for format_, file in exports.items() if file.exists()), None)
        if int8 is None:
            raise RunError(f"run {run.path} has no int8 export. First: {run.command('export')} --format tflite --int8")
        float_file = run.read(run.float_model, "train")
        dataset = open_run_dataset(run, source=data, progress=progress, note=note)
        require_split(run, dataset, split)
        models = {
            "float": keras_model(float_file, contract),
            "int8": engine_model("int8", exports[int8].read_bytes(), int8, contract),
        }
    height, width, channels = contract.height, contract.width, contract.channels
    splits = dataset.load((split,), height=height, width=width, channels=channels, stage="stress", progress=progress)
    return Subject(
        name=name,
        run=run,
        dataset=dataset,
        split=split,
        images=splits[split],
        contract=contract,
        models=models,
        robust=recipe.train.robust,
    )


def model_entry(bundle: Bundle, precision: str) -> ModelEntry | None:
    entries = {item.format: item for item in bundle.manifest.models if item.precision == precision}
    return next((entries[format_] for format_ in INT8_FORMATS if format_ in entries), None)


def engine_model(name: str, data: bytes, format_: str, contract: InputContract) -> Opened:
    """Open a TFLite or ONNX file with the engine that a device would use. Raises EngineError if none is installed or it rejects it."""
    engine = open_engine(None, data, format_, num_threads=1)
    model = StressedModel(name=name, engine=described(engine), sha256=sha256(data))
    return Opened(model, Model(engine, contract).logits)


def keras_model(data: bytes, contract: InputContract) -> Opened:
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import model_from_bytes, predictor

    model = StressedModel(name="float", engine=f"tensorflow {tf.__version__}", sha256=sha256(data))
    return Opened(model, predictor(model_from_bytes(data), contract.scale, contract.zero_point))
