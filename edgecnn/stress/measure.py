"""The stress test: each image is corrupted in every way and classified by every model of a run or a bundle."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecnn.bundle.file import read_bundle
from edgecnn.bundle.manifest import FORMATS, InputContract
from edgecnn.data import Dataset, Progress, Split, open_run_dataset
from edgecnn.data.dataset import require_split
from edgecnn.errors import BundleError, RunError, StressError, UnknownNameError, nearest
from edgecnn.evaluate.answers import input_contract, recorded_data
from edgecnn.evaluate.statistics import quantile, wilson
from edgecnn.export import export_path
from edgecnn.files import sha256
from edgecnn.pixels import resize
from edgecnn.recipe import Recipe, build_recipe
from edgecnn.region import whole_size
from edgecnn.runs import Run, open_run
from edgecnn.runtime.classifier import fitted
from edgecnn.runtime.engines import engine_text, open_engine
from edgecnn.runtime.model import Model
from edgecnn.stress.corruptions import CORRUPTIONS, SizeClass, conditions, corrupt, generator, value_text
from edgecnn.stress.stress_report import (
    Condition,
    Mean,
    Measured,
    StressData,
    Stressed,
    StressedModel,
    StressReport,
    StressSplit,
    stress_report,
)
from edgecnn.tables import Struct
from edgecnn.versions import library_versions, processor


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
        entries = {"float": bundle.entry("float32"), "int8": bundle.entry("int8")}
        if entries["int8"] is None:
            raise BundleError(f"{path} has no int8 model.")
        recipe = build_recipe(dict(bundle.manifest.provenance["recipe"]), str(path))
        require_unseen(path, recipe, bundle.manifest.provenance.get("tuning", {}).get("ships") == "head", split)
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
        require_unseen(run.path, recipe, run.info.head_ships, split)
        name, contract = recipe.name or run.name, input_contract(run)
        exports = {format_: export_path(run, format_, "int8") for format_ in FORMATS}
        int8 = next((format_ for format_, file in exports.items() if file.exists()), None)
        if int8 is None:
            raise RunError(f"run {run.path} has no int8 export. First: {run.command('export')} --format tflite --int8")
        float_file = run.read(run.float_model, "train")
        dataset = open_run_dataset(run, source=data, progress=progress, note=note)
        require_split(run, dataset, split)
        models = {
            "float": (
                engine_model("float", float_file, run.reference.rpartition(".")[2], contract)
                if run.reference
                else keras_model(float_file, contract)
            ),
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


def require_unseen(where: Path, recipe: Recipe, head_ships: bool, split: StressSplit) -> None:
    """Raise RunError if the model learnt from the split: with folds from all images, and a head that ships from validation photos too."""
    if recipe.folds:
        raise RunError(
            f"the model of {where} was trained on all images, so stress could only measure it on images that it has seen. Stress a model "
            "that was trained without --folds and --quick, and that was fine-tuned: --set train.tuning=always."
        )
    if head_ships and split == "validation":
        raise RunError(
            f"the model of {where} learnt from the validation photos too, so stress cannot measure it on them. Use --split test."
        )


def engine_model(name: str, data: bytes, format_: str, contract: InputContract) -> Opened:
    """Open a TFLite or ONNX file with the engine that a device would use. Raises EngineError if none is installed or it rejects it."""
    engine = open_engine(None, data, format_, num_threads=1)
    model = StressedModel(name=name, engine=engine_text(engine), sha256=sha256(data))
    return Opened(model, Model(engine, contract).logits)


def keras_model(data: bytes, contract: InputContract) -> Opened:
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import model_from_bytes, predictor

    model = StressedModel(name="float", engine=f"tensorflow {tf.__version__}", sha256=sha256(data))
    return Opened(model, predictor(model_from_bytes(data), contract.scale, contract.zero_point))


SMALL_SIDE = 48  # images with at most this many rows and columns use the strengths for small images

PHOTO_SIDE = 256
"""Shorter side, in pixels, to which larger photos are reduced before they are corrupted, as for ImageNet-C. Blur lengths are in pixels and
noise is per pixel: in a photo of 12 million pixels, both would vanish in the resize."""

CHUNK = 50  # images that go through all corruptions before the next ones


class Settings(Struct):
    """Settings: the corruptions, the maximum number of images, the seed, and the pass line (a fraction)."""

    names: tuple[str, ...] = tuple(CORRUPTIONS)
    limit: int | None = None
    seed: int = 1
    at_least: float | None = None


CountProgress = Callable[[int, int], None]
"""Called with the number of corrupted images classified so far, and their total."""


def stress(
    subject: Subject, settings: Settings = Settings(), progress: CountProgress = lambda done, total: None
) -> StressReport:
    """Measure a run or a bundle under every corruption at every strength. The same seed and images give the same figures.

    Images are corrupted before edgecnn's resize, at their original size; photos are first reduced to a shorter side of at most PHOTO_SIDE
    pixels.

    Raises UnknownNameError for an unknown corruption, or one that does not apply to grey images.
    """
    for name in settings.names:
        if name not in CORRUPTIONS:
            raise UnknownNameError(f"{name!r} is not a corruption. {nearest(name, CORRUPTIONS)}")
    if not conditions(subject.contract.channels, settings.names):
        raise UnknownNameError(
            f"grey images have no colours for {', '.join(settings.names)} to change. Name another corruption."
        )
    began = time.monotonic()
    answers = run_conditions(subject, settings, progress)
    return report_of(subject, settings, answers, time.monotonic() - began)


def size_class_of(subject: Subject) -> SizeClass:
    """Return whether the strengths for photos or for small images apply, based on the most common image size."""
    return "small" if max(subject.dataset.shape[:2]) <= SMALL_SIDE else "photo"


def plan(subject: Subject, settings: Settings) -> list[tuple[str, int]]:
    return [("", 0), *conditions(subject.contract.channels, settings.names)]


def run_conditions(subject: Subject, settings: Settings, progress: CountProgress) -> np.ndarray:
    """Return every model's answers to all images under all conditions, int64 (models, conditions, images)."""
    todo, count, contract = plan(subject, settings), len(subject.images.classes[: settings.limit]), subject.contract
    size_class, answers = size_class_of(subject), np.empty((len(subject.models), len(todo), count), np.int64)
    for start in range(0, count, CHUNK):
        chunk = slice(start, min(start + CHUNK, count))
        sources = subject.images.sources[chunk]
        originals = list(pictures(subject, sources))
        for number, (name, strength) in enumerate(todo):
            images = subject.images.images[chunk]
            if name:
                corrupted = (
                    corrupt(image, name, strength, generator(settings.seed, name, source), size_class)
                    for image, source in zip(originals, sources, strict=True)
                )
                images = np.stack([fitted(image, contract) for image in corrupted])
            for index, model in enumerate(subject.models.values()):
                answers[index, number, chunk] = np.argmax(model.call(np.ascontiguousarray(images)), axis=1)
            progress(len(todo) * start + (number + 1) * len(sources), len(todo) * count)
    return answers


