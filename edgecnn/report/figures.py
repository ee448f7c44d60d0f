"""The report's figures as frozen dataclasses, and a run's epochs, read from `history.csv`.

`report.json` is the figures' JSON, and the page shows nothing else.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from edgecnn.evaluate.statistics import BINS, bins_of
from edgecnn.files import csv_rows
from edgecnn.run_info import NetworkChoice
from edgecnn.runs import HISTORY, Run
from edgecnn.stress.stress_report import StressReport
from edgecnn.tables import Fraction, Struct, described
from edgecnn.verify.against import Against
from edgecnn.verify.layers import LayerErrors
from edgecnn.verify.parity_report import PairedFigures, Report
from edgecnn.verify.predictions import GALLERY, Predictions, gallery

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
    return tuple(
        Epoch(
            phase=row["phase"],
            epoch=int(row["epoch"]),
            **{name: float(row[name]) if row[name] else None for name in NUMBERS},  # type: ignore[arg-type]
        )
        for row in csv_rows(run.read(HISTORY, "train"))
    )


CONFUSED = 20
"""Most pairs of confused classes that are listed."""

COVERAGE = tuple(index / 50 for index in range(50))


class Missing(Struct):
    """A part of the report for which the run has no figures."""

    part: str
    why: str
    command: str


class Confused(Struct):
    """How many images of class `true` were classified as `answer`."""

    true: str
    answer: str
    images: int


class Confusion(Struct):
    """One model's confusion matrix: (true class, answered class, images) for each non-empty cell, and the most frequent mistakes."""

    model: str
    cells: tuple[tuple[int, int, int], ...]
    most_confused: tuple[Confused, ...]


class Bin(Struct):
    """The images whose best score is in (low, high]: their number, mean score and accuracy."""

    low: float
    high: float
    images: int
    score: float
    accuracy: float


class Reliability(Struct):
    """How often scores are right: one model's non-empty bins. Its logits were divided by `temperature`."""

    model: str
    temperature: float
    bins: tuple[Bin, ...]


class Coverage(Struct):
    """The effect of a threshold: the fraction of images answered, and their error; None if none are answered."""

    threshold: float
    share_answered: float
    error: float | None


class Answered(Struct):
    """A test image with both models' answers and scores. `index` is its position in the test split."""

    index: int
    source: str
    true: str
    float_answer: str
    float_score: float
    int8_answer: str
    int8_score: float


class Origin(Struct):
    """What the model is and what it was made from."""

    network: str
    parameters: int | None
    input: str
    labels: tuple[str, ...]
    data: str
    fingerprint: str
    training_images: int | None
    validation_images: int | None
    seconds: float | None
    imported: str | None
    tuning: str | None = described("The verdict between head and fine-tuned model; null if there was none.")
    recipe: str


class AnswerFigures(Struct):
    """Figures drawn from `Predictions`."""

    confusion: tuple[Confusion, ...]
    reliability: tuple[Reliability, ...]
    coverage: tuple[Coverage, ...]
    flips: tuple[Answered, ...]
    flips_in_all: int | None
    mistakes: tuple[Answered, ...]
    mistakes_in_all: int | None


NO_ANSWERS = AnswerFigures(
    confusion=(), reliability=(), coverage=(), flips=(), flips_in_all=None, mistakes=(), mistakes_in_all=None
)


class RunFigures(AnswerFigures):
    """One run or bundle in the report. Parts without figures are empty and listed in `missing`.

    `summary` says in sentences whether the model is good. `int8` names the int8 export whose answers the confusion matrix, galleries and
    coverage show: the first available. `choice` is how the network was chosen, None if it was given, and `against` is the
    comparison with the model it would replace.
    """

    name: str
    kind: str
    summary: tuple[str, ...]
    verdict: str
    passed: bool | None
    warnings: tuple[str, ...]
    origin: Origin
    choice: NetworkChoice | None
    parity: Report | None
    against: Against | None
    int8: str | None
    epochs: tuple[Epoch, ...]
    layers: LayerErrors | None
    stress: StressReport | None
    missing: tuple[Missing, ...]


