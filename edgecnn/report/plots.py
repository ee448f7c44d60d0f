"""The report's plots, drawn with matplotlib: as SVG in the page's colours, and as PNG, the training curves among them."""

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.files import write_atomic
from edgecnn.labels import printable
from edgecnn.report.figures import Confusion, Epoch, RunFigures, epochs
from edgecnn.report.sections import against_float
from edgecnn.runs import CURVES, Run
from edgecnn.stress.stress_report import StressReport
from edgecnn.verify.parity_report import ClassDrop

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, FAINT = "#101010", "#d1d1d1"
FLOAT, INT8, GOOD, BAD = "#1b6ca8", "#d9730d", "#2e7d32", "#b3261e"
COLOURS = {INK: "--ink", FAINT: "--faint", FLOAT: "--float", INT8: "--int8", GOOD: "--good", BAD: "--bad"}
"""The plots' colours, and the custom properties of the page's style sheet that replace them in SVG."""

CYCLE = (FLOAT, INT8, GOOD, BAD)

MOST_NAMED = 30
"""Most classes that a matrix or chart labels individually."""

WIDTH = 4.6
"""Width of a plot in inches, chosen so that its text stays readable on a phone."""

STRESS_COLUMNS = 3

DPI = 150


Plots = dict[str, tuple[str, Callable[[], "Figure"]]]
"""Plots by name: a sentence that explains each, and the function that draws it."""


def plots(figures: RunFigures) -> Plots:
    """Return a run's plots. Plots without figures are left out."""
    found: Plots = {}
    for item in figures.confusion:
        text = f"Confusion matrix of {item.model}: rows are true classes, columns are answers. Darker cells hold more of a class's images."
        found[f"confusion-{item.model}"] = text, partial(confusion_plot, item, figures.origin.labels)
    drops = drop_of(figures)
    if drops:
        text = f"Drop by class, in percentage points: the accuracy that {figures.int8} lost against the float model."
        found["classes"] = text, partial(classes_plot, drops)
    if figures.reliability:
        text = "Reliability: accuracy by score. On the diagonal, a score of 90 % is right 90 % of the time."
        found["reliability"] = text, partial(one_plot, draw_reliability, figures)
    if figures.coverage:
        text = "Coverage: the share of images answered, and the error among them, at each threshold."
        found["coverage"] = text, partial(one_plot, draw_coverage, [figures])
    if figures.epochs:
        text = "Learning curves: accuracy on validation images by epoch, of the float model and of int8."
        found["learning"] = text, partial(one_plot, draw_learning, {figures.name: figures.epochs})
    if figures.layers:
        text = "Noise by layer: signal-to-quantization-noise ratio in dB, worst first."
        worst = figures.layers.layers[:MOST_NAMED]
        names, values = [item.layer for item in worst], [item.sqnr_db for item in worst]
        found["layers"] = text, partial(bars, names, values, INT8, "signal to quantization noise, dB")
    if figures.stress:
        text = "Stress: accuracy by strength of each corruption, of the float model and of int8. Strength zero is uncorrupted."
        found["stress"] = text, partial(stress_plot, figures.stress)
    return found


def side_by_side(runs: Sequence[RunFigures]) -> Plots:
    found: Plots = {}
    learned, covered = [run for run in runs if run.epochs], [run for run in runs if run.coverage]
    if len(learned) > 1:
        text = "Learning curves of the runs: accuracy on validation images by epoch."
        found["learning"] = text, partial(one_plot, draw_learning, {run.name: run.epochs for run in learned})
    if len(covered) > 1:
        text = "Coverage of the runs: errors among answered images by the share of images answered."
        found["coverage"] = text, partial(one_plot, draw_coverage, covered)
    return found