def pictures(subject: Subject, sources: Sequence[str]) -> Iterable[np.ndarray]:
    """Yield the images to corrupt, at their original size; photos are reduced to a shorter side of at most `largest_side`."""
    largest, channels = largest_side(subject), subject.contract.channels
    least = (largest or 0, largest or 0)
    for image in subject.dataset.pictures(subject.split, sources, channels=channels, least=least, stage="stress"):
        height, width, _ = image.shape
        if largest and min(height, width) > largest:
            share = largest / min(height, width)
            image = resize(image, round(height * share), round(width * share), "stretch")
        yield image


def largest_side(subject: Subject) -> int | None:
    """Return the shorter side to which larger photos are reduced: PHOTO_SIDE, or the input's if larger; None for small images."""
    if size_class_of(subject) == "small":
        return None
    contract = subject.contract
    return max(PHOTO_SIDE, *whole_size(contract.height, contract.width, contract.region))


def weights_of(conditions: Sequence[tuple[str, int]]) -> np.ndarray:
    """Return each condition's weight in the mean corrupted accuracy: each corruption counts once, regardless of its number of strengths."""
    names = [name for name, _ in conditions]
    corruptions = {name for name in names if name}
    return np.array([1 / (len(corruptions) * names.count(name)) if name else 0.0 for name in names])


