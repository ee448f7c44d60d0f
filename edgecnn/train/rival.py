"""Fine-tuning has to win: when it ends, and whether its model or the head that it began with ships. Validation photos decide.

All comparisons are paired. In a balanced comparison every class counts the same. A difference of at most ERRORS standard errors is noise.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgecnn.networks.keras import tf
from edgecnn.run_info import Tuning, TuningFigure
from edgecnn.train.last_layer import log_losses
from edgecnn.train.schedule import AVERAGED_WARM_UP

ERRORS = 1.0

TEMPERATURES = np.geomspace(0.25, 4, 33)
"""Candidates for the divisor of a model's logits. Each model's log loss is that at its best one, because a temperature is fitted later."""

PATIENCE = 30
"""Fine-tuning ends when its log loss has not improved beyond noise for this many steps, rounded up to epochs. The steps in which the rate
rises do not count: the first ones often raise the loss."""


class Rival:
    """The answers of the fitted head, of the best epoch and of the last one to validation photos, as variables for a checkpoint.

    `classes` are those of the photos, int (n,), `weights` their weights of mean 1, (n,). There are at most `epochs` of `steps` each.
    """

    def __init__(self, classes: np.ndarray, weights: np.ndarray, num_classes: int, epochs: int, steps: int) -> None:
        self._classes, self._weights = classes, weights
        self._rising, self._patience = math.ceil(epochs * AVERAGED_WARM_UP), math.ceil(PATIENCE / steps)
        self._head, self._best, self._last = (
            tf.Variable(np.zeros((len(classes), num_classes), np.float32), trainable=False) for _ in range(3)
        )
        self._epoch, self._best_epoch = (tf.Variable(np.int64(0), trainable=False) for _ in range(2))

    @property
    def variables(self) -> Sequence[Any]:
        return [self._head, self._best, self._last, self._epoch, self._best_epoch]

    def begin(self, logits: np.ndarray) -> None:
        """Take the head's answers, float32 (n, num_classes)."""
        for variable in (self._head, self._best, self._last):
            variable.assign(logits)

    def examine(self, logits: np.ndarray) -> None:
        """Take an epoch's answers."""
        self._last.assign(logits)
        self._epoch.assign_add(1)
        gain, error = paired(self._losses(self._best) - self._losses(self._last))
        if gain > ERRORS * error:
            self._best.assign(logits)
            self._best_epoch.assign(self._epoch)

    def ended(self) -> bool:
        """Return whether another epoch is useless: the head makes no mistake, or the log loss no longer improves."""
        waited = int(self._epoch.numpy()) - max(int(self._best_epoch.numpy()), self._rising)
        return bool(self._right(self._head).all()) or waited >= self._patience

    def verdict(self) -> Tuning:
        """Return both models' figures and the one that ships: by accuracy, then log loss, then the head."""
        decided_by: TuningFigure | None = None
        ships = False
        differences = {
            "accuracy": self._right(self._last) - self._right(self._head),
            "log loss": self._losses(self._head) - self._losses(self._last),
        }
        for figure, difference in differences.items():
            gain, error = paired(difference)
            if abs(gain) > ERRORS * error:
                decided_by, ships = figure, gain > 0  # type: ignore[assignment]
                break
        return Tuning(
            n=len(self._classes),
            balanced=bool(np.ptp(self._weights)),
            epochs=int(self._epoch.numpy()),
            head_accuracy=mean(self._right(self._head)),
            tuned_accuracy=mean(self._right(self._last)),
            head_log_loss=mean(self._losses(self._head)),
            tuned_log_loss=mean(self._losses(self._last)),
            decided_by=decided_by,
            ships="fine-tuned" if ships else "head",
        )

    def _right(self, logits: Any) -> np.ndarray:
        right: np.ndarray = self._weights * (logits.numpy().argmax(axis=1) == self._classes)
        return right

    def _losses(self, logits: Any) -> np.ndarray:
        found = (self._weights * log_losses(logits.numpy() / value, self._classes) for value in TEMPERATURES)
        return min(found, key=np.mean)


def mean(values: np.ndarray) -> float:
    return round(float(values.mean()), 9)


def paired(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean of paired differences (n,) and its standard error; that of a single one is infinite.

    A single photo's difference in accuracy is exactly one standard error.
    """
    count = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else np.inf
    return float(differences.mean()), error + 1e-9
