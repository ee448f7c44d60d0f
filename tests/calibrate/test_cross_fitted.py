"""Temperature, threshold and strangers' limit, judged on images that were not used to choose them."""

import numpy as np
import pytest

from edgecnn.calibrate.confidence import fit_confidence
from edgecnn.calibrate.cross_fitted import cross_fitted_scores, cross_fitted_strangers
from edgecnn.calibrate.strangers import fit_limit, known_codes, similar_to
from edgecnn.evaluate.scores import score_figures
from edgecnn.runtime.stranger import Strangers


def logits_of(random, count, sharpness):
    """Return logits of ten classes whose softmax, divided by `sharpness`, is what it claims, and the true classes."""
    calm = random.normal(0, 2, (count, 10))
    chances = np.exp(calm) / np.exp(calm).sum(axis=1, keepdims=True)
    classes = np.array([random.choice(10, p=row) for row in chances])
    return (sharpness * calm).astype(np.float32), classes


def test_each_fold_uses_what_the_others_choose():
    """One fold's scores are four times as confident as the others'. Its own temperature would correct that; theirs does not, and
    with its share in them, theirs are too high."""
    random = np.random.default_rng(1)
    parts = [logits_of(random, 400, sharpness) for sharpness in (1, 1, 4)]
    logits, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
    fold = np.repeat([1, 2, 3], 400)
    found = cross_fitted_scores(logits, classes, fold, 0.0)
    others = fit_confidence(logits[:800], classes[:800]).temperature
    assert others == pytest.approx(1, rel=0.15)
    sure = score_figures(logits[800:], classes[800:], others, 0.0)
    assert sure.calibration_error_after > 0.2
    temperatures = [fit_confidence(logits[fold != one], classes[fold != one]).temperature for one in (1, 2, 3)]
    assert temperatures[0] > 1.5 < temperatures[1] and temperatures[2] == others
    each = [
        score_figures(logits[fold == one], classes[fold == one], temperature, 0.0)
        for one, temperature in zip((1, 2, 3), temperatures, strict=True)
    ]
    assert found.nll_after == pytest.approx(np.mean([part.nll_after for part in each]), rel=1e-5)
    seen = score_figures(logits, classes, fit_confidence(logits, classes).temperature, 0.0)
    assert found.nll_after > 1.05 * seen.nll_after, "a fit on the images themselves would be too optimistic"
    assert (found.n, found.answered) == (1200, 1200)
    assert found.errors == int(np.sum(logits.argmax(axis=1) != classes))


def test_a_threshold_is_chosen_by_the_other_folds():
    random = np.random.default_rng(2)
    logits, classes = logits_of(random, 1500, 1)
    fold = np.arange(1500) % 5
    chosen = fit_confidence(logits, classes, 0.4)
    found = cross_fitted_scores(logits, classes, fold, chosen.threshold, 0.4)
    assert 0 < found.answered < 1500 and found.error <= 0.4
    assert found.threshold == chosen.threshold
    none = cross_fitted_scores(logits[:60], classes[:60], fold[:60], 0.9, 0.01)
    assert none.answered == 0 and none.error is None, "48 images cannot prove an error of 1 %"


def test_the_limit_for_strangers_refuses_its_rate_of_images_that_did_not_set_it():
    """Each fold has its own feature space: only the distances of its images to its own known images are compared."""
    random = np.random.default_rng(3)
    refused, count = [], 500
    for _ in range(20):
        scores = random.beta(5, 1, count).astype(np.float32)
        similar = random.normal(0.8, 0.05, count)
        found = cross_fitted_strangers(scores, similar, np.arange(count) % 5, 0.05)
        assert found.limited
        refused.append(found.images.mean())
    assert np.mean(refused) == pytest.approx(0.05, abs=0.01)
    assert not cross_fitted_strangers(scores[:20], similar[:20], np.arange(20) % 5, 0.05).limited, (
        "16 images are too few"
    )


def test_limits_from_similarities_and_features_are_equal():
    random = np.random.default_rng(4)
    features = random.normal(size=(200, 16)).astype(np.float32)
    codes, scores = known_codes(features[:50]), random.random(150).astype(np.float32)
    limit = fit_limit(scores, features[50:], codes, 0.1)
    strangers = Strangers(limit, codes)
    by_similarity = strangers.familiarity_of(scores, similar_to(features[50:], codes)) < limit.limit
    np.testing.assert_array_equal(by_similarity, strangers.refused(scores, features[50:]))
