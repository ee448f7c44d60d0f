"""A stress report in words and tables: for the terminal, the card and the page."""

from edgecnn.stress.corruptions import STRENGTHS
from edgecnn.stress.remedies import remedy_text
from edgecnn.stress.stress_report import Condition, Mean, Stressed, StressReport

HEADINGS = ("corruption", *map(str, STRENGTHS), "int8", "float", "agreement", "points lost")

ROBUST_KIN = (
    "Training mixed corruptions into its images (train.robust). None of them is one that is measured here, but noise, blur, coarse pixels, "
    "light and colour are related to the measured ones."
)


def stress_rows(report: StressReport) -> list[tuple[str, ...]]:
    """Return a report as rows of text under HEADINGS: int8 at each strength, then the means over the strengths."""
    clean = report.clean
    rows = [
        (
            "none",
            *("-" for _ in STRENGTHS),
            f"{clean.int8.accuracy:.2%}",
            share(clean.float.accuracy if clean.float else None),
            share(clean.agreement),
            "-",
        )
    ]
    rows += [stressed_row(item) for item in report.corruptions]
    lost = 100 * (clean.int8.accuracy - report.mean_int8.accuracy)
    float_mean = share(report.mean_float.accuracy if report.mean_float else None)
    rows.append(("mean", *("-" for _ in STRENGTHS), f"{report.mean_int8.accuracy:.2%}", float_mean, "-", f"{lost:.2f}"))
    return rows


def stressed_row(item: Stressed) -> tuple[str, ...]:
    """Return a corruption's row."""
    by_strength = {entry.strength: f"{entry.int8.accuracy:.2%}" for entry in item.strengths}
    return (
        item.corruption,
        *(by_strength.get(strength, "-") for strength in STRENGTHS),
        f"{item.int8:.2%}",
        share(item.float),
        share(item.agreement),
        f"{item.lost:.2f}",
    )


def share(value: float | None) -> str:
    """Return a fraction as a percentage, a dash for None."""
    return "-" if value is None else f"{value:.2%}"


def images_line(report: StressReport) -> str:
    """Return which images were corrupted, how, and how often the test split was met."""
    data = report.data
    count = f"{data.images:,}" if data.images == data.of else f"{data.images:,} of {data.of:,}"
    size = (
        f"at a shorter side of at most {report.largest_side} pixels, by the strengths for photos"
        if report.largest_side
        else "at their own size, by the strengths for small images"
    )
    uses = ""
    if data.split == "test":
        uses = f"; stress has measured this test split {report.test_uses} time{'s' if report.test_uses > 1 else ''}"
    return f"{data.title}, {count} {data.split} images, corrupted before the resize {size}, seed {report.seed}{uses}"


def mean_line(report: StressReport) -> str:
    """Return the mean corrupted accuracy with its interval, and the pass line."""
    text = f"mean corrupted accuracy of int8: {with_interval(report.mean_int8)}, {clean_text(report.clean)} without corruption"
    if report.mean_float:
        text += f"; of float: {with_interval(report.mean_float)}"
    if report.at_least is not None:
        text += f". Pass line {report.at_least:.2%}: {'passed' if report.passed else 'FAILED'}"
    return text if report.complete else f"{text}. Not of all corruptions"


def with_interval(mean: Mean) -> str:
    """Return a mean with its interval."""
    return f"{mean.accuracy:.2%} ({mean.interval[0]:.2%} to {mean.interval[1]:.2%})"


def clean_text(clean: Condition) -> str:
    """Return the int8 model's accuracy without corruption, with its interval."""
    return f"{clean.int8.accuracy:.2%} ({clean.int8.interval[0]:.2%} to {clean.int8.interval[1]:.2%})"


def worst_line(report: StressReport, side: int) -> str:
    """Return which corruption costs most, and what may help; `side` is the input's smaller one, in pixels."""
    worst = report.costliest
    return f"{worst.corruption} costs most, {worst.lost:.2f} points. What may help: {remedy_text(report.remedy, side)}."


def stress_lines(report: StressReport, side: int) -> list[str]:
    """Return the lines that stand below a report's table."""
    return [mean_line(report), worst_line(report, side), *([ROBUST_KIN] if report.trained_robust else [])]
