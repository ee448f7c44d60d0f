"""How sharply a loss bends around its weights, which limits the rate at which gradient descent can follow it."""

from collections.abc import Callable, Sequence
from typing import Any

from edgecnn.networks.keras import tf

STEPS = 6
"""Iterations of the power method. Each costs one gradient."""

REACH = 1e-3
"""How far a gradient is taken from the weights, as a share of their norm. Of a fake-quantized network's weights much smaller steps
cross hardly any code, and the gradients' differences are noise."""


def sharpness(gradients: Callable[[], Sequence[Any]], variables: Sequence[Any]) -> float:
    """Return the largest curvature of a loss, about: by the power method on differences of gradients, from the gradient's own direction.

    Gradient descent with momentum m diverges at rates beyond 2 (1 + m) / curvature.

    Args:
        gradients: gives the loss's gradients by the variables as they stand.
        variables: the weights; they have the same values afterwards.

    Returns:
        The largest of the iterations' estimates; 0 where the loss is flat.

    Source: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability" (arXiv:2103.00065),
    for the limit; Pearlmutter 1994, "Fast Exact Multiplication by the Hessian", for the difference.
    """
    weights = [tf.identity(variable) for variable in variables]
    reach = REACH * float(tf.linalg.global_norm(weights))
    here = gradients()
    direction, largest = here, 0.0
    for _ in range(STEPS):
        length = float(tf.linalg.global_norm(direction))
        if not length * reach:
            break
        for variable, weight, part in zip(variables, weights, direction, strict=True):
            variable.assign(weight + part * (reach / length))
        direction = [there - part for there, part in zip(gradients(), here, strict=True)]
        largest = max(largest, float(tf.linalg.global_norm(direction)) / reach)
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)
    return largest
