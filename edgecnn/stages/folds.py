"""The stages that train on all photos: with folds, models each tested on the part that they did not see; with --quick, only last layers.

Each fold is a run of its own inside the run, and chooses everything with its own images: network, epoch, method. Finished work is kept,
so a killed training continues where it stopped. On photos, fine-tuning by folds has to beat the last layer that --quick would fit.
"""

import dataclasses
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from edgecnn import runs
from edgecnn.data import Dataset
from edgecnn.data.dataset import write_known
from edgecnn.data.decoding import class_weights, equal_weights
from edgecnn.data.folds import Folds, added_images, assign, fold_infos, read_folds, require_listed, write_folds
from edgecnn.errors import RecipeError
from edgecnn.evaluate.answers import HeldOut, joined_folds, read_held_out, require_held_out, write_held_out
from edgecnn.files import write_atomic
from edgecnn.labels import plural
from edgecnn.recipe import ALWAYS, Recipe, Settled, build_recipe, load_recipe, to_toml
from edgecnn.report.table import tuning_line
from edgecnn.run_info import FoldInfo, InputSize, NetworkChoice, RunInfo, Tuning
from edgecnn.runtime.child import end_with_parent
from edgecnn.stages import Reporter, Silent
from edgecnn.stages import train as stage
from edgecnn.stages.last_layer import features_of, fit_divided, fit_last_layer, photos_of
from edgecnn.stages.network_choice import of_head, settled, with_chosen
from edgecnn.versions import library_versions


def train_by_folds(dataset: Dataset, run: runs.Run, reporter: Reporter, jobs: int = 1) -> RunInfo:
    """Train a run with its recipe's folds, from where it stopped; `jobs` folds at a time, each in its own process if more than one.

    Raises DatasetError if the images cannot be divided into the folds; otherwise as in training; RunError if images of the folds are gone.
    """
    with stage.resumable(run, reporter):
        asked, folds, whole = begun(dataset, run, reporter)
        if not run.file(runs.INFO).exists() or run.info.head_ships:
            if head := rival(asked, whole, run, reporter):
                tuning = judged(head, dataset, run, folds, reporter, jobs)
                reporter.note(tuning_line(tuning))
                if tuning.ships == "head":
                    return ship_rival(head, whole, run, folds, tuning, reporter)
                asked = as_chosen(asked, run)
            else:
                train_folds(dataset, run, folds, reporter, jobs)
            recipe = settled(asked, whole, run, reporter)
            write_held_out(run, answers_of(run, folds))
            run = runs.settle_run(run, majority_recipe(recipe, fold_infos(run)))
            reporter.note(voted_line(run.settled, fold_infos(run), len(folds.of)))
    return stage.train_run(run.settled, whole, run, reporter, None)


def as_chosen(asked: Recipe, run: runs.Run) -> Recipe:
    """Return a recipe with the network that a run chose for its last layer, if the recipe limits it: then fine-tuning trains it too."""
    from edgecnn.train.settle import is_limited

    made = run.stored(runs.CHOICE, NetworkChoice)
    return with_chosen(asked, made) if made and not asked.network.name and is_limited(asked.network) else asked


def rival(asked: Recipe, whole: Dataset, run: runs.Run, reporter: Reporter) -> Settled | None:
    """Return the recipe of the last layer that fine-tuning by folds has to beat, that of --quick; None if the recipe leaves no choice."""
    from edgecnn.train.settle import has_rival, settled_network

    named = dataclasses.replace(asked, network=settled_network(asked, whole))
    if asked.train.tuning or not has_rival(named, whole):
        return None
    return settled(
        dataclasses.replace(asked, train=dataclasses.replace(asked.train, head_only=True)), whole, run, reporter
    )


