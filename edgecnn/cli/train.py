"""`edgecnn train`."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_json, note
from edgecnn.cli.options import Json
from edgecnn.cli.recipes import input_size, resolve, seen_region
from edgecnn.cli.workstation_options import (
    BatchSize,
    Data,
    Epochs,
    Force,
    Init,
    LearningRate,
    Network,
    QatEpochs,
    RecipeArgument,
    RegionText,
    Robust,
    Seed,
    Setting,
    Size,
)

if TYPE_CHECKING:
    from edgecnn.data import Dataset
    from edgecnn.recipe import Recipe
    from edgecnn.run_info import RunInfo
    from edgecnn.runs import Run
    from edgecnn.stages.pipeline import Reporter
    from edgecnn.workers import Workers

CLUSTER = "Several machines"
INSTEAD = "Instead of training"


def train(
    recipe: RecipeArgument = None,
    data: Data = None,
    region: RegionText = None,
    network: Network = None,
    size: Size = None,
    init: Init = None,
    epochs: Epochs = None,
    qat_epochs: QatEpochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    robust: Robust = False,
    setting: Setting = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write.", show_default="runs/DATA-NETWORK")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run at --out, or else the last one.", show_default="off")
    ] = False,
    force: Force = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,…",
            help="Addresses of all machines that share the float phase. Run the same command on each, with its own --worker.",
            show_default="this machine alone",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    worker: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="This machine's place in --workers, from 0. Worker 0 keeps the run.",
            show_default="none",
            rich_help_panel=CLUSTER,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Time a few steps, then print parameters, MACs, bytes and the estimated time. Nothing is written.",
            show_default="off",
            rich_help_panel=INSTEAD,
        ),
    ] = False,
    keys: Annotated[
        bool,
        typer.Option(
            "--keys",
            help="List all recipe keys with their type, default, limits and meaning.",
            show_default="off",
            rich_help_panel=INSTEAD,
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train a network in two phases: float, then quantization-aware.

    Writes a run folder with the resolved recipe, the history (CSV, TensorBoard), curves (PNG) and both models. Options override the
    recipe, which overrides the defaults below.

    Ctrl-C keeps the last finished epoch, and --resume continues from it. If a worker is lost, start all of them again, worker 0 with
    --resume.

    \b
    Examples:
      edgecnn train --data photos/ --network article --size 128 --epochs 10
      edgecnn train recipe.toml --set train.flip=no
      edgecnn train --dry-run --network resnet8
      edgecnn train --data photos/ --init runs/cifar10-resnet8
      edgecnn train --resume
      edgecnn train recipe.toml --workers 10.0.0.1:2222,10.0.0.2:2222 --worker 0
    """
    if keys:
        from edgecnn.cli.keys import show_keys

        show_keys(json)
        return
    cluster = join_cluster(workers, worker)
    flags = {
        "data": data,
        "region": seen_region(region),
        "network": network,
        **input_size(size),
        "init": None if init is None else str(init),
        "epochs": epochs,
        "qat_epochs": qat_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "robust": robust or None,
    }
    if resume and (recipe or setting or force or dry_run or any(value is not None for value in flags.values())):
        raise typer.BadParameter("--resume uses the run's own recipe: give only --out with it.")
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import create_run, free_path, locked, open_run

    run = open_run(out) if resume else None
    resolved = run.recipe if run else resolve(recipe, setting, **flags)
    with ProgressReporter() as reporter, ExitStack() as held:
        if run and (cluster is None or cluster.first):
            held.enter_context(locked(run.path))
        dataset = open_images(resolved, run, reporter, cluster)
        resolved = settled(resolved, dataset, reporter)
        if dry_run:
            from edgecnn.cli.dry_run import show_dry_run

            show_dry_run(resolved, dataset, network_name(resolved), reporter, json)
            return
        if cluster and not cluster.first:
            run = None
        elif run is None:
            path = out or free_path(run_name(resolved, dataset), force)
            held.enter_context(locked(path))
            run = create_run(resolved, path, force=force)
        else:
            require_same_images(run, dataset)
        info = train_run(resolved, dataset, run, reporter, cluster)
    if json:
        from edgecnn.tables import to_json

        emit_json({"run": str(run.path) if run else None, **to_json(info)})
    else:
        print(result_text(run, info, cluster))


def join_cluster(workers: str | None, worker: int | None) -> "Workers | None":
    """Return the machines of --workers, None without; TensorFlow hears of them before it is imported."""
    if workers is None:
        if worker is not None:
            raise typer.BadParameter("--worker is this machine's place in --workers: give both.")
        return None
    from edgecnn.workers import read_workers

    cluster = read_workers(workers, worker)
    cluster.announce()
    return cluster


