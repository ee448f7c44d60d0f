"""The stage that trains: it opens the images, settles the recipe, starts or continues a run, and trains it.

TensorFlow takes seconds to import: each function imports what needs it, so that a wrong name is refused immediately.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgecnn.data import Dataset, known_images, open_dataset
from edgecnn.data.dataset import require_split
from edgecnn.errors import DatasetError, UnknownNameError
from edgecnn.inspect.findings import worst
from edgecnn.labels import plural
from edgecnn.networks import build_network, network_module
from edgecnn.networks.backbone import is_backbone
from edgecnn.networks.own import own_network
from edgecnn.recipe import Recipe
from edgecnn.report.plots import write_curves
from edgecnn.report.table import tuning_line
from edgecnn.run_info import NetworkChoice, RunInfo
from edgecnn.runs import CHOICE, INFO, NETWORK_FILE, RECIPE, Run
from edgecnn.stages.reporter import Reporter
from edgecnn.stages.sides import write_sides
from edgecnn.workers import Workers


def network_name(recipe: Recipe) -> str:
    own = own_network(recipe.network.name)
    return own.label if own else Path(recipe.network.name).name


def open_images(recipe: Recipe, run: Run | None, reporter: Reporter, cluster: Workers | None) -> Dataset:
    """Open a recipe's data, after checking that its network exists.

    `run` is the run to continue; None for a new one, whose network is then built and checked, after the workers of `cluster` have met.

    Raises:
        ClusterError: if the workers do not meet.
        UnknownNameError: for an unknown network or dataset.
        DatasetError: if the images of the run to continue are gone.
        NetworkError: for a user's own network that cannot be trained.
    """
    code = run.file(NETWORK_FILE) if run else Path((recipe.network.name or "").rpartition(":")[0])
    if code.name == NETWORK_FILE and code.is_file() and code.with_name(RECIPE).is_file():
        reporter.note(f"executing {code}: the network of this run is Python code")
    backbone = is_backbone(recipe.network.name)
    if recipe.network.name and not backbone and (run is None or not run.file(NETWORK_FILE).exists()):
        network_module(recipe.network.name)
    try:
        folds = bool(recipe.folds)  # they divide the images themselves
        images = known_images(run) if run and run.file(INFO).exists() and not folds else None
        dataset = open_dataset(
            recipe.data, progress=reporter.working, for_training=not folds, note=reporter.note, known=images
        )
    except UnknownNameError:
        if run is None:
            raise
        raise DatasetError(
            f"the images of {run.path} are missing: {recipe.data.source}. Finished epochs are kept. "
            f"Put the images back, then: edgecnn train --resume --out {run.path}"
        ) from None
    if folds and dataset.faults:
        raise DatasetError("\n".join(f"{dataset.name}: {fault}" for fault in dataset.faults))
    if run is None:
        if cluster:
            from edgecnn.train.distribute import open_strategy

            open_strategy(cluster)
        check_network(recipe, dataset)
    return dataset


def settled(recipe: Recipe, dataset: Dataset, reporter: Reporter) -> Recipe:
    """Return the recipe with its open keys chosen for the images, and report each choice with its reason."""
    from edgecnn.train.settle import reasons, require_start, settle

    chosen = settle(recipe, dataset)
    require_start(chosen)
    for line in reasons(recipe, chosen, dataset):
        reporter.note(line)
    return chosen


def run_name(recipe: Recipe, dataset: Dataset) -> str:
    """Return the default name of the run folder: the recipe's, or that of the data, and of the network if known."""
    own = own_network(recipe.network.name)
    name = recipe.network.name
    network = own.short if own else Path(name).stem if is_backbone(name) else name
    return recipe.name or (f"{dataset.name}-{network}" if network else dataset.name)


def require_same_images(run: Run, dataset: Dataset) -> None:
    for split in dataset.sizes if run.file(INFO).exists() else ():
        require_split(run, dataset, split)


