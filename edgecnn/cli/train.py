"""edgecnn train, and edgecnn run, which also does all that follows."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.options import Force, Json, emit_json, note, option, with_flags
from edgecnn.cli.recipes import former_recipe, resolve, stated_values
from edgecnn.labels import printable
from edgecnn.tables import to_json

if TYPE_CHECKING:
    from edgecnn.run_info import RunInfo
    from edgecnn.runs import Run
    from edgecnn.train import Workers


CLUSTER = "Several machines"
INSTEAD = "Instead of training"


@with_flags
def train(
    recipe: shared.RecipeArgument = None,
    *,
    data: shared.Data,
    budget: shared.Budget,
    training: shared.Training,
    out: Path | None = option(
        None, "The run folder to write.", "runs/DATA-NETWORK, or runs/DATA if the network is chosen"
    ),
    resume: bool = option(False, "Continue the run at --out, or the last one.", "off", None, "--resume"),
    force: Force = False,
    jobs: shared.Jobs = 1,
    workers: str | None = option(
        None,
        "Addresses of all machines that share the float phase. Run the same command on each, with its own --worker.",
        "only this machine",
        CLUSTER,
        metavar="HOST:PORT,…",
    ),
    worker: int | None = option(
        None, "This machine's place in --workers, from 0. Worker 0 keeps the run.", "none", CLUSTER, metavar="N"
    ),
    dry_run: bool = option(
        False,
        "Time a few steps, then print parameters, MACs, bytes and the estimated time. Nothing is written.",
        "off",
        INSTEAD,
        "--dry-run",
    ),
    keys: bool = option(
        False, "List all recipe keys with their type, default, limits and meaning.", "off", INSTEAD, "--keys"
    ),
    full: shared.Full = False,
    json: Json = False,
) -> None:
    """Train a network in two phases: float, then quantization-aware.

    Writes a run folder with the resolved recipe, the history (CSV), curves (PNG) and both models. Options override the
    recipe, which overrides the defaults below.

    Ctrl-C keeps the last finished epoch, and --resume continues from it. If a worker is lost, start all of them again, worker 0 with
    --resume.

    \b
    Examples:
      edgecnn train --data photos/ --network article --size 128 --epochs 10
      edgecnn train recipe.toml --set train.flip=no
      edgecnn train --dry-run --network resnet8
      edgecnn train --data photos/ --quick
      edgecnn train --data photos/ --folds 5
      edgecnn train --data photos/ --backbone mobilenet.onnx
      edgecnn train --data photos/ --init runs/cifar10-resnet8
      edgecnn train --resume
      edgecnn train recipe.toml --workers 10.0.0.1:2222,10.0.0.2:2222 --worker 0
    """
    if keys:
        from edgecnn.cli.recipes import show_keys

        show_keys(json)
        return
    cluster = join_cluster(workers, worker)
    given = stated_values(data, budget, training)
    if resume and (recipe or training.settings or force or dry_run or given):
        raise typer.BadParameter("--resume uses the run's own recipe: combine it only with --out.")
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import create_run, free_path, locked, open_run, settle_run
    from edgecnn.stages import Silent
    from edgecnn.stages import train as stage
    from edgecnn.stages.folds import beyond_quick, require_pretrained, ship_head, train_on_all
    from edgecnn.stages.network_choice import images_choose, require_budget, settled, with_backbone

    run = open_run(out) if resume else None
    resolved = run.recipe if run else resolve(recipe, training.settings, given)
    if resolved.folds and (cluster or dry_run):
        one, other = "--quick" if resolved.train.head_only else "--folds", "--workers" if cluster else "--dry-run"
        raise typer.BadParameter(f"{one} and {other} are mutually exclusive: give one.")
    anew = None
    with ProgressReporter(full or dry_run) as reporter, ExitStack() as held:
        if run and (cluster is None or cluster.first):
            held.enter_context(locked(run.path))
            anew = beyond_quick(run, reporter)
            resolved = anew or run.recipe
        dataset = stage.open_images(resolved, run, reporter, cluster)
        if cluster is None:
            dataset = stage.placed(dataset, reporter, run, keep=not dry_run)
            if run is None:
                resolved = with_backbone(resolved, dataset, reporter)
        elif dataset.left_to_edgecnn:
            if resolved.data.group_by and not dataset.split_groups:
                raise typer.BadParameter(
                    "several machines make no list of groups. Train once without --workers, then copy the photos with their "
                    "edgecnn-splits.csv.",
                    param_hint="--group-by",
                )
            dataset.check()
            reporter.note(
                f"{dataset.name}: with several machines, there is no search for photos that show the same thing. Train once without "
                "--workers, then copy the photos with their edgecnn-splits.csv"
            )
        if run and anew:  # only now: without its photos, the model that is there stays
            run = create_run(anew, run.path, force=True, keep_features=True)
        folds, choosing = resolved.folds, cluster is None and images_choose(resolved, dataset)
        require_pretrained(resolved, dataset)
        if dry_run:
            from edgecnn.cli.recipes import show_dry_run

            show_dry_run(resolved, dataset, reporter, json)
            return
        chosen = None if choosing else settled(resolved, dataset, run, Silent() if folds else reporter)
        named = chosen or resolved
        if not folds:
            resolved = named
        if cluster and not cluster.first:
            run = None
        elif run is None:
            if choosing:
                require_budget(resolved, dataset)  # before --force removes a run
            path = out or free_path(stage.run_name(named, dataset), force)
            held.enter_context(locked(path))
            run = create_run(resolved, path, force=force)
        elif not folds:
            stage.require_same_images(run, dataset)
            if chosen and run.recipe != chosen:
                run = settle_run(run, chosen)
        if run and folds:
            info = train_on_all(dataset, run, reporter, jobs)
        else:
            if run and choosing:
                with stage.resumable(run, reporter):
                    chosen = settled(resolved, dataset, run, reporter)
                run = settle_run(run, chosen)
            assert chosen, "with several machines, the images choose nothing"
            info = stage.train_run(chosen, dataset, run, reporter, cluster)
            if run:
                info = ship_head(chosen, dataset, run, info, reporter)
    if json:
        emit_json({"run": str(run.path) if run else None, **to_json(info)})
    else:
        print(result_text(run, info, cluster))
        if run and (info.folds or info.head_ships):
            print(held_out_line(run))
        if run and cluster is None and (line := stage.by_folds_line(run, dataset, info)):
            print(line)


def join_cluster(workers: str | None, worker: int | None) -> "Workers | None":
    """Return the machines of --workers, or None; this sets them for TensorFlow before it is imported."""
    if workers is None:
        if worker is not None:
            raise typer.BadParameter("--worker is this machine's place in --workers: give both.")
        return None
    from edgecnn.train import read_workers

    cluster = read_workers(workers, worker)
    cluster.announce()
    return cluster


def held_out_line(run: "Run") -> str:
    """Return a line on how many held-out images of each class the int8 models of a run's folds find."""
    from edgecnn.evaluate.answers import require_held_out
    from edgecnn.evaluate.statistics import class_line, found_by_class

    held = require_held_out(run)
    return class_line(found_by_class(held.int8.argmax(axis=1), held.classes, run.info.data.labels), "held-out images")


