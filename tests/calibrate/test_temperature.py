"""A planted temperature is recovered."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the workstation side needs the train extra")

from edgecnn.calibrate.temperature import TEMPERATURES, fit_temperature
from edgecnn.evaluate.scores import expected_calibration_error, nll
from edgecnn.runtime.decision import softmax


def calibrated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth, and classes drawn from it."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2.0, size=(n, 10)).astype(np.float32)
    cumulated = np.cumsum(softmax(logits), axis=1)
    classes = (random.random((n, 1)) > cumulated).sum(axis=1).clip(max=9)
    return logits, classes


@pytest.mark.parametrize("planted", [0.3, 1.0, 2.5, 8.0])
def test_a_planted_temperature_is_recovered(planted):
    logits, classes = calibrated(20_000, 1)
    found = fit_temperature(logits * np.float32(planted), classes)
    assert found == pytest.approx(planted, rel=0.03)
    assert nll(logits * planted, classes, found) <= min(
        nll(logits * planted, classes, found * factor) for factor in (0.98, 1.0, 1.02)
    )


def test_the_temperature_removes_calibration_error_and_changes_no_answer():
    logits, classes = calibrated(20_000, 2)
    sure = logits * np.float32(3)
    before = expected_calibration_error(softmax(sure), classes)
    mended = softmax(sure / np.float32(fit_temperature(sure, classes)))
    assert before > 0.1
    assert expected_calibration_error(mended, classes) < 0.015
    assert np.array_equal(mended.argmax(axis=1), sure.argmax(axis=1))


def test_a_temperature_that_the_data_do_not_bound_stays_within_its_limits():
    perfect = np.eye(3, dtype=np.float32)
    assert fit_temperature(perfect, np.array([0, 1, 2])) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(perfect, np.array([1, 2, 0])) == pytest.approx(TEMPERATURES[1], rel=1e-3)
