"""The quality of scores, checked against a hand count of five images in three classes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecnn.evaluate.answers import Answers
from edgecnn.evaluate.statistics import (
    SUM_TOLERANCE,
    answered_at,
    expected_calibration_error,
    is_scores,
    nll,
    score_figures,
)
from edgecnn.runtime.decision import ABSTAIN, decide, softmax

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


def drawn(count, classes):
    random = np.random.default_rng(count)
    return random.normal(scale=2.0, size=(count, classes)).astype(np.float32), random.integers(0, classes, count)


def test_nll_is_the_mean_log_of_the_true_class_score():
    logits, classes = drawn(200, 10)
    expected = -np.mean(np.log(softmax(logits)[np.arange(200), classes]))
    assert nll(logits, classes) == pytest.approx(expected, rel=1e-5)
    assert nll(np.zeros((4, 10), np.float32), classes[:4]) == pytest.approx(np.log(10))
    assert nll(np.array([[1e4, 0.0]], np.float32), np.array([1])) == pytest.approx(1e4)


def ece_by_loop(scores, classes, bins):
    """The definition, bin by bin."""
    score, right = scores.max(axis=1), scores.argmax(axis=1) == classes
    total = 0.0
    for index in range(bins):
        inside = (score > index / bins) & (score <= (index + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - score[inside].mean())
    return total


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 80))
def test_the_calibration_error_equals_its_definition(seed, bins, n):
    random = np.random.default_rng(seed)
    scores = softmax(random.normal(scale=3, size=(n, 4)))
    classes = random.integers(0, 4, n)
    assert expected_calibration_error(scores, classes, bins) == pytest.approx(
        ece_by_loop(scores, classes, bins), abs=1e-12
    )


def test_a_score_at_the_edge_of_a_bin_belongs_to_the_bin_below():
    """In (0, 0.5] a score of 0.5 is right, and in (0.5, 1] one of 0.75 is wrong. They do not cancel out."""
    scores = np.array([[0.5, 0.3, 0.2], [0.75, 0.15, 0.1]])
    assert expected_calibration_error(scores, np.array([0, 1]), 2) == pytest.approx((0.5 + 0.75) / 2)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0]), 2) == 0, "1 is in the last bin"


def test_the_calibration_error_of_known_scores():
    certain = np.tile(np.array([[1.0, 0.0]], np.float32), (10, 1))
    assert expected_calibration_error(certain, np.zeros(10, int)) == 0
    assert expected_calibration_error(certain, np.ones(10, int)) == 1
    assert expected_calibration_error(certain, np.array([0] * 7 + [1] * 3)) == pytest.approx(0.3)


def test_an_image_is_answered_exactly_when_the_classifier_answers():
    logits, classes = drawn(300, 4)
    scores = softmax(logits)
    top, right = scores.max(axis=1), scores.argmax(axis=1) == classes
    for threshold in (0.0, 0.5, 0.9, float(top[17]), 1.0):
        decisions = [decide(row, "abcd", threshold=threshold).decision for row in scores]
        answered = np.array([decision != ABSTAIN for decision in decisions])
        result = answered_at(top, right, threshold)
        assert result.answered == answered.sum()
        assert result.errors == (answered & ~right).sum()
        assert result.share_answered == answered.mean()
        assert result.error == (result.errors / result.answered if result.answered else None)
