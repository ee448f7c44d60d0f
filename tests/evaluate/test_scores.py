"""The quality of scores, checked against a hand count of five images in three classes."""

import numpy as np
import pytest

from edgecnn.evaluate.answers import Answers
from edgecnn.evaluate.scores import SUM_TOLERANCE, answered_at, is_scores, score_figures

SCORES = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]], np.float32)
CLASSES = np.array([0, 1, 1, 2, 2])


def answers(values, unit):
    return Answers(
        name="m", format="onnx", precision="float32", engine="none", size_bytes=1, sha256="", values=values, unit=unit
    )


def test_scores_are_a_softmax_of_logits_and_given_scores_stay():
    assert np.allclose(answers(np.log(SCORES) + 7, "logit").scores, SCORES, atol=1e-6)
    assert answers(SCORES, "score").scores is SCORES


def test_the_effect_of_a_threshold_and_a_temperature():
    """The second and the last image are wrong. A temperature of 0.5 squares the scores and normalises each row to a sum of 1."""
    found = score_figures(np.log(SCORES), CLASSES, 0.5, 0.75)
    squared = SCORES**2 / (SCORES**2).sum(axis=1, keepdims=True)
    assert squared.max(axis=1) == pytest.approx([0.7826, 0.5952, 0.9074, 0.9697, 0.9939], abs=1e-4)
    assert (found.n, found.answered, found.errors, found.threshold) == (5, 4, 1, 0.75)
    assert (found.share_answered, found.error) == (0.8, 0.25)
    assert found.nll == pytest.approx(-np.log([0.6, 0.4, 0.7, 0.8, 0.05]).mean(), abs=1e-6)
    assert found.nll_after == pytest.approx(-np.log(squared[range(5), CLASSES]).mean(), abs=1e-6)
    # each image is alone in its bin, so the error is the mean distance of the scores from 1 or from 0
    assert found.calibration_error == pytest.approx((0.4 + 0.5 + 0.3 + 0.2 + 0.9) / 5, abs=1e-6)


def test_a_score_at_the_threshold_is_answered():
    scores, right = np.array([0.25, 0.5, 0.75], np.float32), np.array([True, False, True])
    found = answered_at(scores, right, 0.5)
    assert (found.answered, found.errors, found.error) == (2, 1, 0.5)
    assert answered_at(scores, right, 0.8).error is None


def test_outputs_are_scores_if_each_row_is_one():
    assert is_scores(SCORES, 0.0)
    for row in ([0.7, 0.2, 0.2], [0.2, 0.2, 0.2], [1.5, -0.3, -0.2], [3.0, 2.0, 1.0]):
        assert not is_scores(np.vstack([SCORES, row]), 0.0)
    apart = np.array([[0.5, 0.25, 0.25 + 2 * SUM_TOLERANCE]])
    assert not is_scores(apart, 0.0) and is_scores(apart, 1 / 256), "half a code off each"
