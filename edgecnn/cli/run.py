"""`edgecnn run`."""

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.console import emit_json, note
from edgecnn.cli.flags import with_flags
from edgecnn.cli.options import Json, option
from edgecnn.cli.recipes import resolve, said


@with_flags
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (TOML).")],
    *,
    data: shared.Data,
    budget: shared.Budget,
    training: shared.Training,
    out: Annotated[Path | None, option("The run folder to write.", "runs/NAME, as in the recipe")] = None,
    max_drop: Annotated[float, shared.Limits],
    target_error: Annotated[float | None, shared.Scores],
    accept_conversion: Annotated[bool, shared.Limits],
    jobs: shared.Jobs = 1,
    force: shared.Force = False,
    json: Json = False,
) -> None:
    """Run every stage of a recipe: train, export, verify, bundle.

    A stage whose inputs have not changed is skipped, and interrupted training continues. Options override the recipe, which
    overrides the defaults below.

    \b
    Example:
      edgecnn run models/digits/recipe.toml
    """
    resolved = resolve(recipe, training.settings, said(data, budget, training))
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import PAGE, run_path

    path = out or run_path(resolved.name or recipe.stem)
    with ProgressReporter() as reporter:
        reporter.note(f"run {path}")
        from edgecnn.stages.bundle import bundle_path
        from edgecnn.stages.pipeline import run_recipe

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
            )
        except KeyboardInterrupt:
            note("\nInterrupted; finished stages and epochs are kept. Run the same command to continue.")
            raise
    from edgecnn.cli.parity import note_warnings, print_report

    if json:
        note_warnings(report)
        paths = {"run": finished.path, "bundle": bundle_path(finished), "report": finished.file(PAGE)}
        emit_json({**{name: str(path) for name, path in paths.items()}, "parity": report})
    else:
        print_report(report)
        print(f"report: {finished.file(PAGE)}")
        print(f"bundle: {bundle_path(finished)}")