def judged(head: Settled, dataset: Dataset, run: runs.Run, folds: Folds, reporter: Reporter, jobs: int) -> Tuning:
    """Return which of the two ships, by their answers to all photos, and store it. If the head makes no mistake, no fold is trained."""
    from edgecnn.train.best import verdict

    if made := run.stored(runs.TUNING, Tuning):
        return made
    whole = folds.all_teach(dataset)
    hashes, classes, answers = layer_answers(head, whole, run, folds, reporter)
    unbalanced = np.ptp(class_weights(classes, head.train.class_weights)) > 0
    weights = equal_weights(classes) if unbalanced else np.ones(len(classes))
    tuned, epochs = answers, 0
    if not np.all(answers.argmax(axis=1) == classes):
        train_folds(dataset, run, folds, reporter, jobs)
        held = answers_of(run, folds)
        place = {one: index for index, one in enumerate(held.hashes.tolist())}
        tuned = held.float[[place[one] for one in hashes]]
        epochs = median_low([one.epochs for one in fold_infos(run)])
    made = verdict(answers, tuned, classes, weights, epochs=epochs, folds=True)
    runs.write_json(run.file(runs.TUNING), made)
    return made


def layer_answers(
    head: Settled, whole: Dataset, run: runs.Run, folds: Folds, reporter: Reporter
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the photos' hashes, their classes, (n,), and the logits of last layers each fitted without the photo's fold, (n, classes)."""
    from edgecnn.train.candidates import Images, held_out

    photos = photos_of(head, whole, reporter)
    weights = class_weights(photos.classes, head.train.class_weights)
    features = features_of(head, whole, photos, run)
    fold = np.array([folds.of[one] for one in photos.hashes])
    logits, *_ = held_out(Images(features, photos.classes, weights, len(whole.labels)), fold)
    return list(photos.hashes), photos.classes, logits


def ship_rival(
    head: Settled, whole: Dataset, run: runs.Run, folds: Folds, tuning: Tuning, reporter: Reporter
) -> RunInfo:
    """Fit the last layer that has won to all photos, and make the run one of --quick."""
    started = time.monotonic()
    write_known(run, whole)
    info = fit_all_photos(head, whole, run, folds, reporter, started)
    tuned = sum(one.seconds for one in fold_infos(run)) if tuning.epochs else 0.0
    info = dataclasses.replace(info, tuning=tuning, seconds=round(tuned + (info.seconds or 0.0), 1))
    run.write_info(info)
    runs.settle_run(run, head)
    return info


def answers_of(run: runs.Run, folds: Folds) -> HeldOut:
    return joined_folds([require_held_out(one) for one in fold_runs(run, folds)])


def begun(dataset: Dataset, run: runs.Run, reporter: Reporter) -> tuple[Recipe, Folds, Dataset]:
    """Return a run's recipe before its open keys are settled, its folds, and the dataset with every image in training."""
    asked = asked_recipe(run)
    folds = divided(dataset, run, run.recipe, reporter)
    run.make_latest()
    dataset.split_groups = stage.kept_split_groups(run) or dataset.split_groups
    if added := added_images(folds, dataset):
        reporter.note(f"{dataset.name}: left out {plural(added, 'image')} added after training began")
    return asked, folds, folds.all_teach(dataset)


def asked_recipe(run: runs.Run) -> Recipe:
    """Return the recipe that every fold starts from, before its open keys are settled."""
    path = run.file(runs.ASKED)
    if not path.exists():
        write_atomic(path, to_toml(run.recipe))
    return build_recipe(load_recipe(path), str(path))


def divided(dataset: Dataset, run: runs.Run, recipe: Recipe, reporter: Reporter) -> Folds:
    """Return the folds of a run, made now if it has none: images that show the same thing, even cut or mirrored, share one."""
    folds = read_folds(run)
    if folds is None:
        split_groups = (
            dataset.split_groups or dataset.with_split_groups({}, stage.find(dataset, reporter)[0]).split_groups
        )
        assert recipe.folds is not None
        groups = {one: split_group.group for one, split_group in split_groups.items()}
        folds = assign(dataset, groups, recipe.folds, recipe.seed, validates=not recipe.train.head_only)
        stage.write_split_groups(run, dataset)
        write_folds(run, folds)
        sizes = Counter(folds.groups.values())
        count = sum(size for size in sizes.values() if size > 1)
        alike = f"; {count:,} of them share a group with others, and its fold" if count else ""
        reporter.note(f"{dataset.name}: {len(folds.of):,} images in {folds.count} folds{alike}")
    require_listed(run, folds, dataset)
    return folds


def fold_runs(run: runs.Run, folds: Folds) -> Iterator[runs.Run]:
    return (runs.Run(run.file(runs.FOLD.format(fold=fold))) for fold in range(1, folds.count + 1))


def train_folds(dataset: Dataset, run: runs.Run, folds: Folds, reporter: Reporter, jobs: int) -> None:
    left = [
        fold
        for fold, one in enumerate(fold_runs(run, folds), 1)
        if read_held_out(one) is None or one.stored(runs.FOLD_INFO, FoldInfo) is None
    ]
    if jobs == 1 or len(left) < 2:
        for fold in left:
            reporter.note(f"fold {fold} of {folds.count}")
            reporter.note(fold_line(fold, train_fold(dataset, run, folds, fold, reporter)))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, end_with_parent, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(train_one, run.path, fold): fold for fold in left}
        reporter.note(f"{plural(len(left), 'fold')}, {jobs} at a time")
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                reporter.note(fold_line(waiting.pop(future), future.result()))


