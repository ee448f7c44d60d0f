"""The training stage: data and a recipe in, a run with a float and a fake-quantized model out."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from edgecnn.data import Dataset, Split
from edgecnn.errors import RecipeError, RunError
from edgecnn.files import write_atomic
from edgecnn.networks.keras import tf
from edgecnn.networks.predict import model_bytes, model_from_bytes, predictor
from edgecnn.recipe import Recipe
from edgecnn.runs import FLOAT_MODEL, INFO, QAT_MODEL, Run
from edgecnn.train import distribute
from edgecnn.train.best import Int8, Score, better_method, score
from edgecnn.train.checkpoint import load_checkpoint
from edgecnn.train.float_phase import float_phase, to_float32
from edgecnn.train.head_phase import HEAD, head_phase, released
from edgecnn.train.loop import Batches, Report, run_phase, write_history
from edgecnn.train.origin import init_weights, local_recipe, origins
from edgecnn.train.qat_phase import Qat
from edgecnn.train.teacher import open_teacher, remembered
from edgecnn.versions import library_versions
from edgecnn.workers import Workers


def input_shape(recipe: Recipe, dataset: Dataset) -> tuple[int, int, int]:
    """Return the network's (height, width, channels): the recipe's, or where it says 0 the data's own."""
    network = recipe.network
    height, width, channels = dataset.shape
    return network.height or height, network.width or width, network.channels or channels


def input_line(recipe: Recipe, dataset: Dataset) -> str:
    """Return a line on the network's input, and where its size comes from."""
    height, width, channels = input_shape(recipe, dataset)
    network = recipe.network
    origin = (
        ""
        if network.height and network.width
        else ", chosen from the images; network.width and network.height change it"
    )
    return f"input: {width}x{height} pixels (width x height), {channels} channel{'s' if channels > 1 else ''}{origin}"


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
) -> dict[str, Any]:
    """Train a run to its end, from its checkpoint if it has one.

    Writes `run.json` first, then a checkpoint and the history after each epoch, `float.h5` after the float phase, and `qat.h5` last: the
    epoch of the quantization-aware phase whose int8 file was the best on validation images, by the rule of `edgecnn.train.best`. How the
    int8 models are made, and why, is under "int8" in `run.json`. A user's own network and the one to start from are copied into
    the run before. Operations are deterministic and every epoch has its own seed: a resumed run ends with the weights of an uninterrupted
    one.

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
        The content of `run.json`.

    Raises:
        NetworkError, TrainingError, DatasetError, OutputError, ClusterError: as the parts do.
        RecipeError: if several machines are to start from a trained network.
        RunError: if the teacher is not the one with which the run began, or there is no trained network to start from.
    """
    tf.config.experimental.enable_op_determinism()
    strategy = distribute.open_strategy(workers)
    distribute.check_batch(recipe.train.batch_size, strategy)
    if workers and recipe.init.source:
        raise RecipeError(
            "init.source cannot be used with several machines: it is meant for few images.", advice="workers_or_init"
        )
    shape = input_shape(recipe, dataset)
    splits = load_splits(recipe, dataset, data_progress)
    validation = (splits["validation"].images, splits["validation"].classes)
    num_classes = len(dataset.labels)
    weights = init_weights(recipe, run)
    brought = origins(recipe, run, weights)
    asked, recipe = recipe, local_recipe(recipe, run)
    images, classes = splits["train"].images, splits["train"].classes
    batches = training_batches(recipe, images, classes, dataset.mirror)
    guide = open_teacher(recipe, shape, tuple(dataset.labels))
    if guide and batches.views and not strategy:
        guide = remembered(guide, batches.views * batches.count, min(batches.batch_size, len(images)), num_classes)
    build = partial(
        float_phase, released(recipe), shape, num_classes, validation, guide.logits if guide else None, strategy
    )
    model, phase = build()
    info = {
        "state": "training",
        "data": describe_data(dataset, {name: len(split.classes) for name, split in splits.items()}),
        "input": dict(zip(("height", "width", "channels"), shape, strict=True)),
        "parameters": model.count_params(),
        "versions": library_versions(),
        **brought,
        **({"teacher": guide.described} if guide else {}),
    }
    if workers:
        distribute.check_same(
            strategy,
            workers,
            asked,
            {
                "fingerprint": dataset.fingerprint,
                "versions": info["versions"],
                "teacher": info.get("teacher"),
                **brought,
            },
        )
    if run:
        begin(run, info)

    checkpoint = load_checkpoint(run) if run else None
    history = checkpoint.history if checkpoint else ()
    float_is_done = checkpoint is not None and checkpoint.phase == "qat"
    if workers:
        checkpoint, float_is_done = distribute.from_first(strategy, workers, phase, checkpoint)
    if not float_is_done:
        with distribute.cluster_errors(workers):
            if weights is not None and (checkpoint is None or checkpoint.phase == HEAD):
                head_model, head = head_phase(recipe, shape, num_classes, validation, weights)
                history = run_phase(head, batches, run, history, checkpoint, report)
                model, phase = build(head_model.get_weights())
            history = run_phase(phase, batches, run, history, checkpoint, report)
    if run is None:
        return info
    if float_is_done:
        teacher = model_from_bytes(run.read(FLOAT_MODEL, "train"))
    else:
        teacher = to_float32(model, recipe, shape, num_classes)
        write_atomic(run.file(FLOAT_MODEL), model_bytes(teacher))

    wanted = predictor(teacher, recipe.input_scale, recipe.input_zero_point)(validation[0])
    qat = None
    if recipe.qat.method != "ptq":
        batches = qat_batches(recipe, batches)
        qat = Qat(recipe, teacher, validation, wanted, batches, int8)
        if not float_is_done:
            qat.begin()
        history = run_phase(qat.phase, batches, run, history, checkpoint, report)
        write_atomic(run.file(QAT_MODEL), model_bytes(qat.finish()))
    logits = int8.post_training(teacher, splits["train"], validation[0]) if int8 else None
    ptq = None if logits is None else score(logits, wanted, validation[1])
    chosen = choice(recipe.qat.method, qat, ptq, score(wanted, wanted, validation[1]))
    write_history(run, history)
    info |= {
        "state": "trained",
        "flip": batches.flip,
        "seconds": round(sum(row["seconds"] for row in history), 1),
        "validation_accuracy": (chosen["validation"][chosen["method"]] or chosen["validation"]["float"])["accuracy"],
        "int8": chosen,
    }
    run.write_info(info)
    return info


