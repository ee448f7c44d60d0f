"""The quantization range of the logits: narrow, and harmless to the scores."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.runtime.decision import softmax
from edgecnn.train.ranges import SCORE_ERROR, narrow, on_grid


def error(logits, low, high):
    difference = softmax(on_grid(logits, low, high).astype(np.float32)) - softmax(logits)
    return float(np.sqrt(np.mean(difference**2)))


def changed(logits, low, high):
    return float(np.mean(on_grid(logits, low, high).argmax(axis=1) != logits.argmax(axis=1)))


def test_a_grid_has_255_steps_and_zero_on_it():
    logits = np.linspace(-3, 9, 1000)[:, np.newaxis]
    found = on_grid(logits, -2.0, 6.0)
    assert len(np.unique(found)) == 256 and 0 in found
    assert found.min() == pytest.approx(-2, abs=8 / 255) and found.max() == pytest.approx(6, abs=8 / 255)


@pytest.mark.parametrize("spread", [1.0, 4.0, 20.0])
def test_narrower_than_the_extremes_and_the_scores_stay(spread):
    logits = np.random.default_rng(0).normal(0, spread, (2000, 10)).astype(np.float32)
    low, high = narrow(logits)
    assert logits.min() <= low <= 0 <= high <= logits.max()
    assert error(logits, low, high) <= SCORE_ERROR * 1.001
    if spread > 1:
        assert high - low < logits.max() - logits.min()


def test_a_finer_grid_changes_fewer_answers():
    """Confident logits: a few are far above all others, but most images are decided near zero."""
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (5000, 10)).astype(np.float32)
    logits[:500] -= 25
    logits[np.arange(500), random.integers(0, 10, 500)] = 30
    assert changed(logits, *narrow(logits)) < changed(logits, float(logits.min()), float(logits.max()))


def test_scores_stay_however_many_classes_there_are():
    """With many classes most scores are close to 0: their mean would hide changes in the best ones."""
    random = np.random.default_rng(2)
    logits = random.normal(0, 1, (1000, 300)).astype(np.float32)
    logits[np.arange(1000), random.integers(0, 300, 1000)] = random.normal(9, 2, 1000)
    best = softmax(logits).max(axis=1)
    found = softmax(on_grid(logits, *narrow(logits)).astype(np.float32)).max(axis=1)
    assert np.sqrt(np.mean((found - best) ** 2)) <= SCORE_ERROR * np.sqrt(10)


def test_a_network_that_hardly_knows_anything_keeps_its_answers():
    """Scores that are close together survive almost any range; the answers do not."""
    logits = np.random.default_rng(3).normal(0, 0.02, (2000, 10)).astype(np.float32)
    whole = float(logits.min()), float(logits.max())
    assert changed(logits, *narrow(logits)) <= changed(logits, *whole)
    assert changed(logits, whole[0] / 20, whole[1] / 20) > 0.5


def test_if_every_logit_counts_the_range_is_complete():
    logits = np.repeat(np.linspace(-1, 1, 50, dtype=np.float32)[:, np.newaxis], 2, axis=1)
    logits[:, 1] += 0.3
    low, high = narrow(logits)
    assert error(logits, low, high) <= SCORE_ERROR * 1.001
    assert low <= -0.85 and high >= 1.15
