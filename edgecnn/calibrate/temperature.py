"""Temperature scaling: scores that are what they claim, and how far they are from it.

The temperature is fitted on validation images; the test split only reports what it is worth.
"""

import numpy as np

from edgecnn.evaluate.scores import check_images, nll

TEMPERATURES = (0.05, 20.0)
"""Limits of the temperature."""

FEWEST = 100
"""Validation images below which no temperature is fitted.

Where no temperature was needed, one fitted on 100 images cost 0.006 nats of negative log-likelihood on average and 0.15 at most; one
fitted on 50 up to 0.84, one fitted on 20 up to 2.4 (1,000 draws each with two and with ten classes: docs/decisions.md).
"""


def fit_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """Return the temperature T by which to divide logits before softmax, so that scores are what they claim.

    T = argmin `nll`. One number, so no answer changes. The minimum over 1/T is the only one, the likelihood being
    log-concave in it; it is sought over log T within TEMPERATURES.

    Args:
        logits: float32, shape (n, num_classes), of validation images, n at least 1.
        classes: int array, shape (n,), the true classes.

    Returns:
        T; above 1 for a model that is too sure. Near a limit of TEMPERATURES where the data set none: every answer
        right, or answers no better than chance.

    Raises:
        ValueError: if shapes do not fit or there are no images.

    Source: Guo et al. 2017, section 4.2 (arXiv:1706.04599).
    """
    from scipy.optimize import minimize_scalar

    check_images(logits, classes)
    minimum = minimize_scalar(
        lambda log_temperature: nll(logits, classes, float(np.exp(log_temperature))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(minimum.x))
