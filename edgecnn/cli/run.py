"""`edgecnn run`."""

from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.flags import with_flags
from edgecnn.cli.options import Json, emit_json, note, option
from edgecnn.cli.recipes import former_recipe, resolve, said
from edgecnn.labels import printable


@with_flags
def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file (TOML); required, unless --against names a bundle.",
            show_default="the recipe of the --against bundle",
        ),
    ] = None,
    *,
    data: shared.Data,
    budget: shared.Budget,
    training: shared.Training,
    out: Annotated[
        Path | None, option("The run folder to write.", "runs/NAME, as in the recipe; with --against runs/NAME-SERIAL")
    ] = None,
    max_drop: Annotated[float, shared.Limits],
    target_error: Annotated[float | None, shared.Scores],
    accept_conversion: Annotated[bool, shared.Limits],
    replacing: shared.Replacing,
    confident: Annotated[
        bool,
        option(
            "Require the whole interval of --against to meet its limit.", "off", shared.Replacing.heading, "--confident"
        ),
    ] = False,
    jobs: shared.Jobs = 1,
    force: shared.Force = False,
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
    given = said(data, budget, training)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import PAGE, run_path

    with ProgressReporter() as reporter:
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
    from edgecnn.cli.parity import note_warnings, print_report, show_against
    from edgecnn.verify.against import Against, require_no_harm

    against = finished.stored(AGAINST, Against) if old else None
    if json:
        note_warnings(report)
        paths = {"run": finished.path, "bundle": bundle_path(finished), "report": finished.file(PAGE)}
        shown = {"parity": report} | ({"against": against} if against else {})
        emit_json({**{name: str(path) for name, path in paths.items()}, **shown})
    else:
        print_report(report)
        if against:
            show_against(against)
        print(f"report: {finished.file(PAGE)}")
        print(f"bundle: {bundle_path(finished)}")
    if against:
        require_no_harm(against, str(bundle_path(finished)))
