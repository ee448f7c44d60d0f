"""The part of training that reads a backbone's file: its input, what it reads for a pixel, and whether int8 training can wrap it."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.data import Dataset
from edgecnn.errors import NetworkError, RecipeError
from edgecnn.labels import plural
from edgecnn.networks.backbone import MEAN, SHA256, STD, is_backbone
from edgecnn.recipe import INPUT_RANGES, Recipe
from edgecnn.runs import RECIPE, Run
from edgecnn.stages.reporter import Reporter

if TYPE_CHECKING:
    from edgecnn.calibrate.input_range import PixelRange
    from edgecnn.networks.keras import keras

TRIED = 300  # photos on whose features the usual input ranges are compared

RANGE = "input_range"
"""The key of a requested range in a recipe's network.options. A recipe with the SHA-256 has the range itself."""


def with_backbone(recipe: Recipe, dataset: Dataset, reporter: Reporter, run: Run | None = None) -> Recipe:
    """Return a recipe whose network is a FILE.onnx with all that it needs of the file: input, SHA-256 and range; others unchanged.

    A range that is not given is that of the usual ones under which a fitted last layer answers held-out photos best. If a `run` has begun
    with this file, its range is kept.

    Raises:
        NetworkError: if the file is missing, is not the recipe's, or does not end in a dense layer.
        ExportError: if it is not a classifier that edgecnn can read.
        RecipeError: if other keys contradict the file.
    """
    network = recipe.network
    if not is_backbone(network.name):
        return recipe
    from edgecnn.networks.backbone import body_of, read_backbone

    path, options = Path(network.name), dict(network.options)
    asked = options.pop(RANGE, "auto")
    require_keys(recipe, path.name)
    reporter.note(f"reading {path}")
    backbone = read_backbone(path, options.get(SHA256))
    size = (network.height, network.width) if network.height and network.width else None
    body = body_of(backbone, str(path), size)
    height, width, channels = body.input_shape[1:]
    if network.channels not in (None, channels):
        raise RecipeError(f"{path.name} reads {channels} channels, not {network.channels}. Leave network.channels out.")
    input_range = network.input_range
    if SHA256 not in options:
        options[SHA256] = backbone.sha256
        begun = run.recipe.network if run and run.file(RECIPE).exists() else None
        if begun and asked == "auto" and begun.options.get(SHA256) == backbone.sha256:
            options, input_range = dict(begun.options), begun.input_range
        elif MEAN not in options and network.input_scale is None:
            found = given_range(asked) or best_range(body, recipe, dataset, reporter)
            if found.name in INPUT_RANGES:
                input_range = found.name
            elif found.mean and found.std:
                options |= {MEAN: text_of(found.mean), STD: text_of(found.std)}
    network = dataclasses.replace(
        network, height=height, width=width, channels=channels, input_range=input_range, options=options
    )
    return trainable(dataclasses.replace(recipe, network=network), body, path.name, reporter)


def require_keys(recipe: Recipe, name: str) -> None:
    options = recipe.network.options
    if unknown := sorted(options.keys() - {RANGE, MEAN, STD, SHA256}):
        raise RecipeError(f"network.options has {', '.join(unknown)}, which a backbone does not use. Leave it out.")
    if (MEAN in options) != (STD in options):
        raise RecipeError("a mean and a deviation go together: give --input-mean and --input-std.")
    if (MEAN in options) + (options.get(RANGE) not in (None, "auto")) + (recipe.network.input_scale is not None) > 1:
        raise RecipeError(f"the input range of {name} is given twice. Give --input-range, or a mean, or a scale.")
    if recipe.init.source:
        raise RecipeError(f"{name} brings its own weights to start from. Leave init.source (--init) out.")


def given_range(name: str) -> "PixelRange | None":
    """Return a usual range by its name; None for "auto"."""
    from edgecnn.calibrate.input_range import AUTO, RANGES, stated_range

    if name not in (AUTO, *RANGES):
        raise RecipeError(f"network.options.{RANGE} is {name!r}, expected one of {', '.join((AUTO, *RANGES))}.")
    return stated_range(name)


def best_range(body: "keras.Model", recipe: Recipe, dataset: Dataset, reporter: Reporter) -> "PixelRange":
    """Return the usual range under which last layers, each fitted without a fold, answer that fold's photos best. It sees no test photo."""
    import numpy as np

    from edgecnn.calibrate.input_range import IMAGENET, USUAL, spelled
    from edgecnn.data.decoding import class_weights
    from edgecnn.networks.predict import predictor
    from edgecnn.train.candidates import folds_of
    from edgecnn.train.frozen import Photos
    from edgecnn.train.last_layer import Images, held_out, log_losses

    _, height, width, channels = body.input_shape
    splits = [split for split in ("train", "validation") if dataset.sizes[split]]
    photos = Photos(dataset, splits, channels, recipe.seed, TRIED, reporter.working)
    pixels = photos.at_size(photos.places, (height, width, channels))
    weights = class_weights(photos.classes, recipe.train.class_weights)
    folds = folds_of(photos.classes, photos.groups, recipe.seed)
    tried = [*USUAL, *([IMAGENET] if channels == 3 else [])]
    losses, rights = [], []
    for number, one in enumerate(tried, 1):
        features = predictor(body, *one.numbers, batch_size=50)(pixels)
        images = Images(features, photos.classes, weights, len(dataset.labels))
        answers, _ = held_out(images, folds)
        losses.append(float(np.mean(weights * log_losses(answers, photos.classes))))
        rights.append(float(np.mean(answers.argmax(axis=1) == photos.classes)))
        reporter.working("trying input ranges", number, len(tried))
    best = tried[int(np.argmin(losses))]
    found = ", ".join(
        f"{one.name} {right:.1%} right (loss {loss:.2f})"
        for one, right, loss in zip(tried, rights, losses, strict=True)
    )
    reporter.note(
        f"the backbone reads pixels as {spelled(best)} ({best.name}): with it, fitted last layers answer {plural(len(pixels), 'photo')} "
        f"best: {found}. --input-range changes it."
    )
    return best


def trainable(recipe: Recipe, body: "keras.Model", name: str, reporter: Reporter) -> Recipe:
    """Return a recipe that quantizes after training if the network has layers that cannot be trained as int8, and name those.

    Raises NetworkError if the recipe needs int8 training.
    """
    from edgecnn.stages.import_ import named_layers, refused_by_training

    refused = {} if recipe.qat.method == "ptq" else refused_by_training(body)
    if not refused:
        return recipe
    text = f"{name}: {named_layers(refused, body)} cannot be trained as int8"
    if recipe.qat.method == "qat" or recipe.train.head_only:
        instead = "qat.method=qat" if recipe.qat.method == "qat" else "--quick"
        raise NetworkError(f"{text}. Leave out {instead}, so that it is quantized after training.")
    reporter.note(f"{text}, so it is quantized after training")
    return dataclasses.replace(recipe, qat=dataclasses.replace(recipe.qat, method="ptq"))


def text_of(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