def network_name(recipe: "Recipe") -> str:
    """Return what people call a recipe's network."""
    from edgecnn.networks.own import own_network

    own = own_network(recipe.network.name)
    return own.label if own else recipe.network.name


def open_images(recipe: "Recipe", run: "Run | None", reporter: "Reporter", cluster: "Workers | None") -> "Dataset":
    """Open a recipe's data, after a look at whether its network exists.

    Args:
        recipe: the resolved recipe.
        run: the run to continue; None for a new one, whose network is then built and checked.
        reporter: hears of progress.
        cluster: the workers, who come together before the network is built.

    Raises:
        ClusterError: if they do not.
        UnknownNameError: for a network or a dataset of an unknown name.
        DatasetError: if the images of the run to continue are gone.
        NetworkError: for a network of one's own that cannot be trained.
    """
    from edgecnn.data import known_images, open_dataset
    from edgecnn.errors import DatasetError, UnknownNameError
    from edgecnn.networks import network_module
    from edgecnn.runs import INFO, NETWORK_FILE, RECIPE

    code = run.file(NETWORK_FILE) if run else Path((recipe.network.name or "").rpartition(":")[0])
    if code.name == NETWORK_FILE and code.is_file() and code.with_name(RECIPE).is_file():
        reporter.note(f"executing {code}: the network of this run is Python code")
    if recipe.network.name and (run is None or not run.file(NETWORK_FILE).exists()):
        network_module(recipe.network.name)
    try:
        images = known_images(run) if run and run.file(INFO).exists() else None
        dataset = open_dataset(recipe.data, progress=reporter.working, note=reporter.note, known=images)
    except UnknownNameError:
        if run is None:
            raise
        raise DatasetError(
            f"the images of {run.path} are missing: {recipe.data.source}. Finished epochs are kept. "
            f"Put the images back, then: edgecnn train --resume --out {run.path}"
        ) from None
    if run is None:
        from edgecnn.stages.pipeline import check_network

        if cluster:
            from edgecnn.train.distribute import open_strategy

            open_strategy(cluster)
        check_network(recipe, dataset)
    return dataset


def settled(recipe: "Recipe", dataset: "Dataset", reporter: "Reporter") -> "Recipe":
    """Return the recipe with what it leaves open chosen by the images, and say what that is and why."""
    from edgecnn.train.settle import reasons, require_start, settle

    chosen = settle(recipe, dataset)
    require_start(chosen)
    for line in reasons(recipe, chosen, dataset):
        reporter.note(line)
    return chosen


def run_name(recipe: "Recipe", dataset: "Dataset") -> str:
    """Return the name of the run folder unless --out says otherwise: the recipe's, or that of the data and the network."""
    from edgecnn.networks.own import own_network

    own = own_network(recipe.network.name)
    return recipe.name or f"{dataset.name}-{own.short if own else recipe.network.name}"


def require_same_images(run: "Run", dataset: "Dataset") -> None:
    """Raise RunError if a run began with other images."""
    from edgecnn.data.known import require_split

    for split in dataset.sizes if run.file("run.json").exists() else ():
        require_split(run, dataset, split)


def train_run(
    recipe: "Recipe", dataset: "Dataset", run: "Run | None", reporter: "Reporter", cluster: "Workers | None"
) -> "RunInfo":
    """Say what is trained, train it, and say how to continue if Ctrl-C ends it."""
    from edgecnn.stages.pipeline import train_stage

    where = f"run {run.path}" if run else f"worker {cluster.index if cluster else 0}"
    note(f"{where}: {network_name(recipe)} on {dataset.title}, {len(dataset.labels)} classes")
    try:
        return train_stage(recipe, dataset, run, reporter, cluster)
    except KeyboardInterrupt:
        if run:
            note(f"\nInterrupted; the last finished epoch is kept. Continue: edgecnn train --resume --out {run.path}")
        raise


def result_text(run: "Run | None", info: "RunInfo", cluster: "Workers | None") -> str:
    """Return the int8 model's validation accuracy, and how it was quantized; of a worker without a run, that its part is done."""
    if run is None or info.int8 is None:
        return f"worker {cluster.index if cluster else 0}: the float phase is finished; worker 0 continues alone"
    how = f"quantization-aware, epoch {info.int8.epoch}" if info.int8.method == "qat" else "quantized after training"
    return f"{run.path}: validation accuracy of int8 ({how}): {info.validation_accuracy:.2%}"
