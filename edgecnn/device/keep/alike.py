"""Do two frames show almost the same? By the model's features where there are any, else by their thumbnails."""

from collections import deque

import numpy as np

from edgecnn.device.keep.views import View
from edgecnn.device.stream.pictures import part, thumbnail
from edgecnn.device.stream.results import FrameResult
from edgecnn.region import WHOLE
from edgecnn.runtime.stranger import unit_rows

REMEMBERED = 200  # pictures that a new one is compared with

NEAR = 0.3
"""Two frames are alike if their features are nearer than this share of a validation image's usual distance to the known images. Of photos
moved by two pixels, 7 % brighter and noisy, nine in ten stay below; of different photos of a class, one in twenty is."""

LEAST_CHANGE = 5.0
"""Without features: the least `pictures.change` of two thumbnails, in grey levels. Light changes by itself, so `capture` takes less."""


class Alike:
    """Remembers what the newest pictures of this process show."""

    def __init__(self, view: View, usual: float | None) -> None:
        """`usual` is the distance (1 - cosine) of a validation image to the known ones; None compares thumbnails of what is seen."""
        self._view, self._usual = view, usual
        self._seen: deque[np.ndarray] = deque(maxlen=REMEMBERED)

    def look(self, result: FrameResult) -> np.ndarray:
        """Return what a frame is compared by: float32, its features at length 1, or its thumbnail as a row."""
        if self._usual is not None and result.features is not None:
            return unit_rows(result.features[np.newaxis])[0]
        image = result.image
        return thumbnail(image if self._view.seen == WHOLE else part(image, *self._view[:2])).ravel()

    def seen(self, look: np.ndarray) -> bool:
        """Return whether a picture that is remembered is like a frame."""
        if not self._seen:
            return False
        known = np.stack(self._seen)
        if self._usual is None:
            return bool((np.abs(known - look).mean(axis=1) < LEAST_CHANGE).any())
        return bool((known @ look > 1 - NEAR * self._usual).any())

    def remember(self, look: np.ndarray) -> None:
        self._seen.append(look)
