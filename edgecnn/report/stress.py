"""A stress report in words and tables, for the terminal, the card and the page."""

from edgecnn.labels import plural
from edgecnn.report.table import share
from edgecnn.stress.corruptions import STRENGTHS
from edgecnn.stress.stress_report import Mean, Measured, Stressed, StressReport

HEADINGS = ("corruption", *map(str, STRENGTHS), "int8", "float", "agreement", "points lost")

ROBUST_KIN = (
    "Training mixed corruptions into its images (train.robust). None of them is among those measured here, but noise, blur, light and "
    "colour are related to them."
)


def stress_rows(report: StressReport) -> list[tuple[str, ...]]:
    """Return a report as rows of text under HEADINGS: int8 at each strength, then the means over the strengths."""
    clean, mean, none = report.clean, report.mean_int8.accuracy, ["-"] * len(STRENGTHS)
    float_clean = share(clean.float.accuracy if clean.float else None)
    float_mean = share(report.mean_float.accuracy if report.mean_float else None)
    lost = 100 * (clean.int8.accuracy - mean)
    return [
        ("none", *none, f"{clean.int8.accuracy:.2%}", float_clean, share(clean.agreement), "-"),
        *map(stressed_row, report.corruptions),
        ("mean", *none, f"{mean:.2%}", float_mean, "-", f"{lost:.2f}"),
    ]


def stressed_row(item: Stressed) -> tuple[str, ...]:
    by_strength = {entry.strength: f"{entry.int8.accuracy:.2%}" for entry in item.strengths}
    strengths = (by_strength.get(strength, "-") for strength in STRENGTHS)
    return item.corruption, *strengths, f"{item.int8:.2%}", share(item.float), share(item.agreement), f"{item.lost:.2f}"


def images_line(report: StressReport) -> str:
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
    return f"{data.title}, {count} {data.split} images, corrupted before the resize {size}, seed {report.seed}{uses}"


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
    """Return the lines below a report's table."""
    worst = report.costliest
    costs = f"{worst.corruption} costs the most accuracy: {worst.lost:.2f} points."
    return [mean_line(report), costs, *([ROBUST_KIN] if report.trained_robust else [])]