def svg(draw: Callable[[], "Figure"], name: str) -> str:
    """Draw a plot and return it as SVG for a page: text stays text, colours become custom properties, and identifiers begin with `name`."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        draw().savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\g<1>#{name}-", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"<svg ", '<svg aria-hidden="true" focusable="false" ', text, count=1)


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def empty(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(axes: "Axes", labelsize: int) -> None:
    axes.tick_params(colors=INK, labelsize=labelsize)
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    figure = empty(width, height)
    axes = figure.subplots()
    axes.set_prop_cycle(color=CYCLE)
    style(axes, 9)
    for part in (axes.xaxis.label, axes.yaxis.label, axes.title):
        part.set_color(INK)
        part.set_fontsize(10)
    return figure, axes


def one_plot(draw: Callable[["Axes", Any], None], shown: Any) -> "Figure":
    figure, axes = new_figure(WIDTH, 3.4)
    axes.grid(color=FAINT, linewidth=0.6)
    draw(axes, shown)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def bars(names: Sequence[str], values: Sequence[float], colour: str | Sequence[str], label: str) -> "Figure":
    figure, axes = new_figure(WIDTH, 1.0 + 0.24 * len(values))
    axes.barh(range(len(values)), values, color=colour, height=0.7)
    axes.set_yticks(range(len(values)), list(map(short, names)))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def short(label: str) -> str:
    """Return a label for an axis: printable, at most 18 characters, without mathematical markup."""
    text = printable(label)
    return (text if len(text) <= 18 else text[:17] + "…").replace("$", r"\$")


def confusion_plot(matrix: Confusion, labels: Sequence[str]) -> "Figure":
    """Draw a confusion matrix with each row as shares of its class and, for few classes, the counts in the cells."""
    count = len(labels)
    side = min(WIDTH, 2.2 + 0.24 * min(count, MOST_NAMED))
    figure, axes = new_figure(side, side)
    counts = np.zeros((count, count))
    for true, answer, images in matrix.cells:
        counts[true, answer] = images
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axes.set_title(matrix.model)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    if count <= MOST_NAMED:
        names = [short(label) for label in labels]
        size = 9 if count <= 15 else 6
        axes.set_xticks(range(count), names, rotation=90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    for true, answer, images in matrix.cells if count <= 12 else ():
        colour = "white" if shares[true, answer] > 0.5 else "black"
        axes.text(answer, true, str(images), ha="center", va="center", color=colour, fontsize=7)
    return figure


def drop_of(figures: RunFigures) -> tuple[ClassDrop, ...]:
    if figures.parity is None or figures.int8 is None:
        return ()
    return against_float(figures.parity)[figures.int8].per_class


def classes_plot(drops: Sequence[ClassDrop]) -> "Figure":
    """Draw the drop by class, worst first. With many classes, draw only the worst and the best half of MOST_NAMED."""
    known = sorted(((item.label, item.drop) for item in drops if item.drop is not None), key=lambda pair: -pair[1])
    if len(known) > MOST_NAMED:
        known = known[: MOST_NAMED // 2] + known[-(MOST_NAMED // 2) :]
    labels, values = [label for label, _ in known], [drop for _, drop in known]
    colours = [BAD if value > 0 else GOOD for value in values]
    figure = bars(labels, values, colours, "points lost by int8 (left of zero: gained)")
    figure.axes[0].axvline(0, color=INK, linewidth=0.8)
    return figure


def draw_reliability(axes: "Axes", figures: RunFigures) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--")
    for item, colour in zip(figures.reliability, CYCLE, strict=False):
        label = item.model if item.temperature == 1 else f"{item.model}, temperature {item.temperature:.2f}"
        axes.plot(
            [b.score for b in item.bins], [b.accuracy for b in item.bins], "o-", color=colour, label=label, markersize=4
        )
    axes.set_xlabel("mean score")
    axes.set_ylabel("accuracy")


def draw_coverage(axes: "Axes", runs: Sequence[RunFigures]) -> None:
    """Draw answered share and errors by threshold for one run, or errors by answered share for several."""
    if len(runs) == 1:
        points = runs[0].coverage
        thresholds = [item.threshold for item in points]
        axes.plot(thresholds, [item.share_answered for item in points], color=FLOAT, label="answered")
        errors = [(item.threshold, item.error) for item in points if item.error is not None]
        axes.plot(*zip(*errors, strict=True), color=BAD, label="errors among them")
        axes.set_xlabel("threshold")
        axes.set_ylabel("share of test images")
        return
    for run in runs:
        known = [(item.share_answered, item.error) for item in run.coverage if item.error is not None]
        axes.plot(*zip(*known, strict=True), label=short(run.name))
    axes.set_xlabel("share of test images answered")
    axes.set_ylabel("errors among them")


def draw_learning(axes: "Axes", runs: Mapping[str, Sequence[Epoch]]) -> None:
    """Draw validation accuracy by epoch; for a single run also int8, and the boundary between its phases."""
    for name, run in runs.items():
        numbers = range(1, len(run) + 1)
        label = "validation" if len(runs) == 1 else short(name)
        axes.plot(numbers, [100 * item.validation_accuracy for item in run], label=label)
        if len(runs) == 1:
            axes.plot(numbers, [100 * item.accuracy for item in run], color=FAINT, label="training")
            int8 = [(n, 100 * item.int8_accuracy) for n, item in enumerate(run, 1) if item.int8_accuracy is not None]
            if int8:
                axes.plot(*zip(*int8, strict=True), "x", color=INT8, label="validation, int8")
            draw_phases(axes, run)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy, %")


def draw_phases(axes: "Axes", run: Sequence[Epoch]) -> None:
    for number, (one, other) in enumerate(itertools.pairwise(run), 1):
        if one.phase != other.phase:
            axes.axvline(number + 0.5, color=FAINT, linestyle=":")


def stress_plot(report: StressReport) -> "Figure":
    """Draw a small plot for each corruption with several strengths: accuracy by strength, for float and int8."""
    shown = [item for item in report.corruptions if len(item.strengths) > 1] or list(report.corruptions)
    rows = -(-len(shown) // STRESS_COLUMNS)
    figure = empty(WIDTH, 0.6 + 1.15 * rows)
    grid = figure.subplots(rows, STRESS_COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, item in zip(grid, shown, strict=False):
        for name, colour in (("float", FLOAT), ("int8", INT8)):
            known = [(point.strength, getattr(point, name)) for point in (report.clean, *item.strengths)]
            line = [(strength, 100 * value.accuracy) for strength, value in known if value is not None]
            if line:
                axes.plot(*zip(*line, strict=True), ".-", color=colour, label=name, markersize=4, linewidth=1)
        axes.set_title(item.corruption, fontsize=8, color=INK)
        axes.set_ylim(0, 100)
        axes.set_xticks(range(6))
        axes.grid(color=FAINT, linewidth=0.6)
        style(axes, 7)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    grid[0].legend(frameon=False, fontsize=7, labelcolor=INK)
    figure.supylabel("accuracy, %", fontsize=8, color=INK)
    figure.supxlabel("strength", fontsize=8, color=INK)
    return figure


def write_curves(run: Run) -> None:
    """Plot loss and accuracies over the epochs of all phases, from the run's history, to `curves.png`."""
    shown = epochs(run)
    figure = empty(2 * WIDTH, 4)
    loss, accuracy = figure.subplots(1, 2)
    for phase, colour in (("float", FLOAT), ("qat", INT8)):
        points = [(epoch, row.loss) for epoch, row in enumerate(shown, 1) if row.phase == phase]
        if points:
            loss.plot(*zip(*points, strict=True), ".-", color=colour, label=phase)
    loss.set_xlabel("epoch")
    loss.set_ylabel("training loss (qat: distillation)")
    draw_phases(loss, shown)
    draw_learning(accuracy, {run.name: shown})
    for axes in (loss, accuracy):
        axes.grid(color=FAINT, linewidth=0.6)
        axes.legend()
    figure.suptitle(run.name)
    write_atomic(run.file(CURVES), png(figure))
