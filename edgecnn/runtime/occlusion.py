"""Explain an answer by the occlusion sensitivity of the model that the device runs.

Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2 (arXiv:1311.2901).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgecnn.errors import ImageError
from edgecnn.pixels import PAD
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.model import Model

PATCH = 0.25
"""Side of the patch, as a fraction of the input's."""

POSITIONS = 13
"""Positions of the patch in each direction; fewer on an input too small for them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Occlusion:
    """A model's answer for an image, even if the classifier would abstain, and each pixel's contribution to it.

    `map` is how much the logit falls under the patches that cover a pixel, float32 (height, width); negative where it rises. `box` is
    the patch with the largest `decrease`: (left, top, right, bottom) as fractions.
    """

    pixels: np.ndarray
    answer: str
    index: int
    score: float
    map: np.ndarray
    box: tuple[float, float, float, float]
    decrease: float


def occlusion(model: Model, pixels: np.ndarray, labels: Sequence[str], temperature: float = 1.0) -> Occlusion:
    """Move a mid-grey patch over an image and average logit(image) - logit(patched) over the patches that cover each pixel.

    The model runs on at most POSITIONS x POSITIONS patched images, one row at a time. ImageError if the logits are not numbers.
    """
    logits = model.logits(pixels[np.newaxis])[0]
    if not np.isfinite(logits).all():
        raise ImageError("the model's scores are not numbers, so there is nothing to explain")
    index = int(logits.argmax())
    height, width, _ = pixels.shape
    (down, tops), (across, lefts) = places(height), places(width)
    decreases = np.empty((len(tops), len(lefts)), np.float32)
    for row, top in enumerate(tops):
        covered = np.repeat(pixels[np.newaxis], len(lefts), axis=0)
        for image, left in zip(covered, lefts, strict=True):
            image[top : top + down, left : left + across] = PAD
        decreases[row] = logits[index] - model.logits(covered)[:, index]
    row, column = divmod(int(decreases.argmax()), len(lefts))
    top, left = tops[row], lefts[column]
    return Occlusion(
        pixels=pixels,
        answer=labels[index],
        index=index,
        score=float(softmax(logits / np.float32(temperature))[index]),
        map=mean_over_patches(decreases, (height, width)),
        box=(left / width, top / height, (left + across) / width, (top + down) / height),
        decrease=float(decreases[row, column]),
    )


def places(side: int) -> tuple[int, list[int]]:
    """Return the patch's length along a side of `side` pixels, and its positions, evenly spaced from end to end."""
    length = max(1, round(side * PATCH))
    room = side - length
    return length, np.linspace(0, room, min(POSITIONS, room + 1)).round().astype(int).tolist()


def mean_over_patches(decreases: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the mean over the patches that cover each pixel, float32 of `shape`; `decreases` has one value per position (down, across)."""
    rows, columns = (_covers(side) for side in shape)
    counts = np.outer(rows.sum(axis=0), columns.sum(axis=0))
    return rows.T @ decreases @ columns / counts


def _covers(side: int) -> np.ndarray:
    """Return which pixels along a side each position of the patch covers: float32 of 0 and 1, shape (positions, side)."""
    length, starts = places(side)
    pixels = np.arange(side)
    return np.array([(pixels >= start) & (pixels < start + length) for start in starts], np.float32)
