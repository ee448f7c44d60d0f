"""Thresholds: promises hold on simulated data."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the workstation side needs the train extra")

from scipy.stats import binom

from edgecnn.calibrate.threshold import THRESHOLDS, choose_threshold
from edgecnn.errors import ThresholdError


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
    assert choice.tried == len(THRESHOLDS) == 100 and (THRESHOLDS[0], THRESHOLDS[61], THRESHOLDS[-1]) == (0, 0.61, 0.99)

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
