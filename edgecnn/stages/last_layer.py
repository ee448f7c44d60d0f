"""The last layer of a run's network, fitted to photos, and the int8 files that training chooses among, made in memory."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecnn.data import Dataset, Split
from edgecnn.data.decoding import balanced, class_weights
from edgecnn.errors import ExportError
from edgecnn.evaluate.answers import (
    HeldOut,
    Progress,
    contract_of,
    device_model,
    in_chunks,
    joined_folds,
    write_held_out,
)
from edgecnn.export import tflite
from edgecnn.export.onnx import with_features
from edgecnn.export.tflite import IMAGES
from edgecnn.files import write_atomic
from edgecnn.recipe import Settled
from edgecnn.run_info import InputSize, Int8Method, NetworkChoice, RunInfo, StartedFrom, Validation
from edgecnn.runs import FEATURES, FLOAT_MODEL, QAT_MODEL, Run, settle_run
from edgecnn.runtime.model import Model
from edgecnn.stages import Reporter
from edgecnn.stages.choose import KNOWN_IMAGES
from edgecnn.stages.network_choice import with_chosen
from edgecnn.versions import processors

if TYPE_CHECKING:
    from edgecnn.train.candidates import Photos


@dataclass(frozen=True)
class Int8Files:
    """Implements `edgecnn.train.best.Int8`: the answers that the files of `edgecnn export` would give, on a device's engine."""

    recipe: Settled

    def fake_quantized(self, model: Any, images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, num_classes), of a fake-quantized model's int8 TFLite file; ExportError if the file has floats."""
        return self._logits(tflite.int8(model, signature=False), images)

    def post_training(self, model: Any, train: Split, images: np.ndarray) -> np.ndarray | None:
        """Return the same for a float model, calibrated as for an export; None if that fails, unless the recipe has this method."""
        recipe = self.recipe
        chosen = train.images[balanced(train.classes, IMAGES, recipe.seed)]
        drawn = tflite.RepresentativeDataset(chosen, recipe.input_scale, recipe.input_zero_point)
        try:
            data = tflite.int8_post_training(model, drawn, signature=False)
        except ExportError:
            if recipe.qat.method == "ptq":
                raise
            return None
        return self._logits(data, images)

    def features(self, model: Any, images: np.ndarray, progress: Progress) -> np.ndarray:
        """Return the features that a fake-quantized model's int8 file computes, as the values of their codes: float32 (n, length)."""
        device = self._device(with_features(tflite.int8(model, signature=False)), images)
        return in_chunks(lambda part: device.logits_and_features(part)[1], images, "features in int8", progress)

    def _logits(self, data: bytes, images: np.ndarray) -> np.ndarray:
        return in_chunks(self._device(data, images).logits, images, "validation", lambda what, done, total: None)

    def _device(self, data: bytes, images: np.ndarray) -> Model:
        return device_model(data, "tflite", contract_of(self.recipe, images.shape[1:]), processors())


def fit_divided(recipe: Settled, dataset: Dataset, run: Run, info: RunInfo, reporter: Reporter) -> RunInfo:
    """Fit the last layer of a recipe's network to the training and validation photos of a run, and return the run's record.

    Held-out answers of folds choose temperature and limits. The test photos stay unseen.
    """
    from edgecnn.train.candidates import folds_of

    started = time.monotonic()
    photos = photos_of(recipe, dataset, reporter)
    fold = 1 + folds_of(photos.classes, photos.groups, recipe.seed)
    layer = fit_last_layer(recipe, dataset, photos, fold, run, reporter)
    run = settle_run(run, recipe)
    height, width, channels = layer.shape
    info = dataclasses.replace(
        info,
        state="trained",
        input=InputSize(height=height, width=width, channels=channels),
        parameters=layer.parameters,
        init=layer.start,
        seconds=round((info.seconds or 0.0) + time.monotonic() - started, 1),
        validation_accuracy=layer.accuracy,
        int8=layer.int8,
    )
    run.write_info(info)
    return info


def photos_of(recipe: Settled, dataset: Dataset, reporter: Reporter) -> "Photos":
    """Return all readable photos of training and validation."""
    from edgecnn.train.candidates import Photos
    from edgecnn.train.train import input_shape

    splits = [split for split in ("train", "validation") if dataset.sizes[split]]
    count = sum(dataset.sizes[split] for split in splits)
    return Photos(dataset, splits, input_shape(recipe, dataset)[2], recipe.seed, count, reporter.working)


def features_of(recipe: Settled, dataset: Dataset, photos: "Photos", run: Run) -> np.ndarray:
    """Return the photos' features by the recipe's network with the weights that it starts from: float32 (n, length)."""
    from edgecnn.networks.blocks import family_of
    from edgecnn.networks.pretrained import is_backbone
    from edgecnn.train.candidates import frozen_features
    from edgecnn.train.origin import local_recipe
    from edgecnn.train.train import input_shape

    network = local_recipe(recipe, run).network
    name, size = network.name, input_shape(recipe, dataset)[:2]
    family = name if is_backbone(name) else family_of(name)
    reading = recipe.input_scale, recipe.input_zero_point
    return frozen_features(family, size, photos, reading, run.file(FEATURES), network.options)[Path(name).name]


def head_answers(recipe: Settled, made: NetworkChoice, dataset: Dataset, run: Run, reporter: Reporter) -> np.ndarray:
    """Return the logits of a chosen network's last layer, fitted to the training photos, for validation photos: float32 (n, classes)."""
    from edgecnn.train.candidates import Images
    from edgecnn.train.origin import fit_layer

    photos = photos_of(recipe, dataset, reporter)
    features = features_of(with_chosen(recipe, made), dataset, photos, run)
    taught = np.array([split == "train" for split, _ in photos.places])
    weights = np.ones(len(taught))
    weights[taught] = class_weights(photos.classes[taught], recipe.train.class_weights)
    images = Images(features, photos.classes, weights, len(dataset.labels))
    return fit_layer(images.some(np.flatnonzero(taught)), recipe.seed).logits(images.features[~taught])


class LastLayer(NamedTuple):
    """A run's fitted last layer: the models are in the run, and so are the held-out answers."""

    shape: tuple[int, int, int]
    parameters: int
    start: StartedFrom
    held: HeldOut
    int8: Int8Method
    accuracy: float


def fit_last_layer(
    recipe: Settled, dataset: Dataset, photos: "Photos", fold: np.ndarray, run: Run, reporter: Reporter
) -> LastLayer:
    """Fit the last layer to photos, whose folds are `fold`, int (n,), and write both models and the answers to held-out photos."""
    from edgecnn.networks import build_network
    from edgecnn.networks.predict import model_bytes
    from edgecnn.train.best import score
    from edgecnn.train.candidates import Images
    from edgecnn.train.origin import local_recipe, open_start, train_head
    from edgecnn.train.train import input_shape

    network = local_recipe(recipe, run).network
    name, shape = network.name, input_shape(recipe, dataset)
    values = features_of(recipe, dataset, photos, run)
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
    write_held_out(run, joined_folds([held]))
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


def similarities(recipe: Settled, features: np.ndarray, classes: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return each photo's similarity to known photos of the other folds, float64 (n,); NaN if strangers are not detected."""
    from edgecnn.calibrate.confidence import known_codes, similar_to
    from edgecnn.train.candidates import parts

    found = np.full(len(classes), np.nan)
    for kept, held in parts(folds) if recipe.stranger.rate else ():
        drawn = kept[np.sort(balanced(classes[kept], KNOWN_IMAGES, recipe.seed))]
        found[held] = similar_to(features[held], known_codes(features[drawn]))
    return found
