"""Temperature scaling, fitted on validation images to make scores match accuracy."""

import numpy as np

from edgecnn.evaluate.scores import nll

TEMPERATURES = (0.05, 20.0)

FEWEST = 100
"""With fewer validation images, no temperature is fitted; docs/decisions.md states what that could cost."""


def fit_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature T that divides the logits before softmax so that scores match accuracy: argmin `nll`.

    The likelihood is log-concave in 1/T, so the minimum is unique. The search runs over log T within TEMPERATURES, and ends near a limit
    if the data do not determine T. `logits` is float32 (n, num_classes), `classes` int (n,).

    Source: Guo et al. 2017, section 4.2 (arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar

    minimum = minimize_scalar(
        lambda log_temperature: nll(logits, classes, float(np.exp(log_temperature))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(minimum.x))
