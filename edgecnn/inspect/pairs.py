"""Decide pairs of images: is one a copy of the other, perhaps cut, mirrored or compressed, or another picture of a burst?"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from edgecnn.data.decoding import picture
from edgecnn.data.items import Item
from edgecnn.inspect.alignment import (
    COARSE_SIDE,
    FINE_SIDE,
    Detail,
    cut_out,
    difference,
    measured,
    placed,
    sized,
)
from edgecnn.inspect.features import SIDE, Body, unit

KEPT_PICTURES = 512
"""Number of decoded pictures to keep for the next pairs, at FINE_SIDE: 40 MB; as many transforms at COARSE_SIDE take 180 MB."""


PLACE = 0.7  # smallest correlation at which a place is measured at all

COPIED, COPIED_DETAIL = 4.0, 0.6
"""A copy: largest difference in grey levels of two parts that show the same thing, and smallest correlation of their detail."""

BURST, BURST_DETAIL = 0.92, 0.85
"""Another picture of a burst: smallest cosine of such parts' features, and smallest correlation of their detail."""

MEAN, PEAK = (1.5, 0.1), (8.0, 0.6)
"""How much compression and resizing may change a picture: grey levels, and a fraction of its spread; on average, and for the worst
hundredth of its pixels. The worst of 300 photos, each compressed at quality 40 and halved, stayed below."""

DIFFERENCE_SIDE = 32
"""Side at which two parts are compared in colour: as much of a photo survives compression and a place that is half a pixel off."""


class Verdict(NamedTuple):
    """Two images are the same; how alike they are, 0 to 1, and whether one is `mirrored` left to right."""

    score: float
    mirrored: bool


class Measures(NamedTuple):
    """The measures of a pair: how well they fit, the difference in grey levels of their common parts, and these parts' cosine of features.

    `place` and `mirrored` are of the `Match`; `cosine` is -1 if it was not measured.
    """

    place: float
    mirrored: bool
    levels: float
    cosine: float


MEASURES = struct.Struct("<d?dd")  # measures in the cache's format; empty if there was nothing to measure


class Pictures:
    """Decodes images for comparisons, and keeps the last ones."""

    def __init__(self, items: Sequence[Item], read: Callable[[Item], Any]) -> None:
        self._items, self._read = items, read
        self.picture = lru_cache(KEPT_PICTURES)(self._picture)
        self.detail = lru_cache(KEPT_PICTURES)(self._detail)

    def _picture(self, index: int) -> Image.Image:
        return sized(picture(self._items[index], self._read, 3, (FINE_SIDE, FINE_SIDE)), FINE_SIDE)

    def _detail(self, index: int) -> Detail:
        return Detail(sized(self.picture(index).convert("L"), COARSE_SIDE))


def frame_difference(pictures: Pictures, first: int, second: int, mirrored: bool) -> float:
    """Return the difference of two whole pictures, in units of what compression and resizing may change: MEAN or PEAK, the larger."""
    one, other = (cut_out(pictures.picture(index), (0, 0, 1, 1), COARSE_SIDE) for index in (first, second))
    if mirrored:
        other = other.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    spread = sum(float(np.asarray(image.convert("L")).std()) for image in (one, other)) / 2
    differences = difference(one, other)
    allowed = (levels + share * spread for levels, share in (MEAN, PEAK))
    return max(levels / most for levels, most in zip(differences, allowed, strict=True))


def measure(
    pictures: Pictures, pairs: Sequence[tuple[int, int]], body: Body | None, step: Callable[[], None]
) -> list[Measures | None]:
    """Return the measures of each pair of images, by index; None if their detail agrees nowhere."""
    found: list[Measures | None] = []
    parts: list[np.ndarray] = []
    places: list[int] = []
    for number, pair in enumerate(pairs):
        found.append(None)
        step()
        ways = [
            (one, other, measured(pictures.picture(one), pictures.picture(other), match))
            for one, other in (pair, pair[::-1])
            if (match := placed(pictures.detail(one), pictures.detail(other))).score >= PLACE
        ]
        if not ways:
            continue
        one, other, match = max(ways, key=lambda way: way[2].score)
        if match.score < COPIED_DETAIL:
            continue
        turned = pictures.picture(other)
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if match.mirrored else turned
        shared = [cut_out(pictures.picture(one), match.first, SIDE), cut_out(turned, match.second, SIDE)]
        small = [cut_out(part, (0, 0, 1, 1), DIFFERENCE_SIDE) for part in shared]
        found[-1] = Measures(match.score, match.mirrored, difference(*small)[0], -1.0)
        if body and match.score >= BURST_DETAIL:
            places.append(number)
            parts += [np.asarray(part) for part in shared]
    for number, cosine in zip(places, cosines(parts, body), strict=True):
        if (item := found[number]) is not None:
            found[number] = item._replace(cosine=cosine)
    return found


def cosines(parts: Sequence[np.ndarray], body: Body | None) -> list[float]:
    """Return the cosine of the features of every two pictures, uint8 (SIDE, SIDE, 3)."""
    if not parts or body is None:
        return []
    values = unit(np.concatenate([body(np.stack(parts[start : start + 64])) for start in range(0, len(parts), 64)]))
    return np.einsum("ij,ij->i", values[0::2], values[1::2]).astype(float).tolist()


def decided(measures: Measures | None) -> Verdict | None:
    """Return the verdict that two images are the same, from their measures; None if they are not."""
    if measures is None:
        return None
    detail = measures.place
    copied = measures.levels <= COPIED and detail >= COPIED_DETAIL
    burst = measures.cosine >= BURST and detail >= BURST_DETAIL
    return Verdict(min(max(detail, measures.cosine), 1.0), measures.mirrored) if copied or burst else None
