"""Each model's answer to each test image: `predictions.npz`, from which the report draws its figures without running a model again."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgecnn.data import Split
from edgecnn.files import write_atomic
from edgecnn.runs import PREDICTIONS, Run
from edgecnn.runtime.decision import softmax
from edgecnn.verify.answers import Answers

TRUE, SOURCES, TEMPERED = "true", "sources", "tempered"
ANSWER, SCORE = "answer/", "score/"
"""Names of the arrays in the file; a model's begin with one of the last two."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The answers of models to n test images.

    Attributes:
        true: int32, shape (n,): the true classes.
        sources: the images' names, n of them.
        answers: for each model by name, int32, shape (n,): the class of the best score.
        scores: for each model, float32, shape (n,): that score, in [0, 1], without a temperature.
        tempered: float32, shape (n,): the best score at the bundle's temperature, of the model that it was chosen with; empty without one.
    """

    true: np.ndarray
    sources: Sequence[str]
    answers: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    tempered: np.ndarray


def write_predictions(
    run: Run, split: Split, answers: Sequence[Answers], tempered: tuple[Answers, float] | None
) -> None:
    """Write a run's `predictions.npz`.

    Args:
        run: the run.
        split: the test images.
        answers: the models'.
        tempered: the answers that a temperature was chosen with, and the temperature; None without one.

    Raises:
        OutputError: if it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {TRUE: split.classes.astype(np.int32), SOURCES: np.array(split.sources, np.str_)}
    for item in answers:
        arrays[ANSWER + item.name] = np.argmax(item.values, axis=1).astype(np.int32)
        arrays[SCORE + item.name] = item.scores.max(axis=1)
    if tempered:
        model, temperature = tempered
        arrays[TEMPERED] = softmax(model.values / np.float32(temperature)).max(axis=1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(run.file(PREDICTIONS), buffer.getvalue())


def read_predictions(run: Run) -> Predictions | None:
    """Return the content of a run's `predictions.npz`; None if there is none, or it cannot be used."""
    try:
        with np.load(run.file(PREDICTIONS), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return Predictions(
            true=arrays[TRUE],
            sources=arrays[SOURCES].tolist(),
            answers={name.removeprefix(ANSWER): value for name, value in arrays.items() if name.startswith(ANSWER)},
            scores={name.removeprefix(SCORE): value for name, value in arrays.items() if name.startswith(SCORE)},
            tempered=arrays.get(TEMPERED, np.empty(0, np.float32)),
        )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
