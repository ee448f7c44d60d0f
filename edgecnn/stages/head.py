"""The stage that trains only the last layer, on all photos: each photo also tests, answered by a layer that was fitted without its fold."""

import time
from pathlib import Path

import numpy as np

from edgecnn.data import Dataset
from edgecnn.data.balanced import balanced, class_weights
from edgecnn.data.folds import Folds
from edgecnn.data.recorded import write_known
from edgecnn.errors import RecipeError
from edgecnn.evaluate.held_out import HeldOut, joined, write_held_out
from edgecnn.files import write_atomic
from edgecnn.recipe import Recipe
from edgecnn.run_info import FoldInfo, InputSize, Int8Method, RunInfo, Validation
from edgecnn.runs import FEATURES, FLOAT_MODEL, INFO, QAT_MODEL, Run, settle_run
from edgecnn.stages.choose import KNOWN_IMAGES
from edgecnn.stages.folds import asked_recipe, begun, train_by_folds
from edgecnn.stages.int8_files import Int8Files
from edgecnn.stages.network_choice import choose_network
from edgecnn.stages.reporter import Reporter, Silent
from edgecnn.stages.train import network_name, resumable, settled
from edgecnn.versions import library_versions

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
    """Fit the last layer, write both models and the answers to held-out photos, and return the run's record."""
    from edgecnn.networks import build_network
    from edgecnn.networks.backbone import is_backbone
    from edgecnn.networks.efficientnet_lite import family_of
    from edgecnn.networks.predict import model_bytes
    from edgecnn.train.best import score
    from edgecnn.train.frozen import Photos, frozen_features
    from edgecnn.train.head_only import train_head
    from edgecnn.train.last_layer import Images
    from edgecnn.train.origin import local_recipe, open_start
    from edgecnn.train.train import input_shape

    network = local_recipe(recipe, run).network
    name, shape = network.name, input_shape(recipe, whole)
    height, width, channels = shape
    photos = Photos(whole, ("train",), channels, recipe.seed, whole.sizes["train"], reporter.working)
    reading = recipe.input_scale, recipe.input_zero_point
    family = name if is_backbone(name) else family_of(name)
    found = frozen_features(family, (height, width), photos, reading, run.file(FEATURES), network.options)
    values = found[Path(name).name]
    sources = [source for _, source in photos.places]
    pixels = whole.at_size("train", sources, shape, stage="train", progress=reporter.working)
    images = Images(
        values, photos.classes, class_weights(photos.classes, recipe.train.class_weights), len(whole.labels)
    )
    fold = np.array([folds.of[one] for one in photos.hashes])
    start = open_start(recipe, run)
    assert start is not None
    model = build_network(name, *shape, len(whole.labels), network.options)
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
        sources=np.array(sources, np.str_),
        classes=photos.classes,
        fold=fold,
        float=made.float_logits,
        int8=made.int8_logits,
        similarity=similarities(recipe, made.features, photos.classes, fold),
    )
    write_held_out(run, joined([held]))
    judged = score(held.int8, held.float, held.classes)
    seconds = round(time.monotonic() - started, 1)
    return RunInfo(
        state="trained",
        data=whole.info({"train": len(sources), "validation": 0}),
        input=InputSize(height=height, width=width, channels=channels),
        parameters=model.count_params(),
        versions=library_versions(),
        init=start.recorded,
        seconds=seconds,
        validation_accuracy=judged.accuracy,
        int8=Int8Method(
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
        ),
        folds=tuple(fold_info(recipe, shape, held, number) for number in range(1, folds.count + 1)),
    )


def similarities(recipe: Recipe, features: np.ndarray, classes: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return each photo's similarity to known photos of the other folds, float64 (n,); NaN if strangers are not detected."""
    from edgecnn.calibrate.strangers import known_codes, similar_to
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
