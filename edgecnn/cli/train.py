"""`edgecnn train`."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.console import emit_json
from edgecnn.cli.flags import with_flags
from edgecnn.cli.options import Json, option
from edgecnn.cli.recipes import resolve, said
from edgecnn.tables import to_json

if TYPE_CHECKING:
    from edgecnn.run_info import RunInfo
    from edgecnn.runs import Run
    from edgecnn.workers import Workers

CLUSTER = "Several machines"
INSTEAD = "Instead of training"


@with_flags
def train(
    recipe: shared.RecipeArgument = None,
    *,
    data: shared.Data,
    training: shared.Training,
    out: Annotated[Path | None, option("The run folder to write.", "runs/DATA-NETWORK")] = None,
    resume: Annotated[
        bool, option("Continue the run at --out, or else the last one.", "off", None, "--resume")
    ] = False,
    force: shared.Force = False,
    workers: Annotated[
        str | None,
        option(
            "Addresses of all machines that share the float phase. Run the same command on each, with its own --worker.",
            "this machine alone",
            CLUSTER,
            metavar="HOST:PORT,…",
        ),
    ] = None,
    worker: Annotated[
        int | None,
        option("This machine's place in --workers, from 0. Worker 0 keeps the run.", "none", CLUSTER, metavar="N"),
    ] = None,
    dry_run: Annotated[
        bool,
        option(
            "Time a few steps, then print parameters, MACs, bytes and the estimated time. Nothing is written.",
            "off",
            INSTEAD,
            "--dry-run",
        ),
    ] = False,
    keys: Annotated[
        bool,
        option("List all recipe keys with their type, default, limits and meaning.", "off", INSTEAD, "--keys"),
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
    given = said(data, training)
    if resume and (recipe or training.settings or force or dry_run or given):
        raise typer.BadParameter("--resume uses the run's own recipe: give only --out with it.")
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import create_run, free_path, locked, open_run
    from edgecnn.stages.train import network_name, open_images, require_same_images, run_name, settled, train_run

    run = open_run(out) if resume else None
    resolved = run.recipe if run else resolve(recipe, training.settings, given)
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


def result_text(run: "Run | None", info: "RunInfo", cluster: "Workers | None") -> str:
    if run is None or info.int8 is None:
        return f"worker {cluster.index if cluster else 0}: the float phase is finished; worker 0 continues alone"
    how = f"quantization-aware, epoch {info.int8.epoch}" if info.int8.method == "qat" else "quantized after training"
    return f"{run.path}: validation accuracy of int8 ({how}): {info.validation_accuracy:.2%}"