@contextlib.contextmanager
def resumable(run: Run | None, reporter: Reporter) -> Iterator[None]:
    """Report how to continue an interrupted training."""
    try:
        yield
    except KeyboardInterrupt:
        if run:
            reporter.note(f"\nInterrupted; finished work is kept. To continue: edgecnn train --resume --out {run.path}")
        raise


def train_run(
    recipe: Recipe, dataset: Dataset, run: Run | None, reporter: Reporter, cluster: Workers | None
) -> RunInfo:
    where = f"run {run.path}" if run else f"worker {cluster.index if cluster else 0}"
    reporter.note(f"{where}: {network_name(recipe)} on {dataset.title}, {len(dataset.labels)} classes")
    with resumable(run, reporter):
        return train_stage(recipe, dataset, run, reporter, cluster)


FOLDS = 5  # the recommended number of folds


def by_folds_line(run: Run, dataset: Dataset, info: RunInfo) -> str:
    """Return a line on the cost and gain of training with folds; "" for a run with folds, or data with their own splits."""
    if info.folds or not dataset.own or dataset.given != {"train"} or info.seconds is None:
        return ""
    choice = run.stored(CHOICE, NetworkChoice)
    minutes = (FOLDS + 1) * (info.seconds + (choice.seconds if choice else 0)) / 60
    duration = "" if info.tuning else f", about {max(1, round(minutes)):,} min here"  # folds train all epochs
    sizes, count = info.data.split_sizes, sum(info.data.split_sizes.values())
    return (
        f"With --folds {FOLDS}{duration}, all {count:,} photos would train the model, not "
        f"{sizes['train']:,}, and all would test it, not {sizes['test']:,}."
    )


def check_network(recipe: Recipe, dataset: Dataset) -> None:
    """Before a run begins, raise NetworkError or ExportError if a user's own network cannot be built or quantized, or has no features."""
    own, network = own_network(recipe.network.name), recipe.network
    if own is None:
        return
    from edgecnn.export import tflite
    from edgecnn.export.feature_output import with_features
    from edgecnn.train.train import input_shape
    from edgecnn.verify.quantizable import check_quantizable

    model = build_network(network.name, *input_shape(recipe, dataset), len(dataset.labels), network.options)
    if recipe.stranger.rate:
        with_features(tflite.float32(model))
    if recipe.qat.method != "ptq":
        check_quantizable(model, own.label, recipe.input_scale, recipe.input_zero_point)


def train_stage(
    recipe: Recipe,
    dataset: Dataset,
    run: Run | None,
    reporter: Reporter,
    workers: Workers | None = None,
    why: Sequence[str] = (),
) -> RunInfo:
    """Train a run and plot its curves; `run` is None for a worker that is not the first, and `why` from `settle.reasons`."""
    from edgecnn.stages.int8_files import Int8Files
    from edgecnn.train import train
    from edgecnn.train.settle import settle
    from edgecnn.train.train import input_line

    for line in (*dataset.summary(), worst(dataset), *why, input_line(recipe, dataset)):
        if line:
            reporter.note(line)
    if run:
        write_sides(run, dataset)
    info = train(recipe, dataset, run, reporter.training, reporter.working, Int8Files(recipe), workers)
    if info.tuning:
        reporter.note(tuning_line(info.tuning))
    if run and info.head_ships:
        from edgecnn.stages.last_layer import ship_head

        info = ship_head(settle(recipe, dataset), dataset, run, info, reporter)
    if info.int8 and info.int8.skipped:
        reporter.note(
            f"int8: post-training quantization agrees with the float model on all {info.int8.validation.n:,} validation images, with "
            "nearly the same scores, so quantization-aware training was skipped; --set qat.method=qat requests it"
        )
    for one in dataset.duplicates[:5]:
        reporter.note(f"kept out of {one.split}: {one.source}, the same as {one.of_source} of {one.of_split}")
    if dataset.duplicates:
        where = f"; all are in {run.path}/run.json" if run else ""
        reporter.note(f"{plural(len(dataset.duplicates), 'exact duplicate')} across splits kept out{where}")
    if run and not (info.tuning and not info.tuning.epochs):
        write_curves(run)
    return info
