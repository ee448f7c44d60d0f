"""Averaging weights over the steps: each step is weighted by the square of its number."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.networks.keras import tf
from edgecnn.train.best import averaging


def averages(values):
    """Return the average after each step for a weight with these values, shape (n, 2)."""
    weight, mean, steps = tf.Variable(values[0]), tf.Variable([9.0, 9.0]), tf.Variable(0, dtype=tf.int64)

    def step(value):
        weight.assign(value)
        return steps.assign_add(1)

    averaged_step, found = averaging(step, [(mean, weight)], steps), []
    for value in values:
        averaged_step(value)
        found.append(mean.numpy())
    return np.array(found)


def test_the_first_step_is_the_first_average():
    values = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_allclose(averages(values)[0], values[0], atol=1e-6)


def test_late_steps_count_more():
    values = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    number = np.arange(1, 51)
    expected = np.average(values, axis=0, weights=number * (number + 1))
    np.testing.assert_allclose(averages(values)[-1], expected, rtol=1e-4, atol=1e-6)
    last_fifth = np.repeat(np.array([[0, 0], [1, 1]], np.float32), [80, 20], axis=0)
    assert averages(last_fifth)[-1][0] == pytest.approx(0.488, abs=0.01)
