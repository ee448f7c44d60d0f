"""What a bundle states about its scores: temperature and threshold, chosen on validation images and nothing else."""

from dataclasses import dataclass, replace

import numpy as np

from edgecnn.calibrate.temperature import FEWEST, expected_calibration_error, fit_temperature, nll
from edgecnn.calibrate.threshold import Choice, answered_at, choose_threshold
from edgecnn.data import Dataset
from edgecnn.data.known import require_split
from edgecnn.evaluate.answers import Answers, Progress, in_chunks, input_contract
from edgecnn.export import export_path
from edgecnn.files import canonical_json, sha256, write_atomic
from edgecnn.runs import CONFIDENCE, Run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.tables import to_json
from edgecnn.verify.parity_report import Confidence, ScoreFigures


@dataclass(frozen=True, kw_only=True)
class ChosenConfidence:
    """A temperature and a threshold, and what they are worth on the validation images that they were chosen on: `confidence.json`.

    `not_fitted` says why the temperature is 1: fewer than FEWEST images, or no error among them, so that the data set none; None where
    it was fitted. `choice` is None without a target error. `model` is the file in a bundle with whose answers they were chosen.
    """

    temperature: float
    not_fitted: str | None
    threshold: float
    choice: Choice | None
    validation: ScoreFigures
    model: str = ""
    model_sha256: str = ""
    validation_sha256: str = ""


def score_figures(logits: np.ndarray, classes: np.ndarray, temperature: float, threshold: float) -> ScoreFigures:
    """Return what a temperature and a threshold are worth on images, such as the test split's.

    Args:
        logits: float32, shape (n, num_classes), n at least 1.
        classes: int array, shape (n,), the true classes.
        temperature: by which the runtime divides logits, greater than 0.
        threshold: below which it abstains, in [0, 1].

    Returns:
        `nll` and `calibration_error` before (temperature 1) and `_after`, and what `threshold.answered_at` returns.
    """
    before, after = softmax(logits), softmax(logits / np.float32(temperature))
    right = np.argmax(logits, axis=1) == classes
    return ScoreFigures(
        nll=nll(logits, classes),
        nll_after=nll(logits, classes, temperature),
        calibration_error=expected_calibration_error(before, classes),
        calibration_error_after=expected_calibration_error(after, classes),
        **vars(answered_at(after.max(axis=1), right, threshold)),
    )


def tested_confidence(chosen: ChosenConfidence, answers: Answers, classes: np.ndarray) -> Confidence:
    """Return what a chosen temperature and threshold are worth on the test split, by the answers of the model they were chosen with."""
    figures = score_figures(answers.values, classes, chosen.temperature, chosen.threshold)
    return Confidence(
        **vars(figures),
        model=answers.name,
        temperature=chosen.temperature,
        not_fitted=chosen.not_fitted,
        choice=chosen.choice,
    )


def fit_confidence(logits: np.ndarray, classes: np.ndarray, target_error: float | None = None) -> ChosenConfidence:
    """Choose a temperature and, for a target error, a threshold.

    Args:
        logits: float32, shape (n, num_classes), of validation images, n at least 1.
        classes: int array, shape (n,), the true classes.
        target_error: largest error among answered images, in (0, 1); None for no threshold.

    Raises:
        ThresholdError: if no threshold keeps the target.
    """
    right = np.argmax(logits, axis=1) == classes
    not_fitted = None
    if len(classes) < FEWEST:
        not_fitted = f"{len(classes)} validation images, at least {FEWEST} are needed"
    elif right.all():
        not_fitted = "no error on validation images"
    temperature = 1.0 if not_fitted else fit_temperature(logits, classes)
    choice = None
    if target_error is not None:
        scores = softmax(logits / np.float32(temperature)).max(axis=1)
        choice = choose_threshold(scores, right, target_error)
    threshold = choice.threshold if choice else 0.0
    return ChosenConfidence(
        temperature=temperature,
        not_fitted=not_fitted,
        threshold=threshold,
        choice=choice,
        validation=score_figures(logits, classes, temperature, threshold),
    )


def validation_logits(
    run: Run, dataset: Dataset, model: bytes, format_: str, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Run an exported model over the validation split, by the engine that a device would use.

    Returns:
        Logits, float32 (n, num_classes), and the true classes (n,).

    Raises:
        RunError: if the data have changed since the run began.
    """
    require_split(run, dataset, "validation")
    split = dataset.load(("validation",), **vars(run.info.input), stage="verify", progress=progress)["validation"]
    opened = Model(open_engine(None, model, format_, num_threads=1), input_contract(run))
    return in_chunks(opened.logits, split.images, "validation", progress), split.classes


def choose_confidence(
    run: Run, dataset: Dataset, format_: str, precision: str, target_error: float | None, progress: Progress
) -> ChosenConfidence:
    """Choose a run's temperature and threshold on validation images and write `confidence.json`.

    Nothing is done where the file holds the choice for this model, these images and this target.

    Args:
        run: a trained run.
        dataset: the run's data.
        format_, precision: of the export to choose with.
        target_error: largest error among answered images, in (0, 1); None for no threshold.
        progress: called with the images done.

    Raises:
        ThresholdError: if no threshold keeps the target.
        RunError: if the data have changed since the run began.
    """
    model = export_path(run, format_, precision).read_bytes()
    file, model_sha256, validation_sha256 = f"models/{precision}.{format_}", sha256(model), dataset.hashes["validation"]
    stored = stored_confidence(run)
    if stored and (stored.model, stored.model_sha256, stored.validation_sha256) == (
        file,
        model_sha256,
        validation_sha256,
    ):
        target = stored.choice.target_error if stored.choice else None
        if target == target_error:
            return stored
    logits, classes = validation_logits(run, dataset, model, format_, progress)
    chosen = replace(
        fit_confidence(logits, classes, target_error),
        model=file,
        model_sha256=model_sha256,
        validation_sha256=validation_sha256,
    )
    write_atomic(run.file(CONFIDENCE), canonical_json(to_json(chosen)))
    return chosen


def stored_confidence(run: Run) -> ChosenConfidence | None:
    """Return the content of a run's `confidence.json`; None if the file is missing or cannot be used."""
    return run.stored(CONFIDENCE, ChosenConfidence)
