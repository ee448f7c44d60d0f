"""The average of a network's weights over the training steps of a phase."""

from collections.abc import Callable, Sequence
from typing import Any

from edgecnn.networks.keras import tf

POWER = 2
"""A step's weights count in proportion to its number raised to this power. The last fifth of the steps makes up half of the average, the
first fifth a hundredth."""


def averaging(step: Callable[..., Any], means: Sequence[tuple[Any, Any]], steps: Any) -> Callable[..., Any]:
    """Return a training step that also folds the new weights into their running averages.

    Each of the means is a pair of variables: the average and its source. `steps` counts the steps, from 1. Source: Izmailov et al. 2018
    (arXiv:1803.05407); for the weighting by step, Shamir and Zhang 2013 (arXiv:1212.1824), section 4.
    """

    @tf.function
    def average() -> None:
        share = (POWER + 1) / (tf.cast(steps, tf.float32) + POWER)
        for mean, variable in means:
            mean.assign_add(share * (variable - mean))

    def averaged_step(*arguments: Any) -> Any:
        result = step(*arguments)
        average()
        return result

    return averaged_step
