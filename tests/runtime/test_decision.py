"""From logits to labels."""

import numpy as np
import pytest

from edgecnn.runtime.decision import ABSTAIN, Smoother, decide, softmax

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
    top, decision, reason, lead = decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, top_k=2)
    assert [(item.label, item.index) for item in top] == [("dog", 1), ("bird", 2)]
    assert top[0].score == pytest.approx(0.5) and type(top[0].score) is float
    assert (decision, reason) == ("dog", None) and lead == pytest.approx(0.2)


def test_the_first_of_equal_scores_wins():
    top, *_ = decide(np.array([0.3, 0.4, 0.4], np.float32), LABELS)
    assert [item.index for item in top] == [1, 2, 0]


def test_the_first_of_many_equal_scores_wins():
    """An unstable sort may keep the order of a few scores by chance, but not of a thousand."""
    scores = np.array([0.1, 0.3, 0.2, 0.3], np.float32).repeat(250)
    labels = [f"class {index}" for index in range(1000)]
    top, decision, *_ = decide(scores, labels, top_k=1000)
    assert [item.index for item in top] == [*range(250, 500), *range(750, 1000), *range(500, 750), *range(250)]
    assert decision == "class 250"


def test_three_classes_by_default():
    assert len(decide(np.array([0.1, 0.2, 0.4, 0.3], np.float32), (*LABELS, "fox")).top) == 3


def test_top_k_above_the_number_of_classes():
    assert len(decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, top_k=99).top) == 3


@pytest.mark.parametrize(("threshold", "decision"), [(0.5, "dog"), (0.51, ABSTAIN), (1.0, ABSTAIN), (0.0, "dog")])
def test_threshold(threshold, decision):
    result = decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, threshold=threshold)
    assert result.decision == decision
    assert result.reason == (None if decision == "dog" else "below_threshold")
    assert [item.label for item in result.top] == ["dog", "bird", "cat"]


def test_a_score_at_the_threshold_is_enough_and_the_next_smaller_float_is_not():
    for threshold in (0.25, 0.5, 0.75):
        below = np.nextafter(np.float32(threshold), np.float32(0))
        for score, label in ((np.float32(threshold), "cat"), (below, ABSTAIN)):
            assert decide(np.array([score, 0, 0], np.float32), LABELS, threshold=threshold).decision == label
            assert decide(np.array([score, 0, 0], np.float32), LABELS, margin=threshold).decision == label


def test_scores_that_are_not_numbers_abstain():
    assert decide(np.full(3, np.nan, np.float32), LABELS) == ((), ABSTAIN, "no_score", 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"top_k": 0}, *({name: value} for name in ("threshold", "margin") for value in (1.5, -0.1, float("nan")))],
)
def test_out_of_range(wrong):
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, **wrong)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    ("scores", "threshold", "margin", "decision"),
    [
        ((0.5, 0.3), 0.5, 0.2, ("cat", None)),
        ((0.5, 0.3), 0.51, 0.2, (ABSTAIN, "below_threshold")),
        ((0.5, 0.375), 0.0, 0.126, (ABSTAIN, "below_margin")),
        ((0.5, 0.375), 0.0, 0.125, ("cat", None)),
        ((0.5, 0.5), 0.0, 0.0, ("cat", None)),
        ((1.0,), 1.0, 1.0, ("cat", None)),
    ],
)
def test_threshold_and_margin(scores, threshold, margin, decision, top_k):
    """The margin is to the second class, even if only one class is requested. An abstaining result keeps its classes."""
    result = decide(np.array(scores), LABELS, top_k, threshold, margin)
    assert (result.decision, result.reason) == decision
    assert [item.label for item in result.top] == list(LABELS[: min(top_k, len(scores))])


def states(smoother, decisions):
    """Return the state after each decision as its first letter, or - for no state."""
    return "".join((smoother.update(decision), (smoother.state or "-")[0])[1] for decision in decisions)


def test_each_frame_is_the_state_without_smoothing():
    assert states(Smoother(), "cdcc") == "cdcc"
    assert (Smoother().frames, Smoother().majority) == (1, False)


def test_a_thousand_frames_at_most():
    assert (Smoother.parse("1000").frames, Smoother.parse("majority:1000").frames) == (1000, 1000)


def test_in_a_row():
    assert states(Smoother.parse("3"), "ccdcccdcdddcc") == "-----cccccddd"


def test_majority():
    assert states(Smoother.parse("majority:5"), "ccdcddcdxxx") == "---ccdddddx"


def test_more_than_half():
    assert states(Smoother.parse("majority:4"), "ccddddcc") == "----dddd"
    assert states(Smoother.parse("majority:3"), "cdd") == "--d"
    assert states(Smoother.parse("majority:6"), "cccddd") == "------"


def test_update_returns_whether_the_state_changed():
    smoother = Smoother(2)
    assert [smoother.update(decision) for decision in "cccdd"] == [False, True, False, False, True]


def test_reset_forgets():
    smoother = Smoother(2)
    assert not smoother.reset()
    smoother.update("c")
    smoother.reset()
    assert not smoother.update("c") and smoother.state is None
    assert smoother.update("c") and smoother.reset() and smoother.state is None


@pytest.mark.parametrize(
    "text", ["0", "-1", "", "x", "2.5", "majority", "majority:", "majority:0", "most:3", ":3", "1001", "²"]
)
def test_invalid_smoothing(text):
    with pytest.raises(ValueError, match="expected"):
        Smoother.parse(text)
