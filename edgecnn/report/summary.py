"""Is the model good? An answer in sentences, from a run's figures."""

from collections.abc import Sequence

import numpy as np

from edgecnn.report.figures import Confusion
from edgecnn.report.table import fold_lines, images_of, stranger_lines, taught_lines
from edgecnn.verify.parity_report import FEW_GROUPS, Data, ModelFigures, Report

WIDE = 0.1
"""Width of an accuracy's 95 % interval, as a fraction, from which the summary says that there are too few images."""

WEAKEST = 3


def summary(report: Report, model: ModelFigures, matrix: Confusion | None, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the essentials of a model: accuracy, weakest classes, and how a device handles uncertain and out-of-distribution images."""
    return (
        accuracy_line(report, model),
        *fold_lines(report),
        *taught_lines(report),
        *([weakest_line(matrix, labels)] if matrix else []),
        *(threshold_line(report) if report.confidence else []),
        *(
            stranger_lines(report)
            or [
                "Strangers: the device assigns every image to one of the classes; this model does not detect strangers."
            ]
        ),
    )


def accuracy_line(report: Report, model: ModelFigures) -> str:
    low, high = model.accuracy_interval
    count = report.data.test_images
    known = (
        f"{count:,} images are too few to tell {low:.0%} from {high:.0%}"
        if high - low >= WIDE
        else f"{count:,} images determine it to within {100 * max(model.accuracy - low, high - model.accuracy):.1f} points"
    )
    chance = report.chance
    return (
        f"{model.name} is right on {model.accuracy:.2%} of the {images_of(report)} (95 % interval {low:.2%} to {high:.2%}): "
        f"{known}. Always answering {chance.label} would be right on {chance.accuracy:.2%}.{divided_line(report.data)}"
    )


def divided_line(data: Data) -> str:
    """Return what the accuracy holds for: photos like these, or photos of other groups; "" if edgecnn did not divide the images."""
    if data.divided_by == "photo":
        return " That is of photos like these, divided by photo: photos of other things, places or days may be harder."
    if data.divided_by is None or data.test_groups is None:
        return ""
    few = ", which are few, so the interval is wide" if data.test_groups < FEW_GROUPS else ""
    return (
        f" That is by group: of {data.groups:,} groups, {data.test_groups:,} tested{few}. The interval is over groups."
    )


def weakest_line(matrix: Confusion, labels: Sequence[str]) -> str:
    shown, right = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)
    for true, answer, images in matrix.cells:
        shown[true] += images
        right[true] += images * (true == answer)
    wrong = [index for index in range(len(labels)) if right[index] < shown[index]]
    worst = sorted(wrong, key=lambda index: (right[index] / shown[index], -shown[index]))[:WEAKEST]
    named = ", ".join(f"{labels[index]} ({right[index]:,} of {shown[index]:,} right)" for index in worst)
    line = f"Weakest classes: {named}." if worst else "There are no mistakes in any class."
    missing = int(np.sum(shown == 0))
    lack = "has" if missing == 1 else "have"
    return f"{line} {missing:,} of {len(labels):,} classes {lack} no test images." if missing else line


def threshold_line(report: Report) -> list[str]:
    tested = report.confidence
    assert tested
    if not tested.threshold:
        return [
            "The device always answers with a class, however low its score: no threshold was chosen (verify --target-error)."
        ]
    error = "no errors" if tested.error is None else f"{tested.error:.2%} errors"
    return [
        f"Below a score of {tested.threshold:.2f} the device abstains: it answers {tested.share_answered:.2%} of the "
        f"{images_of(report)}, with {error}."
    ]
