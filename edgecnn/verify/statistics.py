"""Paired comparison of two classifiers on the same images."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A candidate's answers beside a reference's on n images.

    Accuracies and agreement are fractions in [0, 1]; `drop` is reference minus candidate, in percentage points;
    `largest_difference` is the largest absolute difference of two logits.
    """

    n: int
    accuracy_reference: float
    accuracy_candidate: float
    drop: float
    agreement: float
    largest_difference: float


def compare(reference: np.ndarray, candidate: np.ndarray, classes: np.ndarray) -> Comparison:
    """Compare two models' logits image by image.

    Args:
        reference: float32 logits, shape (n, num_classes), n at least 1.
        candidate: float32 logits, same shape.
        classes: int array, shape (n,), the true classes.

    Returns:
        The comparison; top-1 is the first largest logit.

    Raises:
        ValueError: if shapes differ or there are no images.
    """
    if reference.shape != candidate.shape or len(classes) != len(reference) or not len(classes):
        raise ValueError(
            f"logits of shape {reference.shape} and {candidate.shape} for {len(classes)} images cannot be compared"
        )
    top_reference = np.argmax(reference, axis=1)
    top_candidate = np.argmax(candidate, axis=1)
    right_reference = int(np.sum(top_reference == classes))
    right_candidate = int(np.sum(top_candidate == classes))
    n = len(classes)
    return Comparison(
        n=n,
        accuracy_reference=right_reference / n,
        accuracy_candidate=right_candidate / n,
        drop=100 * (right_reference - right_candidate) / n,
        agreement=float(np.mean(top_reference == top_candidate)),
        largest_difference=float(np.max(np.abs(reference - candidate))),
    )


def largest_lsb(logits: np.ndarray, codes: np.ndarray, scale: float, zero_point: int) -> int:
    """Return the largest difference, in codes (LSB), of an int8 output from real logits on the same grid.

    Args:
        logits: float32, shape (n, num_classes), such as a fake-quantized model's.
        codes: int8, same shape.
        scale, zero_point: of the int8 output.
    """
    wanted = np.clip(np.rint(logits / scale) + zero_point, -128, 127).astype(np.int32)
    return int(np.max(np.abs(wanted - codes.astype(np.int32))))
