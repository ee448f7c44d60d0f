"""Temperature, calibration error and thresholds: planted truths are recovered, and promises hold on simulated data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy", reason="the workstation side needs the train extra")

from scipy.stats import binom

from edgecnn.calibrate.temperature import TEMPERATURES, fit_temperature
from edgecnn.calibrate.threshold import THRESHOLDS, choose_threshold
from edgecnn.errors import ThresholdError
from edgecnn.evaluate.scores import answered_at, expected_calibration_error, nll
from edgecnn.runtime.decision import ABSTAIN, decide, softmax


def calibrated(n: int, seed: int, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth, and classes drawn from it."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2.0, size=(n, num_classes)).astype(np.float32)
    cumulated = np.cumsum(softmax(logits), axis=1)
    classes = (random.random((n, 1)) > cumulated).sum(axis=1).clip(max=num_classes - 1)
    return logits, classes


def test_nll_is_the_mean_log_of_the_true_class_score():
    logits, classes = calibrated(200, 0)
    expected = -np.mean(np.log(softmax(logits)[np.arange(200), classes]))
    assert nll(logits, classes) == pytest.approx(expected, rel=1e-5)
    assert nll(np.zeros((4, 10), np.float32), classes[:4]) == pytest.approx(np.log(10))
    assert nll(np.array([[1e4, 0.0]], np.float32), np.array([1])) == pytest.approx(1e4)


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
    logits, classes = calibrated(300, 3, num_classes=4)
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


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and whether they are right, with probability score²: an overconfident model."""
    random = np.random.default_rng(seed)
    scores = random.beta(5, 1, n).astype(np.float32)
    return scores, random.random(n) < scores.astype(np.float64) ** 2


def true_error(threshold: float) -> float:
    """The error of `drawn` among scores at or above a threshold: the density of a score s is 5 s⁴."""
    return 1 - (5 / 7) * (1 - threshold**7) / (1 - threshold**5)


def test_the_chosen_threshold_is_the_smallest_whose_bound_is_at_most_the_target():
    scores, right = drawn(3000, 5)
    choice = choose_threshold(scores, right, 0.2)
    assert choice.tried == len(THRESHOLDS) == 100

    def proved(threshold: float) -> bool:
        """The bound without its formula: at an error of 20 %, this few errors would be rarer than 0.05 / 100."""
        answered = scores >= threshold
        return bool(binom.cdf((answered & ~right).sum(), answered.sum(), 0.2) <= 0.05 / 100)

    assert choice.threshold == next(threshold for threshold in THRESHOLDS if proved(threshold))
    assert choice.threshold > 0
    assert binom.cdf(choice.errors, choice.answered, choice.bound) == pytest.approx(0.05 / 100)
    assert choice.errors / choice.answered < choice.bound <= choice.target_error == 0.2
    assert choice.share_answered == np.mean(scores >= choice.threshold)


def test_the_promise_holds_on_simulated_data():
    """At most 5 % of 100 validation sets may lead to a threshold whose true error is above the target."""
    chosen = [choose_threshold(*drawn(2000, seed), 0.2).threshold for seed in range(100)]
    assert sum(true_error(threshold) > 0.2 for threshold in chosen) <= 5
    assert true_error(float(np.median(chosen))) > 0.15, "the promise holds only because hardly anything is answered"


def test_the_promise_holds_where_an_uncorrected_choice_would_break_it():
    """Uninformative scores, with a true error of 12 % everywhere and a target of 10 %: some threshold may look good by luck."""
    broken = uncorrected = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        scores, right = random.random(600), random.random(600) >= 0.12
        try:
            choose_threshold(scores, right, 0.10)
            broken += 1
        except ThresholdError:
            pass
        answered = scores >= np.array(THRESHOLDS)[:, None]
        errors = (answered & ~right).sum(axis=1)
        uncorrected += bool(np.any(binom.cdf(errors, answered.sum(axis=1), 0.10) <= 0.05))
    assert broken <= 5 < uncorrected


def test_if_no_threshold_qualifies_the_error_names_what_is_missing():
    right = np.ones(100, bool)
    with pytest.raises(
        ThresholdError, match=r"answers 100 of 100 images with 0 errors(.|\n)*149 answered images"
    ) as failure:
        choose_threshold(np.ones(100, np.float32), right, 0.05)
    assert failure.value.exit_code == 23
    assert isinstance(failure.value, ValueError)
    assert str(failure.value).count("\n") <= 2
    scores = np.repeat([0.2, 0.61, 0.9], [40, 50, 10]).astype(np.float32)  # the wrong answers are the unsure ones
    with pytest.raises(ThresholdError, match=r"closest, 0\.\d+, answers 60 of 100 images with 0 errors"):
        choose_threshold(scores, scores > 0.5, 0.02)
    choice = choose_threshold(np.ones(149, np.float32), np.ones(149, bool), 0.05)
    assert (choice.threshold, choice.share_answered, choice.errors) == (0.0, 1.0, 0)


def test_a_target_that_is_not_a_share_is_refused():
    with pytest.raises(ValueError, match="received 5"):
        choose_threshold(np.ones(2), np.ones(2, bool), 5)