def training_batches(recipe: Recipe, images: np.ndarray, classes: np.ndarray, mirror: bool) -> Batches:
    """Return the float phase's batches of uint8 images (n, height, width, channels) and their classes (n,).

    `mirror` is whether classes survive a left-right flip, where the recipe leaves that to the data.
    """
    views = recipe.train.teacher_views if recipe.train.teacher else 0
    return Batches(
        images=images,
        classes=classes,
        batch_size=recipe.train.batch_size,
        seed=recipe.seed,
        flip={"yes": True, "no": False, "auto": mirror, "alternating": True}[recipe.train.flip],
        shift=recipe.train.shift,
        alternating=recipe.train.flip == "alternating",
        cutout=recipe.train.cutout,
        views=views if views < recipe.train.epochs else 0,
    )


def qat_batches(recipe: Recipe, batches: Batches) -> Batches:
    """Return the quantization-aware phase's batches: like the float phase's, but neither covered nor repeated."""
    return dataclasses.replace(batches, batch_size=recipe.qat.batch_size, cutout=0, views=0)


def begin(run: Run, info: dict[str, Any]) -> None:
    """Write what is known of a run when its training begins, or goes on.

    Raises:
        RunError: if it began with another teacher.
    """
    if run.file(INFO).exists() and run.info.get("teacher") != info.get("teacher"):
        raise RunError(
            f"the teacher of {run.path} is not the one it began with ({run.info.get('teacher')}, now {info.get('teacher')}). "
            "Put that one back, or train a new run."
        )
    run.write_info(info)
    run.make_latest()


def choice(asked: str, qat: Qat | None, ptq: Score | None, reference: Score) -> dict[str, Any]:
    """Choose how the int8 models are made, and return what a run records about the choice.

    Args:
        asked: the recipe's qat.method.
        qat: the quantization-aware phase, finished; None without it.
        ptq: the score of the float model quantized after training; None if it was not measured.
        reference: the float model's own score.

    Returns:
        A JSON object: `asked`; `method`, "qat" or "ptq"; `epoch`, the one that was kept, 0 for the calibrated model, null without the
        phase; `rounding`, how its weights became codes, null without it; `learning_rate`, the phase's peak, null without
        it; `validation`, the figures of float, calibrated (epoch 0, before its weights are trained or rounded otherwise), qat,
        qat_nearest (the epoch kept, weights at their nearest codes) and ptq, null where there are none.
    """
    best = qat.best.score if qat else None
    return {
        "asked": asked,
        "method": better_method(asked, best, ptq),
        "epoch": qat.best.epoch if qat else None,
        "rounding": qat.rounding if qat else None,
        "learning_rate": qat.learning_rate if qat else None,
        "validation": {
            "n": reference.n,
            "float": reference.figures(),
            "calibrated": qat.calibrated.figures() if qat and qat.calibrated else None,
            "qat": best.figures() if best else None,
            "qat_nearest": qat.nearest.figures() if qat and qat.nearest else None,
            "ptq": ptq.figures() if ptq else None,
        },
    }


def describe_data(dataset: Dataset, used: dict[str, int]) -> dict[str, Any]:
    """Return what a run records about its data: enough to detect whether they have changed."""
    return {
        "name": dataset.name,
        "title": dataset.title,
        "native_shape": list(dataset.shape),
        "labels": list(dataset.labels),
        "fingerprint": dataset.fingerprint,
        "split_hashes": dict(dataset.hashes),
        "split_sizes": dict(dataset.sizes),
        "used": used,
        "duplicates": [vars(duplicate) for duplicate in dataset.duplicates],
        "conflicts": [vars(conflict) for conflict in dataset.conflicts],
    }
