"""The training stage: data and a recipe in, a run with a float and a fake-quantized model out."""

import dataclasses
from collections.abc import Callable
from typing import cast

import numpy as np

from edgecnn.data import Dataset, Split
from edgecnn.data.recorded import write_known
from edgecnn.errors import RecipeError, RunError
from edgecnn.files import write_atomic
from edgecnn.networks.keras import tf
from edgecnn.networks.predict import model_bytes, model_from_bytes, predictor
from edgecnn.recipe import Recipe
from edgecnn.run_info import Asked, InputSize, Int8Method, RunInfo, Validation
from edgecnn.runs import FLOAT_MODEL, INFO, QAT_MODEL, Run
from edgecnn.train import distribute
from edgecnn.train.best import Int8, Score, better_method, score
from edgecnn.train.checkpoint import Checkpoint, load_checkpoint
from edgecnn.train.float_phase import float_phase, to_float32
from edgecnn.train.head import fit_head
from edgecnn.train.loop import Batches, History, Phase, Report, run_phase, write_history
from edgecnn.train.origin import local_recipe, open_start, own_file
from edgecnn.train.qat_phase import Qat
from edgecnn.train.settle import settle, starts_trained
from edgecnn.train.teacher import open_teacher, remembered
from edgecnn.versions import library_versions
from edgecnn.workers import Workers

LARGER = 1.4
"""Sides of the photos out of which parts are cut, in those of the input: the mean part, 70 % of the area, is then reduced by a sixth."""


def input_shape(recipe: Recipe, dataset: Dataset) -> tuple[int, int, int]:
    """Return the network's (height, width, channels): the recipe's, or where it leaves that open the data's own."""
    network = recipe.network
    height, width, channels = dataset.shape
    return network.height or height, network.width or width, network.channels or channels


def input_line(recipe: Recipe, dataset: Dataset) -> str:
    """Return a line on the network's input."""
    height, width, channels = input_shape(recipe, dataset)
    return f"input: {width}x{height} pixels (width x height), {channels} channel{'s' if channels > 1 else ''}"


def load_splits(
    recipe: Recipe, dataset: Dataset, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Split]:
    """Decode the training and validation images at the network's size. Raises DatasetError as `Dataset.load` does."""
    height, width, channels = input_shape(recipe, dataset)
    return dataset.load(
        ("train", "validation"), height=height, width=width, channels=channels, stage="train", progress=progress
    )


def train(
    recipe: Recipe,
    dataset: Dataset,
    run: Run | None,
    report: Report,
    data_progress: Callable[[str, int, int], None] | None = None,
    int8: Int8 | None = None,
    workers: Workers | None = None,
) -> RunInfo:
    """Train a run to its end, from its checkpoint if it has one.

    Writes `run.json` and the list of images first, then a checkpoint and the history after each epoch, `float.h5` after the float phase,
    and `qat.h5` last: the epoch of the quantization-aware phase whose int8 file was the best on validation images, by the rule of
    `edgecnn.train.best`. How the int8 models are made, and why, is under "int8" in `run.json`. A user's own network and the one to start
    from are copied into the run before. Operations are deterministic and every epoch has its own seed: a resumed run ends with the weights
    of an uninterrupted one.

    Args:
        recipe: the resolved recipe.
        dataset: the images; only its train and validation splits are used.
        run: the run folder; None for a worker that is not the first.
        report: called with progress.
        data_progress: called while images are decoded.
        int8: answers as int8 files do; without it the fake-quantized model itself answers, and post-training quantization is not
            measured.
        workers: the machines that share the float phase; `announce` was called before TensorFlow was imported. One that is not the
            first writes nothing, and returns after that phase.

    Returns:
        What `run.json` holds.

    Raises:
        NetworkError, TrainingError, DatasetError, OutputError, ClusterError: as the parts do.
        RecipeError: if several machines are to start from a trained network.
        RunError: if the teacher is not the one with which the run began, or there is no trained network to start from.
    """
    training = Training(recipe, dataset, run, report, data_progress, workers)
    info = training.info()
    if workers:
        distribute.check_same(training.strategy, workers, recipe, info)
    if run:
        begin(run, info)
        write_known(run, dataset)
    training.train_float()
    if run is None:
        return info
    chosen = training.train_int8(run, int8)
    write_history(run, training.history)
    shipped = chosen.validation.qat if chosen.method == "qat" else chosen.validation.ptq
    info = dataclasses.replace(
        info,
        state="trained",
        flip=training.batches.flip,
        seconds=round(sum(row["seconds"] for row in training.history), 1),
        validation_accuracy=(shipped or chosen.validation.float).accuracy,
        int8=chosen,
    )
    run.write_info(info)
    return info