def report_of(subject: Subject, settings: Settings, answers: np.ndarray, seconds: float) -> StressReport:
    """Return the report on `answers`, int64 (models, conditions, images), to the first images of the split."""
    todo, size_class, count = plan(subject, settings), size_class_of(subject), answers.shape[2]
    right = answers == subject.images.classes[:count]
    agree = (answers == answers[0]).all(axis=0)
    figures = [
        condition(dict(zip(subject.models, right[:, number], strict=True)), agree[number], *item, size_class)
        for number, item in enumerate(todo)
    ]
    clean = figures[0]
    stressed = [
        stressed_by(name, clean, tuple(item for item, (other, _) in zip(figures, todo, strict=True) if other == name))
        for name in dict.fromkeys(name for name, _ in todo if name)
    ]
    worst = max(stressed, key=lambda item: item.lost).corruption
    means = dict(zip(subject.models, map(mean, np.einsum("c,mci->mi", weights_of(todo), right)), strict=True))
    split, run = subject.split, subject.run
    before = stress_report(run, "test") if run else None
    return StressReport(
        schema="edgecnn.stress/1",
        name=subject.name,
        kind="run" if run else "bundle",
        data=StressData(
            name=subject.dataset.name,
            title=subject.dataset.title,
            split=split,
            images=count,
            of=len(subject.images.classes),
            sha256=subject.dataset.hashes[split],
        ),
        seed=settings.seed,
        size_class=size_class,
        largest_side=largest_side(subject),
        models=tuple(model.described for model in subject.models.values()),
        clean=clean,
        corruptions=tuple(stressed),
        complete=len(todo) == 1 + len(conditions(subject.contract.channels)),
        mean_float=means.get("float"),
        mean_int8=means["int8"],
        worst=worst,
        trained_robust=subject.robust,
        at_least=settings.at_least,
        passed=settings.at_least is None or means["int8"].accuracy >= settings.at_least,
        test_uses=(before.test_uses if before else 0) + (split == "test"),
        seconds=round(seconds, 1),
        machine=processor(),
        versions=library_versions(),
    )


def condition(
    right: Mapping[str, np.ndarray], agree: np.ndarray, name: str, strength: int, size_class: SizeClass
) -> Condition:
    """Return the figures of one condition, a corruption at a strength, or "" and 0 for none.

    `right` has for each model, and `agree` for all together, whether each image is answered correctly or equally, bool (images,).
    """

    def measured(hits: np.ndarray) -> Measured:
        return Measured(accuracy=float(hits.mean()), interval=wilson(int(hits.sum()), len(hits)))

    by_model = {model: measured(hits) for model, hits in right.items()}
    both = measured(agree) if len(right) > 1 else None
    return Condition(
        strength=strength,
        value=value_text(CORRUPTIONS[name].values(size_class)[strength - 1] if name else None),
        float=by_model.get("float"),
        int8=by_model["int8"],
        agreement=both.accuracy if both else None,
        agreement_interval=both.interval if both else None,
    )


def stressed_by(corruption: str, clean: Condition, strengths: tuple[Condition, ...]) -> Stressed:
    """Return the figures of one corruption at its strengths; `clean` has those without corruption."""
    int8 = float(np.mean([item.int8.accuracy for item in strengths]))
    floats = [item.float.accuracy for item in strengths if item.float]
    agreements = [item.agreement for item in strengths if item.agreement is not None]
    return Stressed(
        corruption=corruption,
        unit=CORRUPTIONS[corruption].unit,
        float=float(np.mean(floats)) if floats else None,
        int8=int8,
        agreement=float(np.mean(agreements)) if agreements else None,
        lost=100 * (clean.int8.accuracy - int8),
        strengths=strengths,
    )


def mean(shares: np.ndarray) -> Mean:
    """Return a model's mean corrupted accuracy and its interval, from the mean for each image, float64 (n,)."""
    middle = float(np.clip(shares.mean(), 0, 1))
    error = float(shares.std(ddof=1) / len(shares) ** 0.5) if len(shares) > 1 else 1.0
    reach = quantile(0.95) * error
    return Mean(accuracy=middle, interval=(max(0.0, middle - reach), min(1.0, middle + reach)))


def require_passed(report: StressReport) -> None:
    if report.passed:
        return
    worst = report.costliest
    raise StressError(
        f"{report.name}: int8 is right on {report.mean_int8.accuracy:.2%} of corrupted images on average; at least {report.at_least:.2%} "
        f"was required. {worst.corruption} costs the most accuracy: {worst.lost:.2f} points. "
        "Add such images to the training data, train with --robust, or accept less with --at-least."
    )