class Pair(PairedFigures):
    """Two runs' int8 models on the photos that both have answers for, with the first as the reference."""

    mcnemar_p: Fraction = described("McNemar's exact test, two-sided.")


class PageFigures(Struct):
    """The report: one run, or several side by side, with the first compared with each other one, or warnings if that is impossible."""

    schema: Literal["edgecnn.report/1"]
    pairs: tuple[Pair, ...] = ()
    warnings: tuple[str, ...] = ()
    runs: tuple[RunFigures, ...]


def confusion(model: str, true: np.ndarray, answers: np.ndarray, labels: Sequence[str]) -> Confusion:
    """Return a model's confusion matrix from the true and the answered classes, int arrays (n,)."""
    pairs, counts = np.unique(np.stack([true, answers], axis=1), axis=0, return_counts=True)
    cells = tuple((int(a), int(b), int(count)) for (a, b), count in zip(pairs, counts, strict=True))
    mistakes = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[0], cell[1]))
    return Confusion(
        model=model,
        cells=cells,
        most_confused=tuple(
            Confused(true=labels[a], answer=labels[b], images=count) for a, b, count in mistakes[:CONFUSED]
        ),
    )


def reliability(model: str, temperature: float, scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Return how often the best scores, float32 (n,), are right, in the bins of `scores.expected_calibration_error`."""
    index = bins_of(scores, bins)
    return Reliability(
        model=model,
        temperature=temperature,
        bins=tuple(
            Bin(
                low=number / bins,
                high=(number + 1) / bins,
                images=int(inside.sum()),
                score=float(scores[inside].mean(dtype=np.float64)),
                accuracy=float(right[inside].mean()),
            )
            for number in range(bins)
            if (inside := index == number).any()
        ),
    )


def coverage(scores: np.ndarray, right: np.ndarray) -> tuple[Coverage, ...]:
    """Return the effect of each threshold of COVERAGE. `scores` and `right` are as in `reliability`."""
    points = []
    exact = scores.astype(np.float64)  # compared like in `runtime.decision.decide`
    for threshold in COVERAGE:
        answered = exact >= threshold
        error = float(1 - right[answered].mean()) if answered.any() else None
        points.append(Coverage(threshold=threshold, share_answered=float(answered.mean()), error=error))
    return tuple(points)


def answer_figures(
    predictions: Predictions, int8: str, temperature: float | None, labels: Sequence[str]
) -> AnswerFigures:
    """Return the figures of a run's float model and an int8 export from its predictions; `temperature` is the bundle's, or None."""
    true = predictions.true
    one, other = predictions.answers["float"], predictions.answers[int8]
    right = other == true

    def pictured(index: int) -> Answered:
        return Answered(
            index=index,
            source=predictions.sources[index],
            true=labels[true[index]],
            float_answer=labels[one[index]],
            float_score=round(float(predictions.scores["float"][index]), 4),
            int8_answer=labels[other[index]],
            int8_score=round(float(predictions.scores[int8][index]), 4),
        )

    flips, mistakes = gallery(true, one, other, predictions.scores[int8])
    scores = predictions.scores[int8]
    reliabilities = [
        reliability("float", 1.0, predictions.scores["float"], one == true),
        reliability(int8, 1.0, scores, right),
    ]
    if temperature is not None and len(predictions.tempered):
        scores = predictions.tempered
        if temperature != 1:
            reliabilities.append(reliability(int8, temperature, scores, right))
    return AnswerFigures(
        confusion=(confusion("float", true, one, labels), confusion(int8, true, other, labels)),
        reliability=tuple(reliabilities),
        coverage=coverage(scores, right),
        flips=tuple(pictured(int(index)) for index in flips[:GALLERY]),
        flips_in_all=len(flips),
        mistakes=tuple(pictured(int(index)) for index in mistakes[:GALLERY]),
        mistakes_in_all=len(mistakes),
    )