class Training:
    """A training under way: what its phases share, and how far it is. Arguments and errors as of `train`."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        run: Run | None,
        report: Report,
        data_progress: Callable[[str, int, int], None] | None,
        workers: Workers | None,
    ) -> None:
        """Read the images and the networks from elsewhere, copy these into the run, and build the network."""
        recipe = settle(recipe, dataset)
        tf.config.experimental.enable_op_determinism()
        self.strategy = distribute.open_strategy(workers)
        distribute.check_batch(recipe.train.batch_size, self.strategy)
        if workers and starts_trained(recipe):
            raise RecipeError(
                "a network that starts from trained weights cannot be trained by several machines: it is meant for few images.",
                advice="workers_or_init",
            )
        self.dataset, self.run, self.report, self.workers = dataset, run, report, workers
        self.shape = input_shape(recipe, dataset)
        self.num_classes = len(dataset.labels)
        self.splits = load_splits(recipe, dataset, data_progress)
        self.validation = (self.splits["validation"].images, self.splits["validation"].classes)
        self.start = open_start(recipe, run)
        self.own_file = own_file(recipe, run)
        self.data_progress = data_progress
        self.recipe = local_recipe(recipe, run)
        train = self.splits["train"]
        images, rows_columns = train.images, source_size(self.recipe, self.shape)
        if rows_columns != self.shape[:2]:
            images = dataset.at_size(
                "train", train.sources, (*rows_columns, self.shape[2]), stage="train", progress=data_progress
            )
        self.batches = training_batches(self.recipe, images, train.classes, self.shape[:2])
        self.guide = open_teacher(self.recipe, self.shape, tuple(dataset.labels))
        if self.guide and self.batches.views and not self.strategy:
            steps, size = self.batches.views * self.batches.count, min(self.batches.batch_size, len(images))
            self.guide = remembered(self.guide, steps, size, self.num_classes)
        self.history: History = ()
        self.checkpoint: Checkpoint | None = None
        logits = self.guide.logits if self.guide else None
        self.model, self.phase = float_phase(
            self.recipe, self.shape, self.num_classes, self.validation, logits, self.strategy
        )

    def info(self) -> RunInfo:
        """Return what `run.json` holds while training is under way."""
        height, width, channels = self.shape
        return RunInfo(
            state="training",
            data=self.dataset.info({name: len(split.classes) for name, split in self.splits.items()}),
            input=InputSize(height=height, width=width, channels=channels),
            parameters=self.model.count_params(),
            versions=library_versions(),
            network=self.own_file,
            init=self.start.recorded if self.start else None,
            teacher=self.guide.described if self.guide else None,
        )

    def train_float(self) -> None:
        """Train the float phase to its end, from the run's checkpoint, or from trained weights and a fitted head, or from random ones."""
        self.checkpoint = load_checkpoint(self.run) if self.run else None
        self.history = self.checkpoint.history if self.checkpoint else ()
        self.float_is_done = self.checkpoint is not None and self.checkpoint.phase == "qat"
        if self.workers:
            self.checkpoint, self.float_is_done = distribute.from_first(
                self.strategy, self.workers, self.phase, self.checkpoint
            )
        if self.float_is_done:
            return
        with distribute.cluster_errors(self.workers):
            if self.start and self.checkpoint is None:
                self.start.give(self.model)
                fit_head(self.model, self.recipe, self.splits["train"].images, self.batches.classes, self.data_progress)
                self.phase.take_start()
            self.run_phase(self.phase, self.batches)

    def train_int8(self, run: Run, int8: Int8 | None) -> Int8Method:
        """Write the float model, train the quantization-aware phase to its end, and choose how the int8 models are made."""
        recipe, (images, classes) = self.recipe, self.validation
        if self.float_is_done:
            teacher = model_from_bytes(run.read(FLOAT_MODEL, "train"))
        else:
            teacher = to_float32(self.model, recipe, self.shape, self.num_classes)
            write_atomic(run.file(FLOAT_MODEL), model_bytes(teacher))
        reference = predictor(teacher, recipe.input_scale, recipe.input_zero_point)(images)
        qat = None
        if recipe.qat.method != "ptq":
            batches = qat_batches(recipe, self.batches, self.splits["train"].images)
            qat = Qat(recipe, teacher, self.validation, reference, batches, int8)
            if not self.float_is_done:
                qat.begin()
            self.run_phase(qat.phase, batches)
            write_atomic(run.file(QAT_MODEL), model_bytes(qat.finish()))
        logits = int8.post_training(teacher, self.splits["train"], images) if int8 else None
        ptq = None if logits is None else score(logits, reference, classes)
        return choice(cast(Asked, recipe.qat.method or "auto"), qat, ptq, score(reference, reference, classes))

    def run_phase(self, phase: Phase, batches: Batches) -> None:
        """Train a phase to its end, and add its epochs to the history."""
        self.history = run_phase(phase, batches, self.run, self.history, self.checkpoint, self.report)


