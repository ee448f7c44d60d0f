"""Which model ships: between epochs and methods of quantization, and between fine-tuning and the head that it began with.

The rule uses validation images only. If two accuracies differ by more than chance, the more accurate model wins. Otherwise the winner
is the model that agrees with the float model on more images, then the one that classifies more images correctly, then the one whose
scores diverge less from the float model's. With fewer than FEW images, agreement is as coarse as accuracy, so only the divergence
decides. In a complete tie the later epoch wins. When divergence decides between two methods, quantization-aware training wins unless
the divergence of post-training quantization is MUCH_SMALLER. All epochs share one range for their logits and are compared within it.
Post-training quantization that is like the float model (`Score.like_float`) needs no rival if training starts from trained weights.

All comparisons are paired. In a balanced comparison every class counts the same. A difference of at most ERRORS standard errors is noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from math import inf, sqrt
from typing import Any, Protocol, cast

import numpy as np

from edgecnn.data import Split
from edgecnn.networks.keras import keras, tf
from edgecnn.run_info import Asked, Decisive, Method, Tuning, TuningFigure, Validated
from edgecnn.train.candidates import log_losses
from edgecnn.train.settle import AVERAGED_WARM_UP

CHANCE = 2.0  # standard errors within which two accuracies differ by chance, in 95 % of cases

FEW = 1_000  # with fewer validation images, agreement is too coarse to choose by

LIKE_FLOAT, LIKE_FLOAT_IMAGES = 0.003, 16
"""A divergence from the float model's scores, in nats, on which quantization-aware training from trained weights rarely improves, and the
fewest validation images with which this was measured."""

MUCH_SMALLER = 1 / 4
"""Post-training quantization wins by divergence if its own is at most this fraction of that of quantization-aware training. With a similar
divergence, it agreed with the float model on fewer of the images that did not choose."""

METHODS_BY: tuple[Decisive, ...] = ("agreement", "accuracy", "divergence")
EPOCHS_BY = ("agreement", "accuracy", "within")
"""The figures to compare, in order, until one differs: between two methods, and between two epochs. With fewer than FEW images, only the
last one counts."""


class Int8(Protocol):
    """Answers of int8 files, which the training code cannot make itself."""

    def fake_quantized(self, model: "keras.Model", images: np.ndarray) -> np.ndarray:
        """Return the logits, float32 (n, num_classes), of a fake-quantized model's int8 file for uint8 images."""

    def post_training(self, model: "keras.Model", train: Split, images: np.ndarray) -> np.ndarray | None:
        """Return the logits of a float model's int8 file, with ranges from some of the training images; None if it cannot be made."""


@dataclass(frozen=True)
class Score:
    """A model's results on n images: counts, and mean divergences in nats. `within` is the divergence within the int8 model's range.

    Only the float model classifies the `lost` images correctly, and only this model the `gained` ones. `credit` is the weight of the images
    that are right, and `spread` the sum of squared weights of the lost and gained ones. Without weights they are `right` and a count.
    """

    n: int
    right: int
    agreed: int
    lost: int
    gained: int
    divergence: float
    within: float
    credit: float
    spread: float

    @classmethod
    def read(cls, values: np.ndarray) -> "Score | None":
        n, right, agreed, lost, gained, *divergences = values.tolist()
        return cls(int(n), int(right), int(agreed), int(lost), int(gained), *divergences) if n else None

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def agreement(self) -> float:
        return self.agreed / self.n

    @property
    def standard_error(self) -> float:
        """Standard error of the paired accuracy difference from the float model: sqrt(lost + gained - (lost - gained)^2 / n) / n."""
        return sqrt(self.lost + self.gained - (self.lost - self.gained) ** 2 / self.n) / self.n

    @property
    def like_float(self) -> bool:
        """Whether the model agrees with the float model on all of at least LIKE_FLOAT_IMAGES, and diverges by at most LIKE_FLOAT."""
        return self.agreed == self.n >= LIKE_FLOAT_IMAGES and self.divergence <= LIKE_FLOAT

    def lead(self, other: "Score", figures: Sequence[str]) -> tuple[float, str | None]:
        """Return this model's lead over another (negative if it is behind) and the deciding figure; (0, None) in a tie."""
        leads = {
            "agreement": self.agreed - other.agreed,
            "accuracy": self.credit - other.credit,
            "divergence": other.divergence - self.divergence,
            "within": other.within - self.within,
        }
        # McNemar's test, corrected for continuity; an answer that both changed counts twice
        if abs(leads["accuracy"]) - 1 > CHANCE * sqrt(self.spread + other.spread):
            figures = ("accuracy",)
        elif self.n < FEW:
            figures = figures[-1:]
        return next(((leads[figure], figure) for figure in figures if leads[figure]), (0, None))

    def better_than(self, other: "Score") -> bool:
        return self.lead(other, EPOCHS_BY)[0] > 0

    def figures(self) -> Validated:
        return Validated(**{entry.name: getattr(self, entry.name) for entry in fields(Validated)})


