"""Temperature scaling: scores that are what they claim, and how far they are from it.

The temperature is fitted on validation images; the test split only reports what it is worth.
"""

import numpy as np

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Limits of the temperature."""

FEWEST = 100
"""Validation images below which no temperature is fitted.

Where no temperature was needed, one fitted on 100 images cost 0.006 nats of negative log-likelihood on average and 0.15 at most; one
fitted on 50 up to 0.84, one fitted on 20 up to 2.4 (1,000 draws each with two and with ten classes: docs/decisions.md).
"""


def nll(logits: np.ndarray, classes: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood in nats: mean of log sum exp(logits / T) - logits[class] / T.

    Args:
        logits: float32, shape (n, num_classes), n at least 1.
        classes: int array, shape (n,), the true classes.
        temperature: T, greater than 0.

    Returns:
        At least 0; log(num_classes) for a model that knows nothing.

    Raises:
        ValueError: if shapes do not fit, there are no images, or the temperature is not greater than 0.
    """
    check_images(logits, classes)
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, received {temperature}")
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    true = np.take_along_axis(scaled, np.asarray(classes)[:, None], axis=1)[:, 0]
    return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - true))


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


def expected_calibration_error(scores: np.ndarray, classes: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: sum over bins of (images in it / n) |accuracy in it - mean score in it|.

    An image's score is its largest; bins are (i / bins, (i + 1) / bins], of equal width.

    Args:
        scores: softmax scores, shape (n, num_classes), n at least 1.
        classes: int array, shape (n,), the true classes.
        bins: at least 1.

    Returns:
        A fraction in [0, 1]; 0 where scores are what they claim. Small samples read high: each bin's noise counts as
        error.

    Raises:
        ValueError: if shapes do not fit, there are no images, or `bins` is less than 1.

    Source: Naeini et al. 2015 (AAAI 29); 15 bins as in Guo et al. 2017 (arXiv:1706.04599).
    """
    check_images(scores, classes)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, received {bins}")
    score = scores.max(axis=1).astype(np.float64)
    right = np.argmax(scores, axis=1) == classes
    index = np.clip(np.ceil(score * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=right - score, minlength=bins)
    return float(np.sum(np.abs(gaps)) / len(classes))


def check_images(rows: np.ndarray, classes: np.ndarray) -> None:
    """Raise ValueError unless there is one class an image and at least one image."""
    if rows.ndim != 2 or len(rows) != len(classes) or not len(classes):
        raise ValueError(f"one row an image is expected, received shape {rows.shape} for {len(classes)} images")
