"""Temperature scaling, fitted on validation images: scores that are what they claim."""

import numpy as np

from edgecnn.evaluate.scores import nll

TEMPERATURES = (0.05, 20.0)

FEWEST = 100
"""Validation images below which no temperature is fitted: what one fitted on fewer may cost stands in docs/decisions.md."""


def fit_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature T by which to divide logits before softmax, so that scores are what they claim: argmin `nll`.

    The minimum over 1/T is the only one, the likelihood being log-concave in it; it is sought over log T within TEMPERATURES, and lies
    near a limit where the data set none. `logits` is float32 (n, num_classes), `classes` int (n,).

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
