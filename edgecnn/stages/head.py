"""The stage that trains only the last layer, on all photos: each photo also tests, answered by a layer that was fitted without its fold."""

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np

from edgecnn.data import Dataset
from edgecnn.data.dataset import write_known
from edgecnn.data.folds import Folds
from edgecnn.errors import RecipeError
from edgecnn.evaluate.held_out import HeldOut
from edgecnn.recipe import Recipe
from edgecnn.run_info import FoldInfo, InputSize, RunInfo
from edgecnn.runs import INFO, Run, create_run, settle_run
from edgecnn.stages.folds import asked_recipe, begun, train_by_folds
from edgecnn.stages.last_layer import fit_last_layer
from edgecnn.stages.network_choice import choose_network
from edgecnn.stages.reporter import Reporter, Silent
from edgecnn.stages.train import network_name, resumable, settled
from edgecnn.versions import library_versions

if TYPE_CHECKING:
    pass

START_S, PHOTO_S = 60, 0.12
"""Seconds for the start and the int8 body, and per photo, on two busy cores of an Intel Xeon: 400 photos took 127 s and 1,465 took 256 s
when each network was still built twice, which cost about 20 s."""


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
            f"the last layer of a pretrained network, fitted to {count:,} photos: about {START_S + PHOTO_S * count:.0f} s on two cores"
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
    from edgecnn.train.train import input_shape

    photos = Photos(
        whole, ("train",), input_shape(recipe, whole)[2], recipe.seed, whole.sizes["train"], reporter.working
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
