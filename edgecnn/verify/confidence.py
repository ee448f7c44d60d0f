"""Test figures of a temperature and a threshold that were chosen on validation images."""

import numpy as np

from edgecnn.calibrate.confidence import ChosenConfidence
from edgecnn.evaluate.answers import Answers
from edgecnn.evaluate.scores import score_figures
from edgecnn.runs import CONFIDENCE, Run
from edgecnn.verify.parity_report import Confidence


def tested_confidence(chosen: ChosenConfidence, answers: Answers, classes: np.ndarray) -> Confidence:
    figures = score_figures(answers.values, classes, chosen.temperature, chosen.threshold)
    made = {name: getattr(chosen, name) for name in ("temperature", "not_fitted", "choice")}
    return Confidence(**vars(figures), **made, model=answers.name)


def stored_confidence(run: Run) -> ChosenConfidence | None:
    """Return the content of a run's `confidence.json`; None if the file is missing or unusable."""
    return run.stored(CONFIDENCE, ChosenConfidence)