def source_size(recipe: Recipe, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return the (rows, columns) of the images that the float phase's batches are made of, for an input (height, width, channels).

    Parts are cut out of photos, which are therefore LARGER: parts of photos of the input's size would be less sharp than what the network
    sees later.
    """
    height, width, _ = shape
    return (round(LARGER * height), round(LARGER * width)) if recipe.train.augment == "photo" else (height, width)


def training_batches(recipe: Recipe, images: np.ndarray, classes: np.ndarray, size: tuple[int, int]) -> Batches:
    """Return the float phase's batches.

    Args:
        recipe: settled.
        images: uint8, shape (n, rows, columns, channels), of `source_size`.
        classes: theirs, shape (n,).
        size: (height, width) of the input.
    """
    views = (recipe.teacher.views if recipe.teacher else None) or 0
    return Batches(
        images=images,
        classes=classes,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        flip=recipe.train.flip != "no",
        shift=recipe.train.shift,
        alternating=recipe.train.flip == "alternating",
        cutout=recipe.train.cutout or 0,
        photo=size if recipe.train.augment == "photo" else None,
        robust=recipe.train.robust,
        views=views if views < recipe.train.epochs else 0,
    )


def qat_batches(recipe: Recipe, batches: Batches, images: np.ndarray) -> Batches:
    """Return the quantization-aware phase's batches: like the float phase's, but neither covered, nor repeated, nor changed as photos.

    `images` are the same ones at the input's size, uint8 (n, height, width, channels).

    The phase teaches a network to answer as it did, for which images as a camera gives them serve best. Corruptions stay mixed in: the
    int8 model has to answer as the float one under these too.
    """
    return dataclasses.replace(batches, images=images, batch_size=recipe.qat.batch_size, cutout=0, views=0, photo=None)


def begin(run: Run, info: RunInfo) -> None:
    """Write what is known of a run when its training begins, or goes on.

    Raises:
        RunError: if it began with another teacher.
    """
    before = run.info.teacher if run.file(INFO).exists() else info.teacher
    if before != info.teacher:
        one, other = (f"{item.name}, SHA-256 {item.sha256[:12]}" if item else "none" for item in (before, info.teacher))
        raise RunError(
            f"the teacher of {run.path} is not the one it began with (then {one}; now {other}). "
            "Put that one back, or train a new run."
        )
    run.write_info(info)
    run.make_latest()


def choice(asked: Asked, qat: Qat | None, ptq: Score | None, reference: Score) -> Int8Method:
    """Choose how the int8 models are made, and return what a run records about the choice.

    Args:
        asked: the recipe's qat.method.
        qat: the quantization-aware phase, finished; None without it.
        ptq: the score of the float model quantized after training; None if it was not measured.
        reference: the float model's own score.
    """
    best = qat.best.score if qat else None
    method, decided_by = better_method(asked, best, ptq)
    return Int8Method(
        asked=asked,
        method=method,
        decided_by=decided_by,
        epoch=qat.best.epoch if qat else None,
        rounding=qat.rounding if qat else None,
        learning_rate=qat.learning_rate if qat else None,
        validation=Validation(
            n=reference.n,
            float=reference.figures(),
            calibrated=qat.calibrated.figures() if qat and qat.calibrated else None,
            qat=best.figures() if best else None,
            qat_nearest=qat.nearest.figures() if qat and qat.nearest else None,
            ptq=ptq.figures() if ptq else None,
        ),
    )
