"""The commands of the workstation: each parses, imports its stage, calls it once and prints."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecnn.cli.console import emit_json, note

if TYPE_CHECKING:
    from edgecnn.recipe import Recipe

RecipeArgument = Annotated[
    Path | None, typer.Argument(help="A recipe file (TOML).", show_default="the built-in recipe")
]
RunArgument = Annotated[Path | None, typer.Argument(help="A run folder.", show_default="runs/latest")]
Data = Annotated[
    str | None,
    typer.Option(help="A dataset's name, or a folder or zip of images.", show_default="the recipe's, else cifar10"),
]
Network = Annotated[
    str | None,
    typer.Option(
        help="A network's name, or FILE.py:FUNCTION for your own, a function (height, width, channels, num_classes) that returns "
        "a tf_keras model. The file is executed: give none that you do not trust.",
        show_default="the recipe's, else article",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Start from the trained network of this run, with a new head: for few images. Its network and input are taken "
        "unless others are given. A recipe or bundle stands for its run in runs/.",
        show_default="the recipe's, else none",
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Epochs of the float phase.", show_default="the recipe's, else 10")]
QatEpochs = Annotated[
    int | None,
    typer.Option(help="Epochs of the quantization-aware phase.", show_default="the recipe's, else 2"),
]
BatchSize = Annotated[int | None, typer.Option(help="Images in a batch.", show_default="the recipe's, else 128")]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Peak learning rate of the float phase.", show_default="the recipe's, else 0.003"),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="The network's input in pixels, width x height as for cameras, such as 160x120; one number is a square's side.",
        show_default="the recipe's, else the images' own up to 224, or 96 where they differ or are larger",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Seed of weights and batches.", show_default="the recipe's, else 1")]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any recipe key, such as train.shift=4; repeat it. edgecnn train --keys lists them.",
        show_default="none",
    ),
]
OutRun = Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/DATA-NETWORK")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.", show_default="off")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default="off")]
MaxDrop = Annotated[
    float, typer.Option(min=0.0, max=100.0, help="The gate: largest accepted drop in accuracy, in percentage points.")
]

TargetError = Annotated[
    float | None,
    typer.Option(
        min=0.0001,
        max=0.9999,
        help="Abstain below the smallest threshold that keeps the error among answered images at most this (a fraction), "
        "with 95 % confidence, on validation images.",
        show_default="no threshold",
    ),
]

AcceptConversion = Annotated[
    bool,
    typer.Option(
        "--accept-conversion",
        help="Let int8 files pass that differ from the fake-quantized model by more than the limit; report and card say so.",
        show_default="off",
    ),
]


def resolve(recipe: Path | None, settings: list[str] | None, **flags: Any) -> "Recipe":
    """Lay the command line over the recipe file over the defaults.

    `flags` are the options that have names of their own; one that is None was not given. A path to the
    data, a teacher, a network of one's own or one to start from is made absolute, so that the run can be used from another folder.
    """
    from edgecnn.data import DATASETS
    from edgecnn.recipe import build_recipe, load_recipe, merge, nest, parse_overrides
    from edgecnn.runs import start_from

    tables = merge(load_recipe(recipe) if recipe else {}, parse_overrides(settings or []))
    given = nest((FLAG_KEYS[name], value) for name, value in flags.items() if value is not None)
    resolved = build_recipe(start_from(merge(tables, given)), str(recipe) if recipe else "the command line")
    file, colon, function = resolved.network.name.rpartition(":")
    if file:
        own = Path(file).expanduser()
        if recipe and not own.exists() and (recipe.parent / own).exists():
            own = recipe.parent / own
        name = f"{own.resolve()}{colon}{function}"
        resolved = dataclasses.replace(resolved, network=dataclasses.replace(resolved.network, name=name))
    if resolved.train.teacher:
        teacher = str(Path(resolved.train.teacher).expanduser().resolve())
        resolved = dataclasses.replace(resolved, train=dataclasses.replace(resolved.train, teacher=teacher))
    source = Path(resolved.data.source).expanduser()
    if resolved.data.source in DATASETS or not source.exists():
        return resolved
    return dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, source=str(source.resolve())))


FLAG_KEYS = {
    "data": "data.source",
    "network": "network.name",
    "init": "init.source",
    "epochs": "train.epochs",
    "qat_epochs": "qat.epochs",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "seed": "seed",
    "width": "network.width",
    "height": "network.height",
    "input_range": "network.input_range",
    "input_scale": "network.input_scale",
    "input_zero_point": "network.input_zero_point",
}
"""Options that are short for a recipe key."""


def input_size(text: str | None) -> dict[str, int | None]:
    """Read --size: WIDTHxHEIGHT, or one number for a square, as the flags of `resolve`; None for both without it.

    Raises:
        typer.BadParameter: a usage error, for anything else.
    """
    if text is None:
        return {"width": None, "height": None}
    from edgecnn.cli.options import read_size

    width, height = read_size(text, square=True)
    return {"width": width, "height": height}


def train(
    recipe: RecipeArgument = None,
    data: Data = None,
    network: Network = None,
    size: Size = None,
    init: Init = None,
    epochs: Epochs = None,
    qat_epochs: QatEpochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    setting: Setting = None,
    out: OutRun = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run at --out, else runs/latest.", show_default="off")
    ] = False,
    force: Force = False,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT,…",
            help="Addresses of all machines that share the float phase; the same command on each, with its --worker.",
            show_default="this machine alone",
        ),
    ] = None,
    worker: Annotated[
        int | None,
        typer.Option(metavar="N", help="Which of --workers this is, from 0; 0 keeps the run.", show_default="none"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print parameters, MACs, bytes and the time that a few timed steps foretell; train and write nothing.",
            show_default="off",
        ),
    ] = False,
    keys: Annotated[
        bool,
        typer.Option(
            "--keys",
            help="List all recipe keys with type, default, limits and meaning; do nothing else.",
            show_default="off",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Train a network: a float phase, then a quantization-aware phase.

    Writes a run folder with the resolved recipe, the history (CSV, TensorBoard), curves (PNG) and both models. Ctrl-C keeps the
    last finished epoch; --resume goes on from it. After a worker was lost, start all of them as before, worker 0 with --resume.

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
    from edgecnn.workers import read_workers

    if worker is not None and workers is None:
        raise typer.BadParameter("--worker says which of --workers this is: give both.")
    cluster = read_workers(workers, worker) if workers is not None else None
    if cluster:
        cluster.announce()
    flags = {
        "data": data,
        "network": network,
        **input_size(size),
        "init": None if init is None else str(init),
        "epochs": epochs,
        "qat_epochs": qat_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    if resume:
        if recipe or setting or force or dry_run or any(value is not None for value in flags.values()):
            raise typer.BadParameter("--resume takes the run's own recipe: give --out at most.")
        from edgecnn.runs import open_run

        run = open_run(out)
        resolved = run.recipe
    else:
        run, resolved = None, resolve(recipe, setting, **flags)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.data import open_dataset
    from edgecnn.errors import DatasetError, UnknownNameError
    from edgecnn.networks import network_module
    from edgecnn.networks.own import own_network
    from edgecnn.runs import NETWORK_FILE, create_run, free_path

    own = own_network(resolved.network.name)
    network_name = own.label if own else resolved.network.name
    with ProgressReporter() as reporter:
        if run is None or not run.file(NETWORK_FILE).exists():
            network_module(resolved.network.name)
        try:
            dataset = open_dataset(resolved.data, progress=reporter.working)
        except UnknownNameError:
            if run is None:
                raise
            raise DatasetError(
                f"the images of {run.path} are not there: {resolved.data.source}. Finished epochs are kept. "
                f"Put the images back, then: edgecnn train --resume --out {run.path}"
            ) from None
        if run is None:
            from edgecnn.pipeline import check_network

            check_network(resolved, dataset)
        if dry_run:
            from edgecnn.cli.dry_run import show_dry_run

            show_dry_run(resolved, dataset, network_name, reporter, json)
            return
        if cluster and not cluster.first:
            run = None
        elif run is None:
            name = resolved.name or f"{dataset.name}-{own.short if own else network_name}"
            run = create_run(resolved, out or free_path(name), force=force)
        elif run.file("run.json").exists() and run.info["data"]["fingerprint"] != dataset.fingerprint:
            from edgecnn.errors import RunError

            raise RunError(
                f"the images of {dataset.name} have changed since {run.path} began. Train a new run instead."
            )
        from edgecnn.pipeline import train_stage

        where = f"run {run.path}" if run else f"worker {worker}"
        note(f"{where}: {network_name} on {dataset.title}, {len(dataset.labels)} classes")
        try:
            info = train_stage(resolved, dataset, run, reporter, cluster)
        except KeyboardInterrupt:
            if run:
                note(f"\nInterrupted; the last finished epoch is kept. Go on: edgecnn train --resume --out {run.path}")
            raise
    if json:
        emit_json({"run": str(run.path) if run else None, **info})
    elif run:
        how = {"qat": f"quantization-aware, epoch {info['int8']['epoch']}", "ptq": "quantized after training"}
        print(
            f"{run.path}: validation accuracy of int8 ({how[info['int8']['method']]}): {info['validation_accuracy']:.2%}"
        )
    else:
        print(f"{where}: the float phase is done; worker 0 goes on alone")


def bundle(
    run: RunArgument = None,
    out: Annotated[Path | None, typer.Option(help="The bundle to write.", show_default="RUN/NAME.edgecnn")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION",
            help="Carry no models but those, such as int8: a smaller file for devices; repeat it.",
            show_default="all that were verified",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Put a verified run's models, labels, report and golden vectors into one .edgecnn file.

    The temperature and the threshold that verify chose travel along.

    \b
    Examples:
      edgecnn bundle --out cats.edgecnn
      edgecnn bundle --only int8
    """
    from edgecnn.runs import open_run

    opened = open_run(run)
    note(f"run {opened.path}")
    from edgecnn.pipeline import bundle_stage, parity_report, verified_confidence
    from edgecnn.report.table import warning_lines

    path, digest = bundle_stage(opened, out, only=only or (), force=force)
    remember(path)
    report = parity_report(opened)
    confidence = verified_confidence(opened, report)
    for line in warning_lines(report):
        note(line)
    size = path.stat().st_size
    if json:
        emit_json({"path": str(path), "size_bytes": size, "sha256": digest, "confidence": confidence})
    else:
        from edgecnn.report.card import confidence_line

        print(f"{path}  {size:,} bytes  SHA-256 {digest}")
        print(confidence_line(confidence))


def remember(path: Path) -> None:
    """Let `edgecnn classify` take this bundle when it is given none; a record that cannot be written is a note, not a failure."""
    from edgecnn.errors import OutputError
    from edgecnn.runtime.default import remember_bundle

    try:
        remember_bundle(path)
    except OutputError as error:
        note(f"edgecnn classify needs --model {path}: {error}")