def train_one(path: Path, fold: int) -> FoldInfo:
    run, reporter = runs.Run(path), Silent()
    folds = read_folds(run)
    assert folds is not None
    dataset = stage.open_images(asked_recipe(run), run, reporter, None)
    dataset.split_groups = stage.kept_split_groups(run) or dataset.split_groups
    return train_fold(dataset, run, folds, fold, reporter)


def train_fold(dataset: Dataset, run: runs.Run, folds: Folds, fold: int, reporter: Reporter) -> FoldInfo:
    from edgecnn.stages.last_layer import Int8Files
    from edgecnn.train.train import train

    asked = asked_recipe(run)
    part = folds.without(dataset, fold, asked.seed)
    one = runs.Run(run.file(runs.FOLD.format(fold=fold)))
    if not one.file(runs.RECIPE).exists():
        train_recipe = dataclasses.replace(asked.train, folds=None, tuning=ALWAYS)
        one = runs.create_run(dataclasses.replace(asked, train=train_recipe), one.path)
    recipe = settled(one.recipe, part, one, reporter, run.file(runs.FEATURES))
    one = runs.settle_run(one, recipe)
    info = train(recipe, part, one, reporter.training, reporter.working, Int8Files(recipe))
    held = fold_answers(one, part, fold, reporter)
    assert info.int8 is not None
    recorded = fold_info(
        recipe,
        (info.input.height, info.input.width),
        held,
        fold,
        epochs=recipe.train.epochs,
        method=info.int8.method,
        rounding=info.int8.rounding,
        epoch=info.int8.epoch,
        qat_epochs=recipe.qat.epochs,
        seconds=info.seconds or 0.0,
    )
    write_held_out(one, held)
    runs.write_json(one.file(runs.FOLD_INFO), recorded)
    return recorded


def fold_answers(one: runs.Run, part: Dataset, fold: int, reporter: Reporter) -> HeldOut:
    """Run a fold's float model and its int8 file on the fold, which they never saw."""
    from edgecnn.calibrate.confidence import similar_to
    from edgecnn.evaluate.answers import in_chunks, load_test
    from edgecnn.export import export
    from edgecnn.networks.predict import model_from_bytes, predictor
    from edgecnn.stages.choose import Choosing

    export(one, "tflite", "int8", force=True, dataset=part, progress=reporter.working)
    choosing = Choosing(one, part, ("tflite", "int8"), reporter.working)
    test = load_test(one, part, reporter.working)
    hashes = {item.source: item.hash for item in part.items["test"]}
    logits, features = choosing.answers(test.images, f"fold {fold}")
    similarity = similar_to(features, choosing.known) if choosing.features else np.full(len(logits), np.nan)
    float_model = model_from_bytes(one.read(runs.FLOAT_MODEL, "train"))
    predict = predictor(float_model, one.recipe.input_scale, one.recipe.input_zero_point)
    return HeldOut(
        hashes=np.array([hashes[source] for source in test.sources], np.str_),
        sources=np.array(test.sources, np.str_),
        classes=test.classes,
        fold=np.full(len(test.classes), fold),
        float=in_chunks(predict, test.images, f"fold {fold}", reporter.working),
        int8=logits,
        similarity=similarity.astype(np.float64),
    )


