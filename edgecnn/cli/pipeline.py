"""The command `edgecnn run`."""

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli.console import emit_json, note
from edgecnn.cli.workstation import (
    AcceptConversion,
    BatchSize,
    Data,
    Epochs,
    Force,
    Init,
    Json,
    LearningRate,
    MaxDrop,
    Network,
    QatEpochs,
    Seed,
    Setting,
    Size,
    TargetError,
    input_size,
    remember,
    resolve,
)


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (TOML).")],
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
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/NAME of the recipe")] = None,
    max_drop: MaxDrop = 1.0,
    target_error: TargetError = None,
    accept_conversion: AcceptConversion = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Take a recipe through every stage: train, export, verify, bundle.

    A stage whose inputs have not changed is skipped; training that was interrupted goes on.

    \b
    Example:
      edgecnn run models/digits/recipe.toml
    """
    resolved = resolve(
        recipe,
        setting,
        data=data,
        network=network,
        **input_size(size),
        init=None if init is None else str(init),
        epochs=epochs,
        qat_epochs=qat_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import RUNS

    path = out or RUNS / (resolved.name or recipe.stem)
    with ProgressReporter() as reporter:
        reporter.note(f"run {path}")
        from edgecnn.pipeline import bundle_path, run_recipe

        try:
            finished, report = run_recipe(
                resolved,
                path,
                reporter,
                max_drop=max_drop,
                target_error=target_error,
                accept_conversion=accept_conversion,
                force=force,
            )
        except KeyboardInterrupt:
            note("\nInterrupted; finished stages and epochs are kept. The same command goes on from there.")
            raise
    remember(bundle_path(finished))
    if json:
        from edgecnn.report.table import warning_lines

        for line in warning_lines(report):
            note(line)
        emit_json({"run": str(finished.path), "bundle": str(bundle_path(finished)), "parity": report})
    else:
        from edgecnn.cli.verify import print_report

        print_report(report)
        print(f"bundle: {bundle_path(finished)}")
