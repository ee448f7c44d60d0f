"""The stage that trains only the last layer, on all photos: each photo also tests, answered by a layer that was fitted without its fold."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecnn.data import Dataset
from edgecnn.data.dataset import write_known
from edgecnn.data.decoding import balanced, class_weights
from edgecnn.data.folds import Folds
from edgecnn.errors import RecipeError
from edgecnn.evaluate.held_out import HeldOut, joined, write_held_out
from edgecnn.files import write_atomic
from edgecnn.recipe import Recipe
from edgecnn.run_info import FoldInfo, InputSize, Int8Method, RunInfo, StartedFrom, Validation
from edgecnn.runs import FEATURES, FLOAT_MODEL, INFO, QAT_MODEL, Run, create_run, settle_run
from edgecnn.stages.choose import KNOWN_IMAGES
from edgecnn.stages.folds import asked_recipe, begun, train_by_folds
from edgecnn.stages.int8_files import Int8Files
from edgecnn.stages.network_choice import choose_network
from edgecnn.stages.reporter import Reporter, Silent
from edgecnn.stages.train import network_name, resumable, settled
from edgecnn.versions import library_versions

if TYPE_CHECKING:
    from edgecnn.train.frozen import Photos

START_S, PHOTO_S = 60, 0.11
"""Seconds for the start and the int8 body, and per photo: 400 photos took 127 s, 1,465 took 256 s, on two busy cores of an Intel Xeon."""


def require_pretrained(recipe: Recipe) -> None:
    """Raise RecipeError if a recipe trains only the last layer of a network without weights to keep; an open network has some."""
    from edgecnn.networks.pretrained import SOURCES, source_of

    name, start = recipe.network.name, recipe.init.source
    if recipe.train.head_only and name and (start or source_of(name) is None):
        known = " or ".join(f"{source.prefix}…" for source in SOURCES)
        raise RecipeError(
            f"--quick fits the last layer of a network with ImageNet weights ({known}), not of {name} from {start or 'random weights'}. "
            "Name such a network with --network and leave out --init, or leave out --quick."
        )


def train_on_all(dataset: Dataset, run: Run, reporter: Reporter, jobs: int = 1) -> RunInfo:
    """Train a run on all images: only the last layer, or by its recipe's folds. Arguments and errors as in `train_by_folds`."""
    if asked_recipe(run).train.head_only:
        return train_head_only(dataset, run, reporter)
    return train_by_folds(dataset, run, reporter, jobs)


def beyond_quick(run: Run, reporter: Reporter) -> Run:
    """Return a run to resume: one whose last layer is trained begins anew, without --quick; the features of its photos stay."""
    if not (run.recipe.train.head_only and run.file(INFO).exists()):
        return run
    asked = asked_recipe(run)
    reporter.note(
        f"{run.path}: --quick is finished, so fine-tuning comes next. The network is chosen again without the test photos, and the "
        "model that is here now will be replaced"
    )
    recipe = dataclasses.replace(asked, train=dataclasses.replace(asked.train, head_only=False, folds=None))
    return create_run(recipe, run.path, force=True, keep_features=True)


def train_head_only(dataset: Dataset, run: Run, reporter: Reporter) -> RunInfo:
    """Train the last layer of a run's network, from where it stopped.

    Raises:
        DatasetError: if the images cannot be divided into folds.
        RunError: if images of the folds are gone.
    """
    with resumable(run, reporter):
        asked, folds, whole = begun(dataset, run, reporter)
        if run.file(INFO).exists():
            return run.info
        started, count = time.monotonic(), whole.sizes["train"]
        reporter.note(
            f"the last layer of an ImageNet network, fitted to {count:,} photos: about {START_S + PHOTO_S * count:.0f} s on two cores"
        )
        recipe = settled(choose_network(asked, whole, run, reporter), whole, Silent())
        run = settle_run(run, recipe)
        write_known(run, whole)
        info = fitted(recipe, whole, run, folds, reporter, started)
        run.write_info(info)
    return info


def fitted(recipe: Recipe, whole: Dataset, run: Run, folds: Folds, reporter: Reporter, started: float) -> RunInfo:
    """Fit the last layer to all photos, and return the run's record."""
    from edgecnn.train.frozen import Photos

    photos = Photos(
        whole, ("train",), input_channels(recipe, whole), recipe.seed, whole.sizes["train"], reporter.working
    )
    fold = np.array([folds.of[one] for one in photos.hashes])
    layer = fit_last_layer(recipe, whole, photos, fold, run, reporter)
    height, width, channels = shape = layer.shape
    return RunInfo(
        state="trained",
        data=whole.info({"train": len(photos.hashes), "validation": 0}),
        input=InputSize(height=height, width=width, channels=channels),
        parameters=layer.parameters,
        versions=library_versions(),
        init=layer.start,
        seconds=round(time.monotonic() - started, 1),
        validation_accuracy=layer.accuracy,
        int8=layer.int8,
        folds=tuple(fold_info(recipe, shape, layer.held, number) for number in range(1, folds.count + 1)),
    )


