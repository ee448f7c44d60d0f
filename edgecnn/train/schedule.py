"""Learning-rate schedules: the factor of the peak rate as a function of the fraction of training done."""

import math
from collections.abc import Callable

WARM_UP = 0.2  # fraction of the one-cycle schedule in which the rate rises

AVERAGED_WARM_UP = 1 / 3
"""Fraction of the averaged schedule in which the rate rises. Adam's first steps are as large as any; at the full rate they would undo
much of what the trained weights have learned."""


def one_cycle(done: float) -> float:
    """Rise linearly over the first fraction WARM_UP, then fall linearly to zero.

    Source: Smith and Topin 2018, "Super-Convergence" (arXiv:1708.07120), without its momentum cycle.
    """
    return min(done / WARM_UP, (1 - done) / (1 - WARM_UP))


def cosine(done: float) -> float:
    """Fall from one to zero along half a cosine. Source: Loshchilov and Hutter 2017 (arXiv:1608.03983)."""
    return (1 + math.cos(math.pi * done)) / 2


ONE_CYCLE, AVERAGED = "one-cycle", "averaged"
"""The defaults; the second is for ImageNet weights. With it the rate rises and then stays constant, and the network is the average of the
weights over the steps (`edgecnn.train.average`)."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    ONE_CYCLE: one_cycle,
    "cosine": cosine,
    "constant": lambda done: 1.0,
    AVERAGED: lambda done: min(1.0, done / AVERAGED_WARM_UP),
}


def learning_rates(name: str, peak: float) -> Callable[[float], float]:
    """Return a function from the fraction of a phase done, in [0, 1), to the learning rate."""
    schedule = SCHEDULES[name]
    return lambda done: peak * schedule(done)
