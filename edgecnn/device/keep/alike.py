"""Decides whether two frames show almost the same thing, from the model's features if it has any, else from thumbnails."""

from collections import deque

import numpy as np

from edgecnn.device.keep.views import View
from edgecnn.device.stream.pictures import part, thumbnail
from edgecnn.device.stream.results import FrameResult
from edgecnn.region import WHOLE
from edgecnn.runtime.stranger import unit_rows

REMEMBERED = 200  # pictures to compare a new one with

NEAR = 0.3
"""Two frames are alike if their features are closer than this share of a validation image's usual distance to the known images. Nine in ten
photos that were moved by two pixels, made 7 % brighter and noisy stay below it; so does one in twenty different photos of a class."""

LEAST_CHANGE = 5.0
"""Without features: the least `pictures.change` between two thumbnails, in grey levels. Light changes by itself, so `capture` uses less."""


class Alike:
    """Remembers the newest pictures of this process."""

    def __init__(self, view: View, usual: float | None) -> None:
        """`usual` is a validation image's distance (1 - cosine) to the known images; None compares thumbnails of the seen region."""
        self._view, self._usual = view, usual
        self._seen: deque[np.ndarray] = deque(maxlen=REMEMBERED)

    def look(self, result: FrameResult) -> np.ndarray:
        """Return a frame's values for comparison, float32: its features at length 1, or its thumbnail as a row."""
        if self._usual is not None and result.features is not None:
            return unit_rows(result.features[np.newaxis])[0]
        image = result.image
        return thumbnail(image if self._view.seen == WHOLE else part(image, *self._view[:2])).ravel()

    def seen(self, look: np.ndarray) -> bool:
        """Return whether a remembered picture is like a frame."""
        if not self._seen:
            return False
        known = np.stack(self._seen)
        if self._usual is None:
            return bool((np.abs(known - look).mean(axis=1) < LEAST_CHANGE).any())
        return bool((known @ look > 1 - NEAR * self._usual).any())

    def remember(self, look: np.ndarray) -> None:
        self._seen.append(look)
