"""The average of a network's weights over the steps of a phase."""

from collections.abc import Callable, Sequence
from typing import Any

from edgecnn.networks.keras import tf

POWER = 2
"""A step's weights count in proportion to this power of its number: half of the average comes from the last fifth of the steps, a hundredth
from the first fifth."""


def averaging(step: Callable[..., Any], means: Sequence[tuple[Any, Any]], steps: Any) -> Callable[..., Any]:
    """Return a training step that takes the new weights into their averages as well.

    The means are pairs of variables, the average and what it is of; `steps` counts the steps, from 1. Source: Izmailov et al. 2018
    (arXiv:1803.05407); of the weights by step, Shamir and Zhang 2013 (arXiv:1212.1824), section 4.
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
