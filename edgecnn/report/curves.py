"""The training curves as a PNG file."""

import io

from edgecnn.files import write_atomic
from edgecnn.report.history import epochs
from edgecnn.runs import CURVES, Run


def write_curves(run: Run) -> None:
    """Plot loss and accuracies over the epochs of all phases, from the run's history, to `curves.png`."""
    from edgecnn.report.plots import empty

    rows = list(enumerate(epochs(run), 1))
    figure = empty(9, 4)
    loss, accuracy = figure.subplots(1, 2)
    float_epochs = sum(row.phase != "qat" for _, row in rows)
    for phase, colour in (("float", "C0"), ("qat", "C1")):
        points = [(epoch, row.loss) for epoch, row in rows if row.phase == phase]
        if points:
            loss.plot(*zip(*points, strict=True), f"{colour}.-", label=phase)
    for column, style, label in (
        ("accuracy", "C2.--", "accuracy"),
        ("validation_accuracy", "C3.-", "validation accuracy"),
        ("int8_accuracy", "C4x", "validation accuracy, int8"),
    ):
        values = [(epoch, getattr(row, column)) for epoch, row in rows]
        points = [(epoch, 100 * value) for epoch, value in values if value is not None]
        if points:
            accuracy.plot(*zip(*points, strict=True), style, label=label)
    for axes, title in ((loss, "training loss (qat: distillation)"), (accuracy, "accuracy, %")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        if float_epochs < len(rows):
            axes.axvline(float_epochs + 0.5, color="grey", linewidth=0.8, linestyle=":")
        axes.legend()
    figure.suptitle(run.name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomic(run.file(CURVES), buffer.getvalue())