def ship_head(recipe: Recipe, dataset: Dataset, run: Run, info: RunInfo, reporter: Reporter) -> RunInfo:
    """Fit the last layer to the training and validation photos of a run whose fine-tuning has lost, and return the run's record.

    Held-out answers of folds choose temperature and limits. The test photos stay unseen.
    """
    from edgecnn.train.candidates import folds_of
    from edgecnn.train.frozen import Photos

    started, splits = time.monotonic(), ("train", "validation")
    count = sum(dataset.sizes[split] for split in splits)
    photos = Photos(dataset, splits, input_channels(recipe, dataset), recipe.seed, count, reporter.working)
    fold = 1 + folds_of(photos.classes, photos.groups, recipe.seed)
    layer = fit_last_layer(recipe, dataset, photos, fold, run, reporter)
    info = dataclasses.replace(
        info,
        state="trained",
        seconds=round((info.seconds or 0.0) + time.monotonic() - started, 1),
        validation_accuracy=layer.accuracy,
        int8=layer.int8,
    )
    run.write_info(info)
    return info


class LastLayer(NamedTuple):
    """A run's fitted last layer: the models are in the run, and so are the held-out answers."""

    shape: tuple[int, int, int]
    parameters: int
    start: StartedFrom
    held: HeldOut
    int8: Int8Method
    accuracy: float


def fit_last_layer(
    recipe: Recipe, dataset: Dataset, photos: "Photos", fold: np.ndarray, run: Run, reporter: Reporter
) -> LastLayer:
    """Fit the last layer to photos, whose folds are `fold`, int (n,), and write both models and the answers to held-out photos."""
    from edgecnn.networks import build_network
    from edgecnn.networks.backbone import is_backbone
    from edgecnn.networks.efficientnet_lite import family_of
    from edgecnn.networks.predict import model_bytes
    from edgecnn.train.best import score
    from edgecnn.train.frozen import frozen_features
    from edgecnn.train.head_only import train_head
    from edgecnn.train.last_layer import Images
    from edgecnn.train.origin import local_recipe, open_start
    from edgecnn.train.train import input_shape

    network = local_recipe(recipe, run).network
    name, shape = network.name, input_shape(recipe, dataset)
    reading = recipe.input_scale, recipe.input_zero_point
    family = name if is_backbone(name) else family_of(name)
    found = frozen_features(family, shape[:2], photos, reading, run.file(FEATURES), network.options)
    values = found[Path(name).name]
    pixels = photos.at_size(photos.places, shape, reporter.working)
    weights = class_weights(photos.classes, recipe.train.class_weights)
    images = Images(values, photos.classes, weights, len(dataset.labels))
    start = open_start(recipe, run)
    assert start is not None
    model = build_network(name, *shape, len(dataset.labels), network.options)
    start.give(model)
    int8_files = Int8Files(recipe)
    made = train_head(
        model,
        recipe,
        pixels,
        images,
        fold,
        lambda student: int8_files.features(student, pixels, reporter.working),
        reporter.working,
    )
    write_atomic(run.file(FLOAT_MODEL), model_bytes(made.model))
    write_atomic(run.file(QAT_MODEL), model_bytes(made.student))
    held = HeldOut(
        hashes=np.array(photos.hashes, np.str_),
        sources=np.array([source for _, source in photos.places], np.str_),
        classes=photos.classes,
        fold=fold,
        float=made.float_logits,
        int8=made.int8_logits,
        similarity=similarities(recipe, made.features, photos.classes, fold),
    )
    write_held_out(run, joined([held]))
    judged = score(held.int8, held.float, held.classes)
    int8 = Int8Method(
        asked="auto",
        method="qat",
        decided_by=None,
        epoch=0,
        rounding="gptq",
        learning_rate=None,
        validation=Validation(
            n=judged.n,
            float=score(held.float, held.float, held.classes).figures(),
            qat=judged.figures(),
            qat_nearest=None,
            ptq=None,
        ),
    )
    return LastLayer(shape, model.count_params(), start.recorded, held, int8, judged.accuracy)


def input_channels(recipe: Recipe, dataset: Dataset) -> int:
    return recipe.network.channels or dataset.shape[2]


def similarities(recipe: Recipe, features: np.ndarray, classes: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return each photo's similarity to known photos of the other folds, float64 (n,); NaN if strangers are not detected."""
    from edgecnn.calibrate.confidence import known_codes, similar_to
    from edgecnn.train.last_layer import parts

    found = np.full(len(classes), np.nan)
    for kept, held in parts(folds) if recipe.stranger.rate else ():
        drawn = kept[np.sort(balanced(classes[kept], KNOWN_IMAGES, recipe.seed))]
        found[held] = similar_to(features[held], known_codes(features[drawn]))
    return found


def fold_info(recipe: Recipe, shape: tuple[int, int, int], held: HeldOut, fold: int) -> FoldInfo:
    own = held.fold == fold
    right = [float(np.mean(values[own].argmax(axis=1) == held.classes[own])) for values in (held.float, held.int8)]
    return FoldInfo(
        network=network_name(recipe),
        height=shape[0],
        width=shape[1],
        images=int(own.sum()),
        epochs=0,
        method="qat",
        rounding="gptq",
        epoch=0,
        qat_epochs=0,
        float_accuracy=right[0],
        int8_accuracy=right[1],
        seconds=0.0,
    )
