"""What a bundle says of its confidences: temperature and threshold, chosen on validation images and nothing else."""

from dataclasses import asdict
from typing import Any

import numpy as np

from edgecnn.data import Dataset
from edgecnn.runs import Run
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.verify.answers import Progress, in_chunks, input_contract
from edgecnn.verify.calibration import (
    answered_at,
    choose_threshold,
    expected_calibration_error,
    fit_temperature,
    nll,
)


def confidence_figures(
    logits: np.ndarray, classes: np.ndarray, temperature: float, threshold: float
) -> dict[str, float | int | None]:
    """Return what a temperature and a threshold are worth on images, such as the test split's.

    Args:
        logits: float32, shape (n, num_classes), n at least 1.
        classes: int array, shape (n,), the true classes.
        temperature: by which the runtime divides logits, greater than 0.
        threshold: below which it abstains, in [0, 1].

    Returns:
        A JSON object: `nll` and `calibration_error` before (temperature 1) and `_after`, and the fields of
        `calibration.Selective`: threshold, n, answered, errors, share_answered, error.
    """
    before, after = softmax(logits), softmax(logits / np.float32(temperature))
    right = np.argmax(logits, axis=1) == classes
    return {
        "nll": nll(logits, classes),
        "nll_after": nll(logits, classes, temperature),
        "calibration_error": expected_calibration_error(before, classes),
        "calibration_error_after": expected_calibration_error(after, classes),
        **asdict(answered_at(after.max(axis=1), right, threshold)),
    }


def fit_confidence(logits: np.ndarray, classes: np.ndarray, target_error: float | None = None) -> dict[str, Any]:
    """Choose a temperature and, for a target error, a threshold.

    Args:
        logits: float32, shape (n, num_classes), of validation images, n at least 1.
        classes: int array, shape (n,), the true classes.
        target_error: largest error among answered images, in (0, 1); None for no threshold.

    Returns:
        A JSON object: `temperature`, `threshold`, `choice` (`calibration.Choice`'s fields; None without a target) and
        `validation`, the figures there. Without an error on validation the data set no temperature, and it is 1.

    Raises:
        ThresholdError: if no threshold keeps the target.
    """
    right = np.argmax(logits, axis=1) == classes
    temperature = 1.0 if right.all() else fit_temperature(logits, classes)
    threshold, choice = 0.0, None
    if target_error is not None:
        scores = softmax(logits / np.float32(temperature)).max(axis=1)
        chosen = choose_threshold(scores, right, target_error)
        threshold, choice = chosen.threshold, asdict(chosen)
    return {
        "temperature": temperature,
        "threshold": threshold,
        "choice": choice,
        "validation": confidence_figures(logits, classes, temperature, threshold),
    }


def validation_logits(
    run: Run, dataset: Dataset, model: bytes, format_: str, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Run an exported model over the validation split, by the engine that a device would use.

    Returns:
        Logits, float32 (n, num_classes), and the true classes (n,).

    Raises:
        RunError: if the data have changed since the run began.
    """
    advice = "Bundle on the same data, or train again."
    run.require_split("validation", dataset.hashes["validation"], dataset.name, advice)
    split = dataset.load(("validation",), **run.info["input"], stage="bundle", progress=progress)["validation"]
    opened = Model(open_engine(None, model, format_, num_threads=1), input_contract(run))
    return in_chunks(opened.logits, split.images, "validation", progress), split.classes
