"""Decide pairs of images: is one a copy of the other, perhaps cut, mirrored or compressed, or another picture of a burst?

One picture is laid over the other, and moved, enlarged and mirrored to fit.

Photos of a set share background, light and kinds of objects. The detail of a copy agrees at one place; that of another photo does not. So
slow changes of brightness are removed first, and the detail of one picture is searched for in the other.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter

from edgecnn.data.decoding import picture
from edgecnn.data.items import Item
from edgecnn.inspect.look import FEATURES_SIDE, Body, scaled
from edgecnn.runtime.decision import unit_rows

COARSE_SIDE, FINE_SIDE = 64, 160
"""Longer side, in pixels, for the search of a place, and for its measurement."""

SCALES = (1.1, 1.0, 0.93, 0.86, 0.8, 0.74, 0.69, 0.64, 0.59, 0.55)
"""Sizes that one picture may have within the other: they cover a copy that keeps 60 % of each side, in both directions."""

FINE_STEPS = (0.94, 0.97, 1.0, 1.03, 1.06)  # scales to try around the best of those

MIDDLE = 0.7
"""Fraction of each side to search for: the middle of a cut or moved copy is still in the other picture."""

COARSE_BLURS, FINE_BLURS = (0.7, 3.0), (1.0, 4.0)
"""Standard deviations, in pixels, of the two blurs whose difference is a picture's detail."""

NOISE = 2.0  # grey levels of detail to ignore: a compressed empty wall has as many

Box = tuple[float, float, float, float]  # left, top, right and bottom, as fractions of an upright picture


class Match(NamedTuple):
    """How well one picture fits onto another, and where.

    `score` is the correlation of their detail, -1 to 1. `mirrored` means that the second is mirrored left to right first; `scale` is its
    size within the first. The two boxes show the same thing: one in the first, one in the second after mirroring.
    """

    score: float
    mirrored: bool
    scale: float
    first: Box = (0.0, 0.0, 1.0, 1.0)
    second: Box = (0.0, 0.0, 1.0, 1.0)


class Detail:
    """The detail of a picture in mode "L" with longer side COARSE_SIDE: its Fourier transform and energy, and those of its middle.

    `middles` are the middle at each of SCALES, then mirrored; `spectra` are their transforms, and `norms` their norms.
    """

    def __init__(self, grey: Image.Image) -> None:
        size = (COARSE_SIDE, COARSE_SIDE)
        whole = detail(np.asarray(grey), COARSE_BLURS)
        self.spectrum, self.energy = fft.rfft2(whole, size), energy_sums(whole)
        cuts = [middle(detail(enlarged(grey, scale), COARSE_BLURS)) for scale in SCALES]
        self.middles = [*cuts, *(cut[:, ::-1] for cut in cuts)]
        self.spectra = np.stack([fft.rfft2(cut, size) for cut in self.middles])
        self.norms = [norm(cut) for cut in self.middles]


