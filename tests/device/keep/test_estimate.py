"""Accuracy in the field: from the random sample only, with an interval that allows for correlated answers."""

import numpy as np
import pytest
from scipy.stats import t

from edgecnn.device.keep.estimate import Answer, field_accuracy, student
from edgecnn.evaluate.statistics import wilson


def answers(right, wrong, skipped=0, hours=1):
    """Answers for the random sample, spread evenly over a number of hours."""
    all_ = np.random.default_rng(0).permutation([True] * right + [False] * wrong + [None] * skipped).tolist()
    return [Answer(3600 * (index % hours) + index, right, "random") for index, right in enumerate(all_)]


def test_the_line_of_text():
    found = field_accuracy(answers(178, 34, 9, hours=221), planned=230, kept=221)
    assert (found.planned, found.kept, found.skipped, found.hours) == (230, 221, 9, 212)
    assert found.bounds == pytest.approx((178 / 221, 187 / 221))
    assert found.text == (
        "in the field 84.0 % right: 212 random pictures from 212 hours, 95 % interval 77 to 89 %; "
        "with the 9 skipped, between 80.5 and 84.6 %"
    )
    assert "skipped" not in field_accuracy(answers(9, 1, hours=10), 10, 10).text


def test_frames_kept_for_another_reason_do_not_count():
    sample = answers(80, 20, hours=100)
    unsure = [Answer(ts, False, why) for ts in range(99) for why in ("unsure", "stranger")]
    assert field_accuracy([*unsure, *sample], 100, 100) == field_accuracy(sample, 100, 100)
    assert field_accuracy(unsure, 100, 100) is None
    assert field_accuracy([Answer(0.0, None, "random")], 1, 1) is None, "skipped"


def test_independent_answers_have_almost_wilsons_interval():
    found = field_accuracy([Answer(3600.0 * i, i % 10 > 0, "random") for i in range(400)], 400, 400)
    low, high = wilson(360, 400)
    assert found.hours == 400 and (found.low, found.high) == pytest.approx((low, high), abs=5e-3)


def test_ten_pictures_of_one_scene_are_hardly_more_than_one():
    """40 hours, each with a scene that the model always classifies correctly, or always wrongly."""
    by_scene = [Answer(3600.0 * hour + i, hour % 4 > 0, "random") for hour in range(40) for i in range(10)]
    found = field_accuracy(by_scene, 400, 400)
    low, high = wilson(30, 40)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    one_hour = field_accuracy(by_scene[:10], 10, 10)
    assert one_hour.low == pytest.approx(0, abs=0.01), "one scene shows next to nothing"


def test_a_scene_that_lasts_a_day_is_hardly_more_than_one_answer():
    """Nine days from five in the morning, six of them right and three wrong at every hour: 8 independent answers, by hand."""
    start = 1_800_000_000 // 86400 * 86400 + 5 * 3600
    days = [day in (1, 4, 5) for day in range(9)]
    found = field_accuracy(
        [Answer(start + 3600.0 * hour, not days[hour // 24], "random") for hour in range(216)], 216, 216
    )
    p, n, z = 2 / 3, 8, t.ppf(0.975, 8)
    ends = np.roots([1 + z**2 / n, -2 * p - z**2 / n, p**2])  # (p - x)^2 = z^2 x (1 - x) / n
    assert (found.low, found.high) == pytest.approx(sorted(ends), abs=3e-3)


def test_half_a_week_has_seven_blocks_and_the_newest_answer_begins_no_other():
    """Seven scenes of 12 hours, with an answer per hour; the last scene has 13 answers, the last of them 84 hours after the first."""
    sizes, right = np.array([12] * 6 + [13]), np.array([1, 1, 0, 1, 1, 0, 1])
    found = field_accuracy(
        [Answer(1_800_000_000.0 + 3600 * hour, bool(right[min(hour // 12, 6)]), "random") for hour in range(85)], 85, 85
    )
    p = 61 / 85
    effect = 7 / 6 * np.sum((sizes * (right - p)) ** 2) / (85 * p * (1 - p))
    n, z = 85 / effect, t.ppf(0.975, 6)
    ends = np.roots([1 + z**2 / n, -2 * p - z**2 / n, p**2])
    assert found.accuracy == pytest.approx(p) and (found.low, found.high) == pytest.approx(sorted(ends), abs=3e-3)


def test_students_percentile():
    for freedom in (0, 1, 2, 3, 5, 10, 30, 200):
        assert student(freedom) == pytest.approx(t.ppf(0.975, freedom) if freedom else 1.96, rel=0.01), freedom