def majority_recipe(recipe: Settled, infos: Sequence[FoldInfo]) -> Settled:
    """Return the recipe of the model that learns from all images: the folds' median epochs, and their most frequent method.

    Only folds that chose the same network vote; if none did, all vote.
    """
    voters = [one for one in infos if one.network == stage.network_name(recipe)] or list(infos)
    method = most_frequent([one.method for one in voters])
    train = dataclasses.replace(recipe.train, epochs=median_low([one.epochs for one in voters]))
    qat = dataclasses.replace(recipe.qat, method=method)
    if method == "qat":
        trained = [one for one in voters if one.method == method]
        keep = median_low([one.epoch or 0 for one in trained])
        roundings = [one.rounding for one in trained if not one.epoch and one.rounding]
        qat = dataclasses.replace(
            qat,
            epochs=max(keep, median_low([one.qat_epochs for one in trained])),
            keep=keep,
            rounding="nearest" if keep or not roundings else most_frequent(roundings),
        )
    return dataclasses.replace(recipe, train=train, qat=qat)


def most_frequent(values: Sequence) -> str:
    """Return the most frequent value, and among equals the last in the alphabet: "qat" before "ptq"."""
    counts = Counter(values)
    return str(max(sorted(counts, reverse=True), key=counts.__getitem__))


def fold_line(fold: int, info: FoldInfo) -> str:
    how = f"quantization-aware, epoch {info.epoch}" if info.method == "qat" else "quantized after training"
    return (
        f"fold {fold}: {info.network} at {info.width}x{info.height}; accuracy on {info.images:,} images that it never saw: float "
        f"{info.float_accuracy:.2%}, int8 ({how}) {info.int8_accuracy:.2%}"
    )


def voted_line(recipe: Settled, infos: Sequence[FoldInfo], images: int) -> str:
    how = "quantized after training"
    if recipe.qat.method == "qat":
        how = f"quantization-aware training to epoch {recipe.qat.keep}"
    return (
        f"the model itself learns from all {images:,} images: {recipe.train.epochs} epochs, the folds' median, and {how}, as most of the "
        f"{len(infos)} folds chose"
    )


START_S, PHOTO_S = 28, 0.09
"""Seconds for the start and the int8 body, and per photo, on two cores of an AMD EPYC: 20 photos took 25 to 31 s, 250 took 43 to 50 s, and
1,000 took 108 to 122 s."""


def fitting_seconds(photos: int) -> float:
    """Return about how long fitting a last layer to a number of photos takes, from the start to the int8 model."""
    return START_S + PHOTO_S * photos


def require_pretrained(recipe: Recipe, dataset: Dataset) -> None:
    """Raise RecipeError if a recipe trains only the last layer of a network without weights to keep."""
    from edgecnn.networks.pretrained import SOURCES, source_of
    from edgecnn.train.settle import usual_network

    if not recipe.train.head_only:
        return
    name, start = recipe.network.name or usual_network(recipe, dataset), recipe.init.source
    if start or source_of(name) is None:
        known = " or ".join(f"{source.prefix}…" for source in SOURCES)
        raise RecipeError(
            f"--quick fits the last layer of a network with ImageNet weights ({known}), not of {name} from {start or 'random weights'}. "
            "Name such a network with --network and leave out --init, or leave out --quick."
        )