def result_text(run: "Run | None", info: "RunInfo", cluster: "Workers | None") -> str:
    if run is None or info.int8 is None:
        return f"worker {cluster.index if cluster else 0}: the float phase is finished; worker 0 continues on its own"
    if info.folds:
        images = sum(one.images for one in info.folds)
        right = sum(one.int8_accuracy * one.images for one in info.folds) / images
        return (
            f"{run.path}: with {len(info.folds)} folds, int8 models classify {right:.2%} of {images:,} images correctly, each image with a "
            "model that never saw it; the model that ships learnt from all of them"
        )
    if info.head_ships:
        return (
            f"{run.path}: accuracy of int8 on {info.int8.validation.n:,} photos, each answered by a layer that was fitted without it: "
            f"{info.validation_accuracy:.2%}"
        )
    how = f"quantization-aware, epoch {info.int8.epoch}" if info.int8.method == "qat" else "quantized after training"
    return f"{run.path}: validation accuracy of int8 ({how}): {info.validation_accuracy:.2%}"


@with_flags
def run(
    recipe: Path | None = typer.Argument(
        None,
        metavar="RECIPE",
        help="A recipe file (TOML); required, unless --against names a bundle.",
        show_default="the recipe of the --against bundle",
    ),
    *,
    data: shared.Data,
    budget: shared.Budget,
    training: shared.Training,
    out: Path | None = option(
        None, "The run folder to write.", "runs/NAME, as in the recipe; with --against runs/NAME-SERIAL"
    ),
    max_drop: Annotated[float, shared.Limits],
    target_error: Annotated[float | None, shared.Scores],
    accept_conversion: Annotated[bool, shared.Limits],
    replacing: shared.Replacing,
    confident: bool = option(
        False,
        "Require the whole interval of --against to meet its limit.",
        "off",
        shared.Replacing.heading,
        "--confident",
    ),
    jobs: shared.Jobs = 1,
    force: Force = False,
    full: shared.Full = False,
    json: Json = False,
) -> None:
    """Run every stage of a recipe: train, export, verify, bundle.

    A stage whose inputs have not changed is skipped, and interrupted training continues. Options override the recipe, which
    overrides the defaults below.

    With --against, the new model is compared with the old one. Its bundle gets the next serial number and records the verdict. The exit
    code is 36 if it is worse, and 37 if no photo can show it, or too few for --strict.

    \b
    Examples:
      edgecnn run models/digits/recipe.toml
      edgecnn run --against old.edgecnn --data photos/
    """
    from edgecnn.bundle.file import read_bundle

    if replacing.against is None and (recipe is None or replacing.renamed or replacing.strict or confident):
        expected = (
            "Name a recipe, or a bundle with --against"
            if recipe is None
            else "--renamed, --strict and --confident need --against"
        )
        raise typer.BadParameter(f"{expected}.")
    renamed = shared.renames(replacing.renamed)
    old = read_bundle(replacing.against) if replacing.against else None
    given = stated_values(data, budget, training)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import PAGE, run_path

    with ProgressReporter(full) as reporter:
        if recipe is None and old:
            resolved = former_recipe(old, training.settings, given, reporter)
        else:
            resolved = resolve(recipe, training.settings, given)
        name = resolved.name or (recipe.stem if recipe else old.manifest.name if old else "")
        path = out or run_path(f"{name}-{old.manifest.serial + 1}" if old else name)
        reporter.note(f"run {path}")
        from edgecnn.stages.bundle import bundle_path
        from edgecnn.stages.pipeline import Replacing, run_recipe

        try:
            finished, report = run_recipe(
                resolved,
                path,
                reporter,
                max_drop=max_drop,
                target_error=target_error,
                accept_conversion=accept_conversion,
                force=force,
                jobs=jobs,
                replacing=Replacing(old.path, renamed, shared.rule(replacing.strict, confident)) if old else None,
            )
        except KeyboardInterrupt:
            note("\nInterrupted; finished stages and epochs are kept. Run the same command to continue.")
            raise
    if old and recipe is None:
        from edgecnn.stages.against import other_network

        for line in other_network(old, finished):
            note(printable(line))
    from edgecnn.bundle.evidence import AGAINST
    from edgecnn.cli.verify import note_warnings, print_report, show_against
    from edgecnn.verify.against import Against, require_no_harm

    against = finished.stored(AGAINST, Against) if old else None
    if json:
        note_warnings(report)
        paths = {"run": finished.path, "bundle": bundle_path(finished), "report": finished.file(PAGE)}
        shown = {"parity": report} | ({"against": against} if against else {})
        emit_json({**{name: str(path) for name, path in paths.items()}, **shown})
    else:
        print_report(report, full)
        if against:
            show_against(against)
        print(f"report: {finished.file(PAGE)}")
        print(f"bundle: {bundle_path(finished)}")
    if against:
        require_no_harm(against, str(bundle_path(finished)))
