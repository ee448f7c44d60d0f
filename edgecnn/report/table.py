"""What reports are made of: figures, tables and sections; and the sections on the chosen network and on stress.

Terminal, model card and page each lay a section out in their own way.
"""

from collections.abc import Sequence
from typing import NamedTuple

from edgecnn.labels import plural
from edgecnn.run_info import Candidate, NetworkChoice, Tuning
from edgecnn.stress.corruptions import STRENGTHS
from edgecnn.stress.stress_report import Mean, Measured, Stressed, StressReport


class FigureText(str):
    """A cell with numbers: `form`, with a field for each of `values`. The page marks each number as data."""

    form: str
    values: tuple[float, ...]

    def __new__(cls, form: str, *values: float) -> "FigureText":
        made = super().__new__(cls, form.format(*values))
        made.form, made.values = form, values
        return made


class Table(NamedTuple):
    """Rows of text under headings."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Section(NamedTuple):
    """A part of a report: its sentences, and its table, if it has one."""

    title: str
    lines: Sequence[str]
    table: Table | None = None


def share(value: float | None) -> str:
    """Return a fraction as a percentage, or a dash for None."""
    return "-" if value is None else FigureText("{:.2%}", value)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def tuning_line(tuning: Tuning) -> str:
    every = ", every class counting the same" if tuning.balanced else ""
    judges = f"{tuning.n:,} {'held-out' if tuning.folds else 'validation'} photos"
    photos = f"{tuning.head_accuracy:.1%}, fine-tuned {tuning.tuned_accuracy:.1%} of {judges}{every}"
    if not tuning.epochs:
        why = "fine-tuning cannot win" if tuning.head_accuracy == 1 else "without fine-tuning"
        return f"head {tuning.head_accuracy:.1%} of {judges}: head ships, {why}"
    why = {
        "accuracy": "",
        "all photos": ", which is right on more of them",
        "log loss": " by log loss",
        None: ", since the difference may be chance",
    }[tuning.decided_by]
    return f"head {photos}: {tuning.ships} ships{why}"


def choice_section(choice: NetworkChoice) -> Section:
    """Return how the network was chosen, with the candidates, best first."""
    headings = (
        "network",
        "input",
        "log loss",
        "accuracy",
        "behind the best",
        "MACs",
        "int8 bytes (expected)",
        "ms here",
        "",
    )
    rows = [candidate_row(one, choice) for one in choice.candidates]
    return Section("How the network was chosen", [judged_line(choice)], Table(headings, rows))


def candidate_row(one: Candidate, choice: NetworkChoice) -> tuple[str, ...]:
    chosen = (one.network, one.height, one.width) == (choice.network, choice.height, choice.width)
    return (
        one.network,
        f"{one.width}x{one.height}",
        "-" if one.log_loss is None else f"{one.log_loss:.3f}",
        f"{one.accuracy:.1%}",
        f"{100 * one.behind:.1f} ± {100 * one.behind_error:.1f}" if one.behind or one.behind_error else "-",
        f"{one.macs:,}",
        f"{one.int8_bytes:,}",
        "-" if one.ms is None else f"{one.ms:.2f}",
        "chosen" if chosen else "" if one.fits else "over the budget",
    )


def chosen_text(choice: NetworkChoice) -> str:
    limit = f", within {choice.budget}" if choice.budget else ""
    chosen = f"{choice.network} at {choice.width}x{choice.height}"
    return f"{chosen} was chosen for a last layer fitted to {choice.images:,} images{limit}: {choice.why}"


def judged_line(choice: NetworkChoice) -> str:
    every = ", every class counting the same," if choice.balanced else ""
    return (
        f"{chosen_text(choice)}. Frozen networks with a fitted last layer were compared{every} on held-out images. "
        f"It took {choice.seconds:,.0f} s."
    )


ROBUST_KIN = (
    "Training mixed corruptions into its images (train.robust). None of them is among those measured here, but noise, blur, light and "
    "colour are related to them."
)


def stress_section(report: StressReport) -> Section:
    headings = ("corruption", *map(str, STRENGTHS), "int8", "float", "agreement", "points lost")
    return Section(
        "Under stress", [stress_images_line(report), *stress_lines(report)], Table(headings, stress_rows(report))
    )


def stress_rows(report: StressReport) -> list[tuple[str, ...]]:
    """Return int8 at each strength, then the means over the strengths."""
    clean, mean, none = report.clean, report.mean_int8.accuracy, ["-"] * len(STRENGTHS)
    float_clean = share(clean.float.accuracy if clean.float else None)
    float_mean = share(report.mean_float.accuracy if report.mean_float else None)
    lost = 100 * (clean.int8.accuracy - mean)
    return [
        ("none", *none, share(clean.int8.accuracy), float_clean, share(clean.agreement), "-"),
        *map(stressed_row, report.corruptions),
        ("mean", *none, f"{mean:.2%}", float_mean, "-", f"{lost:.2f}"),
    ]


def stressed_row(item: Stressed) -> tuple[str, ...]:
    by_strength = {entry.strength: entry.int8.accuracy for entry in item.strengths}
    strengths = (share(by_strength.get(strength)) for strength in STRENGTHS)
    means = map(share, (item.int8, item.float, item.agreement))
    return item.corruption, *strengths, *means, FigureText("{:.2f}", item.lost)


def stress_images_line(report: StressReport) -> str:
    data = report.data
    count = f"{data.images:,}" if data.images == data.of else f"{data.images:,} of {data.of:,}"
    size = (
        f"at a shorter side of at most {report.largest_side} pixels, with the strengths for photos"
        if report.largest_side
        else "at their own size, with the strengths for small images"
    )
    uses = ""
    if data.split == "test":
        uses = f"; stress has measured this test split {plural(report.test_uses, 'time')}"
    return (
        f"{data.title}, {count} {data.split} images, corrupted before the resize {size}, seed {report.seed}{uses}. Columns "
        f"{STRENGTHS[0]} to {STRENGTHS[-1]} are int8's accuracy by strength, the others means over the strengths"
    )


def mean_line(report: StressReport) -> str:
    int8, clean = with_interval(report.mean_int8), with_interval(report.clean.int8)
    text = f"mean corrupted accuracy of int8: {int8}, {clean} without corruption"
    if report.mean_float:
        text += f"; of float: {with_interval(report.mean_float)}"
    if report.at_least is not None:
        text += f". Pass line {report.at_least:.2%}: {'passed' if report.passed else 'FAILED'}"
    return text if report.complete else f"{text}. Some corruptions were left out"


def with_interval(figure: Mean | Measured) -> str:
    return f"{figure.accuracy:.2%} ({figure.interval[0]:.2%} to {figure.interval[1]:.2%})"


def stress_lines(report: StressReport) -> list[str]:
    worst = report.costliest
    costs = f"{worst.corruption} costs the most accuracy: {worst.lost:.2f} points."
    return [mean_line(report), costs, *([ROBUST_KIN] if report.trained_robust else [])]
