"""`edgecnn verify`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from edgecnn.cli import workstation_options as shared
from edgecnn.cli.flags import with_flags
from edgecnn.cli.options import Json, emit_json, note, option
from edgecnn.cli.parity import BOARDS, BoardModel, Engines, On, Release, Sample, boards_of, last_run, verify_bundle

ENGINES = "Other engines"


@with_flags
def verify(
    run: shared.RunArgument = None,
    *,
    limits: shared.Limits,
    target_error: Annotated[float | None, shared.Scores],
    replacing: shared.Replacing,
    matrix: Annotated[
        bool, option("Also compare every engine that can run the int8 models.", "off", ENGINES, "--matrix")
    ] = False,
    tflite_python: Annotated[
        Path | None,
        option("Python of an environment with tflite-runtime, for --matrix.", "none", ENGINES, metavar="PATH"),
    ] = None,
    on: On = None,
    engines: Engines = None,
    release: Release = None,
    sample: Sample = 1000,
    model: BoardModel = None,
    data: Annotated[
        str | None,
        option("Test images of that bundle: a dataset's name, a folder or zip.", "as recorded in the bundle", BOARDS),
    ] = None,
    out: Annotated[
        Path | None, option("Write that bundle's JSON report to this file.", "none", BOARDS, metavar="FILE")
    ] = None,
    full: shared.Full = False,
    json: Json = False,
) -> None:
    """Check that exported files still answer like the float model.

    Compares each exported file of a run with its float and fake-quantized models on the test split, and writes parity.json into the run.
    The exit code is 14 if the gate fails. Before that, validation images are used to choose the temperature (so that a
    score of 90 % is right about 90 % of the time) and the threshold of --target-error. The bundle stores both.

    With --against, the new int8 model is also compared with the one that it would replace, on test photos that neither learnt from. The
    exit code is 36 if it is worse, and 37 if no photo can show it, or too few for --strict.

    With --on, the exports also run on emulated boards, with the packages that a board would install. With --model, or without a run, only a
    bundle runs on them, with no other comparison.

    \b
    Examples:
      edgecnn verify --max-drop 0.5 --confident --min-agreement 0.985
      edgecnn verify --target-error 0.05
      edgecnn verify --against old.edgecnn --renamed kitten=cat
      edgecnn verify --matrix --tflite-python venv/bin/python
      edgecnn verify --on rpi-zero2w,rpi3,rpi4,rpi5
      edgecnn verify --on rpi4 --model cats.edgecnn --data cats/ --engines all --release bookworm
    """
    boards = boards_of(on, engines, release, sample) if on else None
    if not on and (model or engines or release):
        raise typer.BadParameter("--engines, --release and --model need --on.")
    if boards and (model or (run is None and not last_run())):
        of_run = replace(limits, max_drop=shared.Limits.max_drop)
        if run or matrix or tflite_python or of_run != shared.Limits() or target_error is not None or replacing.against:
            raise typer.BadParameter(
                "RUN, --matrix, --tflite-python, --confident, --min-agreement, --accept-conversion, --target-error and --against are for a "
                "run, --model is for a bundle."
            )
        verify_bundle(model, boards, data, out, json)
        return
    if data or out:
        raise typer.BadParameter("--data and --out are for a bundle on boards: --on TARGET --model FILE.")
    if (replacing.renamed or replacing.strict) and not replacing.against:
        raise typer.BadParameter("needs --against.", param_hint="--renamed" if replacing.renamed else "--strict")
    renamed = shared.renames(replacing.renamed)
    from edgecnn.cli.parity import show_against, show_report
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.data import open_run_dataset
    from edgecnn.report.page import write_run_page
    from edgecnn.runs import open_run
    from edgecnn.stages.verify import Matrix
    from edgecnn.stages.verify import verify as verify_exports
    from edgecnn.verify.against import require_no_harm
    from edgecnn.verify.parity_report import Gate, require_parity

    against = None
    with ProgressReporter() as reporter:
        opened = open_run(run)
        note(f"run {opened.path}")
        dataset = open_run_dataset(opened, progress=reporter.working, note=note)
        report = verify_exports(
            opened,
            dataset,
            gate=Gate(**vars(limits)),
            target_error=target_error,
            matrix=Matrix(tflite_python=tflite_python) if matrix or tflite_python else None,
            boards=boards,
            progress=reporter.working,
        )
        if replacing.against:
            from edgecnn.stages.against import verify_against

            old, rule = replacing.against, shared.rule(replacing.strict, limits.confident)
            against = verify_against(opened, dataset, old, renamed=renamed, rule=rule, progress=reporter.working)
        page = write_run_page(opened)
    if against is None:
        show_report(report, json, full)
    elif json:
        emit_json({"parity": report, "against": against})
    else:
        show_report(report, json, full)
        show_against(against)
    note(f"report: {page}") if json else print(f"report: {page}")
    require_parity(report)
    if against:
        require_no_harm(against, f"{opened.name}.edgecnn")
