"""A run's epochs, as training wrote them to `history.csv`."""

import csv
import io
from dataclasses import dataclass

from edgecnn.runs import HISTORY, Run


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """An epoch of training; accuracies are fractions, None where they were not measured."""

    phase: str
    epoch: int
    loss: float
    accuracy: float
    validation_accuracy: float
    learning_rate: float
    int8_accuracy: float | None
    int8_agreement: float | None


def epochs(run: Run) -> tuple[Epoch, ...]:
    """Return a run's epochs; none for an imported model."""
    if not run.file(HISTORY).exists():
        return ()
    return tuple(
        Epoch(
            phase=row["phase"],
            epoch=int(row["epoch"]),
            loss=float(row["loss"]),
            accuracy=float(row["accuracy"]),
            validation_accuracy=float(row["validation_accuracy"]),
            learning_rate=float(row["learning_rate"]),
            int8_accuracy=float(row["int8_accuracy"]) if row["int8_accuracy"] else None,
            int8_agreement=float(row["int8_agreement"]) if row["int8_agreement"] else None,
        )
        for row in csv.DictReader(io.StringIO(run.read(HISTORY, "train").decode()))
    )
