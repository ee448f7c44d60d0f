"""The range by which logits are quantized: narrow, and harmless to the scores."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.runtime.decision import softmax
from edgecnn.train.ranges import SCORE_ERROR, narrow


def quantized(logits, low, high):
    step = (high - low) / 255
    zero_point = np.rint(-128 - low / step)
    return ((np.clip(np.rint(logits / step) + zero_point, -128, 127) - zero_point) * step).astype(np.float32)


def error(logits, low, high):
    return float(np.sqrt(np.mean((softmax(quantized(logits, low, high)) - softmax(logits)) ** 2)))


@pytest.mark.parametrize("spread", [1.0, 4.0, 20.0])
def test_narrower_than_the_extremes_and_the_scores_stay(spread):
    logits = np.random.default_rng(0).normal(0, spread, (2000, 10)).astype(np.float32)
    low, high = narrow(logits)
    assert logits.min() <= low <= 0 <= high <= logits.max()
    assert error(logits, low, high) <= SCORE_ERROR * 1.001
    if spread > 1:
        assert high - low < logits.max() - logits.min()


def test_a_finer_grid_changes_fewer_answers():
    """Confident logits: a few are far above all others, most images are decided near zero."""
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (5000, 10)).astype(np.float32)
    logits[:500] -= 25
    logits[np.arange(500), random.integers(0, 10, 500)] = 30

    def changed(low, high):
        return float(np.mean(quantized(logits, low, high).argmax(axis=1) != logits.argmax(axis=1)))

    assert changed(*narrow(logits)) < changed(float(logits.min()), float(logits.max()))


def test_where_every_logit_counts_the_range_is_whole():
    logits = np.repeat(np.linspace(-1, 1, 50, dtype=np.float32)[:, np.newaxis], 2, axis=1)
    logits[:, 1] += 0.3
    low, high = narrow(logits)
    assert error(logits, low, high) <= SCORE_ERROR * 1.001
    assert low <= -0.85 and high >= 1.15