def score_variable() -> Any:
    return tf.Variable(np.zeros(len(fields(Score))), trainable=False)


def score(
    logits: np.ndarray,
    reference: np.ndarray,
    classes: np.ndarray,
    ends: tuple[float, float] = (-inf, inf),
    weights: np.ndarray | None = None,
) -> Score:
    """Score logits (n, num_classes) against the float model's and the true classes (n,). `ends` is the range for `Score.within`.

    `weights` are those of the images, (n,), of mean 1; by default all weigh the same.
    """
    answers, wanted = np.argmax(logits, axis=1), np.argmax(reference, axis=1)
    right, right_before = answers == classes, wanted == classes
    of_each = np.ones(len(classes)) if weights is None else weights
    return Score(
        n=len(classes),
        right=int(np.sum(right)),
        agreed=int(np.sum(answers == wanted)),
        lost=int(np.sum(right_before & ~right)),
        gained=int(np.sum(right & ~right_before)),
        divergence=divergence(reference, logits, of_each),
        within=divergence(np.clip(reference, *ends), np.clip(logits, *ends), of_each),
        credit=float(np.sum(of_each[right])),
        spread=float(np.sum(of_each[right != right_before] ** 2)),
    )


def divergence(reference: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence of softmax(logits) from softmax(reference), in nats; both shape (n, num_classes).

    `weights`, (n,), as in `score`.
    """
    expected, found = (tf.nn.log_softmax(values.astype(np.float64)).numpy() for values in (reference, logits))
    return max(float(np.mean(weights * np.sum(np.exp(expected) * (expected - found), axis=1))), 0.0)


def better_method(asked: Asked, qat: Score | None, ptq: Score | None) -> tuple[Method, Decisive | None]:
    """Return how to make the int8 models, and the figure that decided: the requested method, or for "auto" the rule's choice."""
    if asked != "auto":
        return asked, None
    if qat is None or ptq is None:
        return "ptq" if qat is None else "qat", None
    lead, figure = ptq.lead(qat, METHODS_BY)
    if figure == "divergence" and qat.divergence > ptq.divergence > MUCH_SMALLER * qat.divergence:
        return "qat", None
    return "ptq" if lead > 0 else "qat", cast(Decisive | None, figure)


class Best:
    """The weights and number of the best epoch so far, as variables, so that a checkpoint can hold them."""

    def __init__(self, model: "keras.Model") -> None:
        self.model = model
        self._weights = [tf.Variable(variable, trainable=False) for variable in model.variables]
        self._epoch = tf.Variable(np.int64(0), trainable=False)
        # score of the epoch kept; n is 0 until there is one
        self._score = score_variable()

    @property
    def variables(self) -> Sequence[Any]:
        return [*self._weights, self._epoch, self._score]

    @property
    def epoch(self) -> int:
        return int(self._epoch.numpy())

    @property
    def score(self) -> Score | None:
        """The best epoch's score; None until an epoch is offered."""
        return Score.read(self._score.numpy())

    def offer(self, epoch: int, found: Score) -> None:
        """Keep the model's weights if this epoch is better than the best, or later and just as good."""
        best = self.score
        if best is None or found.better_than(best) or (epoch > self.epoch and not best.better_than(found)):
            self.take(epoch, found)

    def take(self, epoch: int, found: Score) -> None:
        """Keep the model's weights unconditionally."""
        for saved, variable in zip(self._weights, self.model.variables, strict=True):
            saved.assign(variable)
        self._score.assign(astuple(found))
        self._epoch.assign(epoch)

    def restore(self) -> None:
        for saved, variable in zip(self._weights, self.model.variables, strict=True):
            variable.assign(saved)


POWER = 2
"""A step's weights count in proportion to its number raised to this power. The last fifth of the steps makes up half of the average, the
first fifth a hundredth."""


def averaging(step: Callable[..., Any], means: Sequence[tuple[Any, Any]], steps: Any) -> Callable[..., Any]:
    """Return a training step that also folds the new weights into their running averages.

    Each of the means is a pair of variables: the average and its source. `steps` counts the steps, from 1. Source: Izmailov et al. 2018
    (arXiv:1803.05407); for the weighting by step, Shamir and Zhang 2013 (arXiv:1212.1824), section 4.
    """

    @tf.function
    def average() -> None:
        share = (POWER + 1) / (tf.cast(steps, tf.float32) + POWER)
        for mean, variable in means:
            mean.assign_add(share * (variable - mean))

    def averaged_step(*arguments: Any) -> Any:
        result = step(*arguments)
        average()
        return result

    return averaged_step


ERRORS = 1.0

TEMPERATURES = np.geomspace(0.25, 4, 33)
"""Candidates for the divisor of a model's logits. Each model's log loss is that at its best one, because a temperature is fitted later."""

PATIENCE = 60
"""Fine-tuning ends when its log loss has not been lower than before for this many steps, rounded up to epochs. The steps in which the rate
rises do not count, nor does the head: the first steps raise the loss, and it takes a while to come below the head's again."""


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
        if self._epoch.numpy() == 1 or mean(self._losses(self._last)) < mean(self._losses(self._best)):
            self._best.assign(logits)
            self._best_epoch.assign(self._epoch)

    def ended(self) -> bool:
        """Return whether another epoch is useless: the head makes no mistake, or the log loss no longer improves."""
        waited = int(self._epoch.numpy()) - max(int(self._best_epoch.numpy()), self._rising)
        return bool(self._right(self._head).all()) or waited >= self._patience

    def verdict(self) -> Tuning:
        """Return the verdict after the last epoch."""
        head, last = self._head.numpy(), self._last.numpy()
        return verdict(head, last, self._classes, self._weights, epochs=int(self._epoch.numpy()))

    def _right(self, logits: Any) -> np.ndarray:
        return right(logits.numpy(), self._classes, self._weights)

    def _losses(self, logits: Any) -> np.ndarray:
        return losses(logits.numpy(), self._classes, self._weights)


def right(logits: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weight of each photo that is answered correctly, and 0 for the others, float64 (n,)."""
    found: np.ndarray = weights * (logits.argmax(axis=1) == classes)
    return found


def losses(logits: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each photo's log loss times its weight, at the best of TEMPERATURES for all of them, float64 (n,)."""
    return min((weights * log_losses(logits / value, classes) for value in TEMPERATURES), key=np.mean)


def verdict(
    head: np.ndarray, tuned: np.ndarray, classes: np.ndarray, weights: np.ndarray, *, epochs: int, folds: bool = False
) -> Tuning:
    """Return both models' figures and the one that ships: by accuracy, then the share of all photos, then log loss, then the head.

    `head` and `tuned` are logits, float32 (n, num_classes), for photos that taught neither: those of validation, or all by `folds`.
    """
    decided_by: TuningFigure | None = None
    ships = False
    gained = right(tuned, classes, weights) - right(head, classes, weights)
    differences = {
        "accuracy": gained,
        "all photos": gained / weights,  # a rare class has few photos, and its log loss hangs on each
        "log loss": losses(head, classes, weights) - losses(tuned, classes, weights),
    }
    for figure, difference in differences.items():
        gain, error = paired(difference)
        if abs(gain) > ERRORS * error:
            decided_by, ships = figure, gain > 0  # type: ignore[assignment]
            break
    return Tuning(
        n=len(classes),
        balanced=bool(np.ptp(weights)),
        epochs=epochs,
        head_accuracy=mean(right(head, classes, weights)),
        tuned_accuracy=mean(right(tuned, classes, weights)),
        head_log_loss=mean(losses(head, classes, weights)),
        tuned_log_loss=mean(losses(tuned, classes, weights)),
        decided_by=decided_by,
        ships="fine-tuned" if ships else "head",
        folds=folds,
    )


def mean(values: np.ndarray) -> float:
    return round(float(values.mean()), 9)


def paired(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean of paired differences (n,) and its standard error; that of a single one is infinite.

    A single photo's difference in accuracy is exactly one standard error.
    """
    count = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else np.inf
    return float(differences.mean()), error + 1e-9
