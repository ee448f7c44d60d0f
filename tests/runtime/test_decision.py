"""From logits to labels."""

import numpy as np
import pytest

from edgecnn.runtime.decision import ABSTAIN, decide, softmax

LABELS = ("cat", "dog", "bird")


def test_softmax():
    logits = np.log(np.array([[1, 2, 5], [4, 4, 2]], np.float32))
    scores = softmax(logits)
    assert scores.dtype == np.float32
    assert np.allclose(scores, [[0.125, 0.25, 0.625], [0.4, 0.4, 0.2]], atol=1e-6)


def test_softmax_of_extremes():
    assert np.allclose(softmax(np.array([1e4, -1e4, 1e4], np.float32)), [0.5, 0, 0.5])
    assert np.allclose(softmax(np.full(4, -1e30, np.float32)), 0.25)


def test_best_first():
    top, decision = decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, top_k=2)
    assert [(item.label, item.index) for item in top] == [("dog", 1), ("bird", 2)]
    assert top[0].score == pytest.approx(0.5) and type(top[0].score) is float
    assert decision == "dog"


def test_of_equals_the_first():
    top, _ = decide(np.array([0.3, 0.4, 0.4], np.float32), LABELS)
    assert [item.index for item in top] == [1, 2, 0]


def test_more_than_there_are():
    assert len(decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, top_k=99).top) == 3


@pytest.mark.parametrize(("threshold", "decision"), [(0.5, "dog"), (0.51, ABSTAIN), (1.0, ABSTAIN), (0.0, "dog")])
def test_threshold(threshold, decision):
    result = decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, threshold=threshold)
    assert result.decision == decision
    assert bool(result.top) == (decision != ABSTAIN)


def test_scores_that_are_not_numbers_abstain():
    assert decide(np.full(3, np.nan, np.float32), LABELS).decision == ABSTAIN


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"threshold": 1.5}, {"threshold": -0.1}, {"threshold": float("nan")}])
def test_out_of_range(wrong):
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, **wrong)
