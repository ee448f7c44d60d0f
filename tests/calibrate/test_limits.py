"""The limits of what calibration chooses: exactly enough images, a rate exactly met, a target left out."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the workstation side needs the train extra")

from edgecnn.calibrate.confidence import fit_confidence
from edgecnn.calibrate.cross_fitted import cross_fitted_scores
from edgecnn.calibrate.strangers import fit_limit, known_codes, least_count, similar_to


def logits_of(count, wrong):
    """Return logits of three classes whose first answers are wrong."""
    classes = np.arange(count) % 3
    answers = (classes + (np.arange(count) < wrong)) % 3
    return 6 * np.eye(3, dtype=np.float32)[answers], classes


@pytest.mark.parametrize(("count", "wrong", "fitted"), [(100, 9, True), (99, 9, False), (100, 0, False)])
def test_a_temperature_needs_a_hundred_images_and_an_error(count, wrong, fitted):
    made = fit_confidence(*logits_of(count, wrong))
    assert (made.not_fitted is None) == fitted == (made.temperature != 1.0)
    assert (made.threshold, made.choice) == (0.0, None)
    if fitted:  # the score e^(6/T) / (e^(6/T) + 2) is the share that is right, 91 %
        assert made.temperature == pytest.approx(6 / np.log(2 * 0.91 / 0.09), rel=1e-3)
        assert made.validation.calibration_error == pytest.approx(np.exp(6) / (np.exp(6) + 2) - 0.91, abs=1e-5)
        assert made.validation.calibration_error_after < 1e-3


def test_a_threshold_of_the_other_folds_answers_images_that_reach_it_and_figures_name_the_chosen_one():
    logits, classes = logits_of(300, 12)
    found = cross_fitted_scores(logits, classes, np.arange(300) % 2, 0.42)
    assert (found.threshold, found.n, found.answered, found.errors) == (0.42, 300, 300, 12)
    assert found.calibration_error_after < found.calibration_error and found.nll_after < found.nll


@pytest.mark.parametrize(("rate", "count"), [(0.05, 19), (0.3, 3), (0.5, 1), (0.01, 99)])
def test_a_limit_needs_so_many_images_that_one_does_not_exceed_the_rate(rate, count):
    assert least_count(rate) == count


def test_the_limit_is_the_quantile_of_familiarities():
    """Scores and similarities rank four images alike, so their familiarities are 2 log(rank / 4); 0.3 (4 + 1) is between the first two."""
    features = np.array([[1, 0.1], [1, 0.3], [1, 0.6], [1, 0.9]], np.float32)[::-1]
    codes = known_codes(np.array([[1.0, 0.0]]))
    scores = np.array([0.3, 0.5, 0.7, 0.9], np.float32)
    limit = fit_limit(scores, features, codes, 0.3)
    low, high = 2 * np.log(1 / 4), 2 * np.log(2 / 4)
    assert limit.limit == pytest.approx(low + 0.5 * (high - low))
    assert (limit.rate, limit.length, limit.neighbours, limit.known) == (0.3, 2, 1, "stranger/known.npy")
    assert limit.scores == pytest.approx((0.3, 0.5, 0.7, 0.9)) and list(limit.similarities) == sorted(
        limit.similarities
    )
    assert similar_to(features, codes) == pytest.approx(1 / np.hypot(1, [0.9, 0.6, 0.3, 0.1]))
    assert similar_to(features, codes[:0]).tolist() == [0, 0, 0, 0]
