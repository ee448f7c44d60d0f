"""The training curves as PNG."""

import io

from edgecnn.files import write_atomic
from edgecnn.report.history import epochs
from edgecnn.runs import CURVES, Run


def write_curves(run: Run) -> None:
    """Plot loss and accuracies over the epochs of all phases, from the run's history, to `curves.png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = epochs(run)
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    numbers = range(1, len(rows) + 1)
    float_epochs = sum(row.phase != "qat" for row in rows)
    for phase, colour in (("float", "C0"), ("qat", "C1")):
        chosen = [(epoch, row) for epoch, row in zip(numbers, rows, strict=True) if row.phase == phase]
        if chosen:
            loss.plot([e for e, _ in chosen], [row.loss for _, row in chosen], f"{colour}.-", label=phase)
    for column, style in (("accuracy", "C2.--"), ("validation_accuracy", "C3.-")):
        accuracy.plot(numbers, [100 * getattr(row, column) for row in rows], style, label=column.replace("_", " "))
    int8 = [
        (epoch, 100 * row.int8_accuracy)
        for epoch, row in zip(numbers, rows, strict=True)
        if row.int8_accuracy is not None
    ]
    if int8:
        accuracy.plot(*zip(*int8, strict=True), "C4x", label="validation accuracy, int8")
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
