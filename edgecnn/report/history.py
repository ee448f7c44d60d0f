"""A run's epochs, read from `history.csv`."""

import csv
import io

from edgecnn.runs import HISTORY, Run
from edgecnn.tables import Struct

NUMBERS = ("loss", "accuracy", "validation_accuracy", "learning_rate", "int8_accuracy", "int8_agreement")


class Epoch(Struct):
    """One training epoch. Accuracies are fractions, None if not measured."""

    phase: str
    epoch: int
    loss: float
    accuracy: float
    validation_accuracy: float
    learning_rate: float
    int8_accuracy: float | None
    int8_agreement: float | None


def epochs(run: Run) -> tuple[Epoch, ...]:
    """Return a run's epochs; an imported model has none."""
    if not run.file(HISTORY).exists():
        return ()
    rows = csv.DictReader(io.StringIO(run.read(HISTORY, "train").decode()))
    return tuple(
        Epoch(
            phase=row["phase"],
            epoch=int(row["epoch"]),
            **{name: float(row[name]) if row[name] else None for name in NUMBERS},  # type: ignore[arg-type]
        )
        for row in rows
    )
