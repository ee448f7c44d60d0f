"""`edgecnn stress`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgecnn.cli.options import Json, check_choice, emit_json, note, option
from edgecnn.cli.workstation_options import GATE, print_section

if TYPE_CHECKING:
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.stress.measure import Subject
    from edgecnn.stress.stress_report import StressReport, StressSplit

NOTE_S = 30.0  # seconds between two progress lines if standard error is not a terminal


def stress(
    model: Path | None = typer.Argument(
        None, metavar="[RUN|BUNDLE]", help="A run folder or a bundle.", show_default="runs/latest"
    ),
    data: str | None = option(
        None,
        "Where its images are now: a dataset's name, a folder or zip. They must be the same images.",
        "where they were",
    ),
    split: str = option(
        "validation",
        "Which images: validation while you are still choosing, test once you have chosen.",
        metavar="validation|test",
    ),
    corruptions: str | None = option(
        None,
        "Measure only these, such as motion,low-light. The result is not kept in the run.",
        "all",
        metavar="NAME,…",
    ),
    limit: int | None = option(None, "Measure at most N images.", "all of the split", min=1, metavar="N"),
    seed: int = option(1, "Seed of the corruptions.", min=0),
    at_least: float | None = option(
        None,
        "The pass line: the lowest mean corrupted accuracy that the int8 model may have, 0 to 1.",
        "none",
        GATE,
        min=0.0,
        max=1.0,
        metavar="SHARE",
    ),
    out: Path | None = option(
        None, "Also write the figures (JSON) and the curves (PNG) here.", "none", metavar="FOLDER"
    ),
    json: Json = False,
) -> None:
    """Measure how a model copes with what cameras do to images.

    Each image is corrupted in eight ways, all but one at five strengths: JPEG, motion, brightness, underexposure, low light, red and blue
    swapped, scale and occlusion. The screen, the run and its page and card then show the accuracy and agreement of the float and the int8
    model, and the corruption that costs most. The exit code is 33 if the mean is below --at-least.

    \b
    Examples:
      edgecnn stress
      edgecnn stress --split test --at-least 0.5
      edgecnn stress photos.edgecnn --data photos/ --limit 200 --corruptions jpeg,scale
    """
    from edgecnn.stress.stress_report import SPLITS

    check_choice("--split", split, SPLITS)
    if corruptions is not None and split == "test" and not (model and model.is_file()):
        raise typer.BadParameter(
            "a run counts how often its test split is measured, and a part is not kept in it. Measure all corruptions, or choose with "
            "--split validation.",
            param_hint="--corruptions",
        )
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.stress.corruptions import CORRUPTIONS
    from edgecnn.stress.measure import Settings, open_subject, require_passed
    from edgecnn.stress.measure import stress as measure

    names = tuple(CORRUPTIONS) if corruptions is None else tuple(name.strip() for name in corruptions.split(","))
    with ProgressReporter() as reporter:
        measured: StressSplit = "test" if split == "test" else "validation"
        subject = open_subject(model, data, measured, reporter.working, reporter.note)
        settings = Settings(names=names, limit=limit, seed=seed, at_least=at_least)
        report = measure(subject, settings, progress_of(reporter))
    places = keep_report(report, subject, out)
    if json:
        emit_json(report)
    else:
        from edgecnn.report.table import stress_section

        print_section(stress_section(report))
    for place in places:
        note(str(place)) if json else print(place)
    require_passed(report)


def progress_of(reporter: "ProgressReporter") -> Callable[[int, int], None]:
    """Return a function that shows a test's progress and the time left: in the bar, or in a line now and then."""
    began = noted = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal noted
        from edgecnn.cli.progress import clock

        now = time.monotonic()
        what = f"stress, {clock((now - began) * (total - done) / done)} left"
        reporter.working(what, done, total)
        if reporter.bars.disable and now - noted >= NOTE_S:
            noted = now
            reporter.note(f"{what}: {done:,} of {total:,} corrupted images")

    return progress


def keep_report(report: "StressReport", subject: "Subject", out: Path | None) -> list[str]:
    from edgecnn.files import canonical_json, write_atomic
    from edgecnn.report.plots import png, stress_plot
    from edgecnn.runs import STRESS
    from edgecnn.tables import to_json

    text, name, run = canonical_json(to_json(report)), STRESS.format(split=subject.split), subject.run
    places = []
    if run and report.complete:
        from edgecnn.report.page import write_run_page
        from edgecnn.stages.bundle import refresh_card

        write_atomic(run.file(name), text)
        places.append(f"report: {write_run_page(run)}")
        refresh_card(run)
    if out:
        write_atomic(out / name, text)
        write_atomic((out / name).with_suffix(".png"), png(stress_plot(report)))
        places.append(f"figures: {out / name}")
    return places
