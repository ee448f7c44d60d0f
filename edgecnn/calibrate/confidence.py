"""A bundle's temperature and threshold, chosen from the answers to validation images."""

import numpy as np

from edgecnn.calibrate.temperature import FEWEST, fit_temperature
from edgecnn.calibrate.threshold import Choice, choose_threshold
from edgecnn.evaluate.scores import ScoreFigures, score_figures
from edgecnn.runtime.decision import softmax
from edgecnn.tables import Struct


class ChosenConfidence(Struct):
    """A temperature and a threshold, with their figures on the validation images used to choose them: `confidence.json`.

    `not_fitted` explains why the temperature is 1: there were fewer than FEWEST images, or no errors among them. It is None if the
    temperature was fitted. `choice` is None without a target error. `model` is the file in a bundle whose answers were used.
    """

    temperature: float
    not_fitted: str | None
    threshold: float
    choice: Choice | None
    validation: ScoreFigures
    model: str = ""
    model_sha256: str = ""
    validation_sha256: str = ""


def fit_confidence(logits: np.ndarray, classes: np.ndarray, target_error: float | None = None) -> ChosenConfidence:
    """Choose a temperature from logits, float32 (n, num_classes), and a threshold for any target error in (0, 1), or ThresholdError."""
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
