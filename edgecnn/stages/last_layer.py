"""The last layer of a run's network, fitted to photos: both models, and the answers of layers that did not see a photo."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecnn.data import Dataset
from edgecnn.data.decoding import balanced, class_weights
from edgecnn.evaluate.held_out import HeldOut, joined, write_held_out
from edgecnn.files import write_atomic
from edgecnn.recipe import Recipe
from edgecnn.run_info import Int8Method, RunInfo, StartedFrom, Validation
from edgecnn.runs import FEATURES, FLOAT_MODEL, QAT_MODEL, Run
from edgecnn.stages.choose import KNOWN_IMAGES
from edgecnn.stages.int8_files import Int8Files
from edgecnn.stages.reporter import Reporter

if TYPE_CHECKING:
    from edgecnn.train.frozen import Photos


def ship_head(recipe: Recipe, dataset: Dataset, run: Run, info: RunInfo, reporter: Reporter) -> RunInfo:
    """Fit the last layer to the training and validation photos of a run whose fine-tuning has lost, and return the run's record.

    Held-out answers of folds choose temperature and limits. The test photos stay unseen.
    """
    from edgecnn.train.candidates import folds_of
    from edgecnn.train.frozen import Photos
    from edgecnn.train.train import input_shape

    started, splits = time.monotonic(), ("train", "validation")
    count = sum(dataset.sizes[split] for split in splits)
    photos = Photos(dataset, splits, input_shape(recipe, dataset)[2], recipe.seed, count, reporter.working)
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


def similarities(recipe: Recipe, features: np.ndarray, classes: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return each photo's similarity to known photos of the other folds, float64 (n,); NaN if strangers are not detected."""
    from edgecnn.calibrate.confidence import known_codes, similar_to
    from edgecnn.train.last_layer import parts

    found = np.full(len(classes), np.nan)
    for kept, held in parts(folds) if recipe.stranger.rate else ():
        drawn = kept[np.sort(balanced(classes[kept], KNOWN_IMAGES, recipe.seed))]
        found[held] = similar_to(features[held], known_codes(features[drawn]))
    return found
