"""The gate of old against new: what it refuses, what it passes, and how many photos it needs."""

import numpy as np
import pytest

from edgecnn.evaluate.statistics import images_to_clear, images_to_refuse
from edgecnn.verify.against import judge


@pytest.mark.parametrize(
    ("lost", "gained", "n", "verdict"),
    [
        (20, 20, 2_000, "passed"),
        (20, 60, 2_000, "passed"),
        (52, 20, 2_000, "refused"),  # 1.6 points
        (29, 10, 2_000, "refused"),  # 0.95 points, which is not chance
        (5, 5, 300, "not shown"),
        (0, 0, 100, "not shown"),
        (0, 0, 0, "not shown"),
        (120, 6, 300, "refused"),  # few photos, but enough proof
    ],
)
def test_the_verdict_follows_the_estimate_the_interval_and_the_number_of_photos(lost, gained, n, verdict):
    made = judge(lost, gained, n, False)
    assert made.verdict == verdict
    assert (made.needed > n) == (verdict == "not shown") or verdict == "refused"


def test_answers_from_folds_count_half():
    """Twice as many photos are needed, and the interval is wider: 60 lost and 38 gained in 5,000 may then be chance."""
    assert judge(20, 20, 1_200, False).verdict == "passed"
    half = judge(20, 20, 1_200, False, worth=0.5)
    assert half.verdict == "not shown" and half.needed >= 2 * judge(20, 20, 1_200, False).needed
    assert [judge(60, 38, 5_000, False, worth).verdict for worth in (1.0, 0.5)] == ["refused", "passed"]


def test_confident_requires_an_interval_below_the_margin():
    assert judge(20, 20, 2_000, True).verdict == "passed"
    doubtful = judge(40, 25, 2_000, True)
    assert doubtful.verdict == "not shown" and doubtful.needed > 2_000
    assert judge(40, 25, 2_000, False).verdict == "passed"


@pytest.mark.parametrize("rate", [0.02, pytest.param(0.05, marks=pytest.mark.slow), 0.10])
def test_with_the_stated_number_of_photos_a_worse_model_is_refused_and_an_equal_one_is_not(rate):
    """1,000 of the draws of which tools/bench/gate_draws.py makes 4,000."""
    random, share = np.random.default_rng(7), {}
    for worse in (0.0, 0.03):
        shares = [rate / 2 + worse, rate / 2, 1 - rate - worse]
        found = []
        for counts in random.multinomial(300, shares, 1_000):
            made = judge(*counts.tolist()[:2], 300, False)
            if made.verdict == "not shown":
                counts = counts + random.multinomial(made.needed - 300, shares)
                made = judge(*counts.tolist()[:2], made.needed, False)
            found.append(made.verdict)
        share[worse] = found.count("refused") / len(found)
    assert share[0.03] >= 0.95 and share[0.0] <= 0.10


def test_the_photos_needed_follow_the_formula_with_the_drawn_share():
    n = images_to_refuse(0.05, 3.0, 1.5)
    drops = np.random.default_rng(3).multinomial(n, [0.055, 0.025, 0.92], 20_000) @ [1, -1, 0] * 100 / n
    assert np.mean(drops > 1.5) == pytest.approx(0.95, abs=0.01)
    n = images_to_clear(0.05, 1.5)
    drops = np.random.default_rng(3).multinomial(n, [0.025, 0.025, 0.95], 20_000) @ [1, -1, 0] * 100 / n
    assert np.mean(drops + 1.96 * 100 * np.sqrt(0.05 / n) < 1.5) == pytest.approx(0.95, abs=0.01)