def enlarged(image: Image.Image, scale: float) -> np.ndarray:
    width, height = (max(8, round(scale * side)) for side in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def detail(pixels: np.ndarray, blurs: tuple[float, float]) -> np.ndarray:
    """Remove slow changes from pixels (height, width[, channels]): one blur minus a wider one, float32, same shape."""
    real = pixels.astype(np.float32)
    narrow, wide = ((blur, blur, 0.0)[: pixels.ndim] for blur in blurs)
    return gaussian_filter(real, narrow) - gaussian_filter(real, wide)


def middle(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    rows, columns = max(min(6, height), round(MIDDLE * height)), max(min(6, width), round(MIDDLE * width))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]


def norm(cut: np.ndarray) -> float:
    return float(np.sqrt(np.square(cut, dtype=np.float64).sum() + NOISE**2 * cut.size))


def energy_sums(pixels: np.ndarray) -> np.ndarray:
    """Return the sums of squares over all rectangles that start at the origin, float64 (height + 1, width + 1)."""
    squares = np.square(pixels, dtype=np.float64)
    squares = squares.sum(axis=2) if squares.ndim == 3 else squares
    return np.pad(np.cumsum(np.cumsum(squares, 0), 1), ((1, 0), (1, 0)))


def correlations(sums: np.ndarray, energy: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return a cut's products with the whole, over the whole's norm, wherever the cut lies fully inside; -inf if it is too large."""
    rows, columns = shape[:2]
    down, across = energy.shape[0] - rows, energy.shape[1] - columns
    if down < 1 or across < 1:
        return np.full((1, 1), -np.inf)
    local = energy[rows:, columns:] - energy[:down, columns:] - energy[rows:, :across] + energy[:down, :across]
    return sums[:down, :across] / np.sqrt(np.maximum(local, 0) + NOISE**2 * np.prod(shape))


def best_fit(first: Detail, second: Detail) -> Match:
    """Return the best fit of the second picture's middle in the first; the boxes are not set."""
    sums = fft.irfft2(first.spectrum * second.spectra.conj(), (COARSE_SIDE, COARSE_SIDE))
    best = Match(-1.0, False, 1.0)
    for index, cut in enumerate(second.middles):
        score = float(correlations(sums[index], first.energy, cut.shape).max()) / second.norms[index]
        if score > best.score:
            best = Match(score, index >= len(SCALES), SCALES[index % len(SCALES)])
    return best


def measured(first: Image.Image, second: Image.Image, found: Match) -> Match:
    """Measure a match again in colour, around its scale, and set its boxes."""
    size = (FINE_SIDE, FINE_SIDE)
    whole = detail(np.asarray(first), FINE_BLURS)
    spectrum, energy = fft.rfft2(whole, size, axes=(0, 1)), energy_sums(whole)
    turned = second.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if found.mirrored else second
    best = found._replace(score=-1.0)
    for step in FINE_STEPS:
        scale = step * found.scale
        pixels = detail(enlarged(turned, scale), FINE_BLURS)
        cut, (height, width) = middle(pixels), pixels.shape[:2]
        products = spectrum * fft.rfft2(cut, size, axes=(0, 1)).conj()
        scores = correlations(fft.irfft2(products.sum(axis=2), size), energy, cut.shape)
        score = float(scores.max()) / norm(cut)
        if score <= best.score:
            continue
        row, column = np.unravel_index(int(scores.argmax()), scores.shape)
        top, left = int(row) - (height - cut.shape[0]) // 2, int(column) - (width - cut.shape[1]) // 2
        best = Match(score, found.mirrored, scale, *overlap(first.size, (left, top, left + width, top + height)))
    return best


def overlap(size: tuple[int, int], place: tuple[int, int, int, int]) -> tuple[Box, Box]:
    """Return the part that two pictures share, as fractions of each."""
    (width, height), (left, top, right, bottom) = size, place
    ends = (max(0, left), max(0, top), min(width, right), min(height, bottom))
    across, down = right - left, bottom - top
    return (ends[0] / width, ends[1] / height, ends[2] / width, ends[3] / height), (
        (ends[0] - left) / across, (ends[1] - top) / down, (ends[2] - left) / across, (ends[3] - top) / down,
    )  # fmt: skip


def cut_out(image: Image.Image, box: Box, side: int) -> Image.Image:
    pixels = (box[0] * image.width, box[1] * image.height, box[2] * image.width, box[3] * image.height)
    return image.resize((side, side), Image.Resampling.BOX, box=pixels)


def grey_difference(first: Image.Image, second: Image.Image) -> tuple[float, float]:
    """Return the difference, in grey levels, of two pictures of one size with equalised mean colours: mean, and 99th percentile."""
    levels = np.asarray(first, np.float32) - np.asarray(second, np.float32)
    levels = np.abs(levels - levels.mean(axis=(0, 1)))
    return float(levels.mean()), float(np.percentile(levels, 99))


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


class Measures(NamedTuple):
    """The measures of a pair: how well they fit, the difference in grey levels of their common parts, and these parts' cosine of features.

    `place` and `mirrored` are of the `Match`; a value is -1 if it was not measured, since the details agree nowhere or too little.
    """

    place: float = -1.0
    mirrored: bool = False
    levels: float = -1.0
    cosine: float = -1.0


MEASURES = struct.Struct("<d?dd")  # measures in the cache's format


class Pictures:
    """Decodes images for comparisons, and keeps the last ones."""

    def __init__(self, items: Sequence[Item], read: Callable[[Item], Any]) -> None:
        self._items, self._read = items, read
        self.picture = lru_cache(KEPT_PICTURES)(self._picture)
        self.detail = lru_cache(KEPT_PICTURES)(self._detail)

    def _picture(self, index: int) -> Image.Image:
        return scaled(picture(self._items[index], self._read, 3, (FINE_SIDE, FINE_SIDE)), FINE_SIDE, enlarge=True)

    def _detail(self, index: int) -> Detail:
        return Detail(scaled(self.picture(index).convert("L"), COARSE_SIDE))


def frame_difference(pictures: Pictures, first: int, second: int, mirrored: bool) -> float:
    """Return the difference of two whole pictures, in units of what compression and resizing may change: MEAN or PEAK, the larger."""
    one, other = (cut_out(pictures.picture(index), (0, 0, 1, 1), COARSE_SIDE) for index in (first, second))
    if mirrored:
        other = other.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    spread = sum(float(np.asarray(image.convert("L")).std()) for image in (one, other)) / 2
    limits = zip(grey_difference(one, other), (MEAN, PEAK), strict=True)
    return max(difference / (levels + share * spread) for difference, (levels, share) in limits)


def measure_pairs(pictures: Pictures, pairs: Sequence[tuple[int, int]], body: Body | None) -> list[Measures]:
    """Return the measures of each pair of images, by index."""
    found, parts = [Measures()] * len(pairs), {}
    for number, pair in enumerate(pairs):
        ways = [
            (one, other, measured(pictures.picture(one), pictures.picture(other), match))
            for one, other in (pair, pair[::-1])
            if (match := best_fit(pictures.detail(one), pictures.detail(other))).score >= PLACE
        ]
        if not ways:
            continue
        one, other, match = max(ways, key=lambda way: way[2].score)
        if match.score < COPIED_DETAIL:
            continue
        turned = pictures.picture(other)
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if match.mirrored else turned
        shared = [
            cut_out(pictures.picture(one), match.first, FEATURES_SIDE),
            cut_out(turned, match.second, FEATURES_SIDE),
        ]
        small = [cut_out(part, (0, 0, 1, 1), DIFFERENCE_SIDE) for part in shared]
        found[number] = Measures(match.score, match.mirrored, grey_difference(*small)[0])
        if match.score >= BURST_DETAIL:
            parts[number] = [np.asarray(part) for part in shared]
    if body and parts:
        values = unit_rows(body(np.concatenate([*parts.values()])))
        for number, cosine in zip(parts, np.einsum("ij,ij->i", values[0::2], values[1::2]).tolist(), strict=True):
            found[number] = found[number]._replace(cosine=cosine)
    return found


def likeness(measures: Measures) -> float:
    """Return how alike two images are that show the same thing, 0 to 1, from their measures; 0 if they do not."""
    detail = measures.place
    copied = measures.levels <= COPIED and detail >= COPIED_DETAIL
    burst = measures.cosine >= BURST and detail >= BURST_DETAIL
    return min(max(detail, measures.cosine), 1.0) if copied or burst else 0.0