def train_on_all(dataset: Dataset, run: runs.Run, reporter: Reporter, jobs: int = 1) -> RunInfo:
    """Train a run on all images: only the last layer, or by its recipe's folds. Arguments and errors as in `train_by_folds`."""
    if run.recipe.train.head_only:
        return train_head_only(dataset, run, reporter)
    return train_by_folds(dataset, run, reporter, jobs)


def beyond_quick(run: runs.Run, reporter: Reporter) -> Recipe | None:
    """Return the recipe with which a run to resume begins anew: without --quick, if its last layer is trained. None for other runs, and if
    its fine-tuning has lost."""
    if not (run.recipe.train.head_only and run.file(runs.INFO).exists()) or run.info.head_ships:
        return None
    asked = asked_recipe(run)
    reporter.note(
        f"{run.path}: --quick is finished, so the default comes next, with fine-tuning if validation photos are enough to judge it. The "
        "network is chosen again without the test photos, and the model that is here now will be replaced"
    )
    return dataclasses.replace(asked, train=dataclasses.replace(asked.train, head_only=False, folds=None))


def ship_head(recipe: Settled, dataset: Dataset, run: runs.Run, info: RunInfo, reporter: Reporter) -> RunInfo:
    """Return the record of a trained run. If its fine-tuning has lost, the head is first fitted to all photos, as with --quick, or to
    those of training and validation if they cannot be divided into folds. The run's recipe then makes this model again.

    Errors as in `train_head_only`.
    """
    from edgecnn.train.settle import reopened, with_values

    if not info.head_ships or info.state == "trained":
        return info
    with stage.resumable(run, reporter):
        asked = with_values(reopened(recipe, dataset), {("train", "tuning"): None})
        recipe = of_head(recipe, dataset, run)
        write_atomic(run.file(runs.ASKED), to_toml(asked))  # for photos to come, which decide anew
        if not recipe.train.head_only:
            return fit_divided(recipe, dataset, run, info, reporter)
        return train_head_only(dataset, runs.settle_run(run, recipe), reporter)


def train_head_only(dataset: Dataset, run: runs.Run, reporter: Reporter) -> RunInfo:
    """Train the last layer of a run's network, from where it stopped.

    Raises DatasetError if the images cannot be divided into folds; RunError if images of the folds are gone.
    """
    with stage.resumable(run, reporter):
        asked, folds, whole = begun(dataset, run, reporter)
        beaten = run.info if run.file(runs.INFO).exists() else None
        if beaten and beaten.state == "trained":
            return beaten
        started, count = time.monotonic(), whole.sizes["train"]
        reporter.note(
            f"the last layer of a pretrained network, fitted to {count:,} photos: about {fitting_seconds(count):.0f} s on two cores"
        )
        recipe = settled(asked, whole, run, reporter) if run.recipe == asked else run.settled
        run = runs.settle_run(run, recipe)
        write_known(run, whole)
        info = fit_all_photos(recipe, whole, run, folds, reporter, started)
        if beaten:
            seconds = round((beaten.seconds or 0) + (info.seconds or 0), 1)
            info = dataclasses.replace(info, tuning=beaten.tuning, seconds=seconds)
        run.write_info(info)
    return info


def fit_all_photos(
    recipe: Settled, whole: Dataset, run: runs.Run, folds: Folds, reporter: Reporter, started: float
) -> RunInfo:
    photos = photos_of(recipe, whole, reporter)
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


LAST_LAYER = {"epochs": 0, "method": "qat", "rounding": "gptq", "epoch": 0, "qat_epochs": 0, "seconds": 0.0}
"""What is recorded of a fold whose last layer alone was fitted."""


def fold_info(recipe: Settled, size: Sequence[int], held: HeldOut, fold: int, **trained: Any) -> FoldInfo:
    own = held.fold == fold
    right = [float(np.mean(values[own].argmax(axis=1) == held.classes[own])) for values in (held.float, held.int8)]
    return FoldInfo(
        network=stage.network_name(recipe),
        height=size[0],
        width=size[1],
        images=int(own.sum()),
        float_accuracy=right[0],
        int8_accuracy=right[1],
        **(trained or LAST_LAYER),
    )
