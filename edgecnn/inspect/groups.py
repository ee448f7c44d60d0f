"""Find the images of a set that show the same thing, by content, by perceptual hash and by features; bursts; and images unlike all others.

A burst is frames that a board kept one after another and that look alike: one person at the door, one part on the belt. An image is unlike
the others if it is far away in features, or blurred.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgecnn.data import Progress
from edgecnn.data.items import Meter
from edgecnn.data.splits import BURST, Link
from edgecnn.inspect.findings import By
from edgecnn.inspect.look import FEATURES_KIND, Body, Cache, Looks, near_pairs, neighbours
from edgecnn.inspect.pairs import MEASURES, Measures, Pictures, frame_difference, likeness, measure_pairs

KIND = f"pair-2 {MEASURES.format} {FEATURES_KIND}"  # the name of cached measures; it changes with what is measured and how it is stored

CHUNK = 256  # candidates after ALL_PAIRS to compare before images are grouped again

LEAST_COSINE = 0.5
"""An image and its nearest by features with a smaller cosine are not compared: a copy cut to 60 % of each side has 0.5 or more. To compare
the nearest three finds 192 planted or known near copies in eight sets of photos, not 185, in three times the time."""

MOST_PAIRS = 20_000  # maximum number of candidates by features to compare, nearest first: about five minutes

ALL_PAIRS = 20_000
"""Number of candidates by hash to compare. Of the others, only those are compared whose images are not in one group yet: 20,000 copies of a
few pictures have two million candidates."""

THUMB_LEVELS = 25.0
"""A candidate by hash is not decoded if its thumbnails differ by more, on average, in grey levels."""

LEAST_SIDE = 16
"""If the shorter side has fewer pixels, only equal pixels make a copy: nobody can say whether two 8x8 digits are the same."""

LARGEST_GROUP, FEWEST_OF_A_GROUP = 0.6, 10
"""Largest fraction of a class that one group may have, if it has at least this number of its images. A larger group means a camera that
never moves: its pictures are alike, but no copies."""


class Pair(NamedTuple):
    """Two images that show the same thing, what detected it, how alike they are, 0 to 1, and whether one is mirrored left to right."""

    first: int
    second: int
    by: By
    score: float = 1.0
    mirrored: bool = False


@dataclass(kw_only=True)
class Search:
    """Finds the `pairs` of a set: images that are copies or near copies of each other, each with the first one of its content.

    The features, float32 (n, length) of length 1, and the body that computes those of picture parts are None for hashes only. At the end,
    `skipped` counts candidates by features that were not compared, `uncompared` images whose hashes were not compared with later ones.
    `all_alike` means that most of a class looked like one group, so that only equal pixels make a pair.
    """

    looks: Looks
    pictures: Pictures
    cache: Cache
    progress: Progress
    features: np.ndarray | None = None
    body: Body | None = None
    pairs: list[Pair] = field(default_factory=list)
    all_alike: bool = False
    skipped: int = 0
    uncompared: int = 0

    def run(self) -> None:
        equal, distinct = self.by_content()
        table = self.looks.table[distinct]
        distinct = distinct[np.minimum(table["width"], table["height"]) >= LEAST_SIDE]
        found = self.near(distinct)
        self.all_alike = self.too_large(distinct, found)
        self.pairs = equal if self.all_alike else equal + found

    def near(self, distinct: np.ndarray) -> list[Pair]:
        found = self.by_hash(distinct)
        if self.features is not None:
            found += self.by_features(distinct, {(pair.first, pair.second) for pair in found})
        return found

    def too_large(self, distinct: np.ndarray, found: Sequence[Pair]) -> bool:
        """Return whether one group has most of a class's different images, and at least FEWEST_OF_A_GROUP of them."""
        labels = [item.label for item in self.looks.items]
        group = grouped(len(labels), found)
        totals = Counter(labels[index] for index in distinct.tolist())
        counts = Counter((group[index], labels[index]) for index in distinct.tolist())
        return any(
            count >= FEWEST_OF_A_GROUP and count > LARGEST_GROUP * totals[label] for (_, label), count in counts.items()
        )

    def by_content(self) -> tuple[list[Pair], np.ndarray]:
        _, places, inverse = np.unique(self.looks.table["pixels"], return_index=True, return_inverse=True)
        firsts = places[inverse].tolist()
        pairs = [Pair(first, index, "content") for index, first in enumerate(firsts) if first != index]
        return pairs, np.sort(places)

    def measured(self, pairs: Sequence[tuple[int, int]], meter: Meter) -> list[Measures]:
        """Return the measures of pairs, from the cache or computed a few at a time, since their parts take memory."""
        hashes = [item.hash for item in self.looks.items]

        def measures(part: Sequence[int]) -> Iterable[bytes]:
            found = measure_pairs(self.pictures, [pairs[place] for place in part], self.body)
            return (MEASURES.pack(*one) for one in found)

        keys = [hashes[first] + hashes[second] for first, second in pairs]
        return [Measures(*MEASURES.unpack(value)) for value in self.cache.completed(KIND, keys, measures, meter)]

    def by_hash(self, distinct: np.ndarray) -> list[Pair]:
        """Return the pairs that are the same whole picture, among those with near perceptual hashes."""
        table, thumbs, count = self.looks.table[distinct], self.looks.table["thumb"], len(self.looks.items)
        progress = partial(self.progress, "comparing hashes")
        pairs, self.uncompared = near_pairs(table["hash"], table["mirrored"], progress)
        first, second, mirrored = pairs.T
        chosen = together(count, np.stack([distinct[first], distinct[second], mirrored], axis=1))
        meter = Meter(self.progress, "comparing pictures", len(chosen))
        found, group = list[Pair](), np.arange(count)
        for part in np.split(chosen, range(ALL_PAIRS, len(chosen), CHUNK)):
            before = len(found)
            apart = group[part[:, 0]] != group[part[:, 1]]
            meter.advance(len(part) - int(apart.sum()))
            for first, second, flipped in part[apart].tolist():
                meter.advance()
                if not thumbs_agree(thumbs[first], thumbs[second], bool(flipped)):
                    continue
                difference = frame_difference(self.pictures, first, second, bool(flipped))
                if difference <= 1:
                    found.append(Pair(first, second, "hash", 1.0 - 0.5 * difference, bool(flipped)))
            if len(found) > before:
                group = grouped(count, found)
        return found

    def by_features(self, distinct: np.ndarray, known: set[tuple[int, int]]) -> list[Pair]:
        """Return the pairs that show the same thing, perhaps cut or moved, among those with near features, without the `known` ones."""
        assert self.features is not None
        if len(distinct) < 2:
            return []
        progress = partial(self.progress, "comparing features")
        nearest, cosines = neighbours(self.features[distinct], 1, progress)
        ends = np.sort(np.stack([distinct, distinct[nearest[:, 0]]], axis=1), axis=1)
        candidates = {
            (first, second): cosine
            for (first, second), cosine in zip(ends.tolist(), cosines[:, 0].tolist(), strict=True)
            if cosine >= LEAST_COSINE and (first, second) not in known
        }
        ordered = sorted(candidates, key=lambda pair: (-candidates[pair], pair))
        self.skipped = max(0, len(ordered) - MOST_PAIRS)
        nearest_first = np.array(ordered[:MOST_PAIRS], np.int64).reshape(-1, 2)
        chosen = [(first, second) for first, second in together(len(self.looks.items), nearest_first).tolist()]
        meter = Meter(self.progress, "comparing pictures by their features", len(chosen))
        return [
            Pair(pair[0], pair[1], "features", score, measures.mirrored)
            for pair, measures in zip(chosen, self.measured(chosen, meter), strict=True)
            if (score := likeness(measures))
        ]


def thumbs_agree(one: np.ndarray, other: np.ndarray, mirrored: bool) -> bool:
    """Return whether thumbnails, uint8 (side, side, 3), the second perhaps mirrored, are similar enough to decode their images."""
    levels = one.astype(np.int16) - (other[:, ::-1] if mirrored else other)
    return bool(np.abs(levels - levels.mean(axis=(0, 1))).mean() <= THUMB_LEVELS)


def grouped(count: int, pairs: Sequence[Pair]) -> np.ndarray:
    """Return the number of each image's group, int (count,), which pairs connect."""
    return connected(count, np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2))


def connected(count: int, ends: np.ndarray) -> np.ndarray:
    """Do as `grouped` for pairs as an int array (n, 2)."""
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1]


def together(count: int, pairs: np.ndarray) -> np.ndarray:
    """Order pairs, int (n, 2 or more), so that those of a group follow each other: a burst's pictures are then decoded only once."""
    group = connected(count, pairs[:, :2])
    return pairs[np.lexsort((*pairs.T[::-1], group[pairs[:, 0]]))]


GAP_S, LONGEST_S = 15.0, 60.0
"""Largest time between two frames of a burst, and between its first and its last: a longer stay gives several bursts."""

ELSEWHERE = 5
"""Fewest frames of other moments, from which the board's usual view is known."""

ALIKE, ALIKE_AS_A_WHOLE = 0.4, 0.9
"""Smallest cosine of two frames from which the board's usual view is subtracted, and of whole frames if that view is not known. On 12
made-up doors, with faces 4 s apart, 95 % of the pairs of one person had 0.43 or more, and 95 % of those of two people 0.53 or less."""


def bursts(taken: Sequence[tuple[float, str]], frames: np.ndarray) -> Iterator[Link]:
    """Yield links between frames of one board that follow each other in time and are alike.

    `taken` are the time and the hash of each frame, in order, and `frames` its features or small picture, float32 (n, length). At a fixed
    door the background makes all frames alike, so the mean of the frames of other moments is subtracted first.
    """
    times = np.array([moment for moment, _ in taken])
    begun = 0
    for second in range(1, len(taken)):
        first = second - 1
        if times[second] - times[first] > GAP_S or times[second] - times[begun] > LONGEST_S:
            begun = second
            continue
        elsewhere = np.minimum(abs(times - times[first]), abs(times - times[second])) > GAP_S
        known = elsewhere.sum() >= ELSEWHERE
        usual = frames[elsewhere].mean(axis=0) if known else np.zeros(frames.shape[1], np.float32)
        one, other = frames[first] - usual, frames[second] - usual
        cosine = float(one @ other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12)
        if cosine >= (ALIKE if known else ALIKE_AS_A_WHOLE):
            yield Link(taken[first][1], taken[second][1], cosine, BURST)
        else:
            begun = second


NEIGHBOURS = 10  # nearest others to average an image's distance over

SPREADS = 4.0
"""An image this far from the median, in robust standard deviations of the logarithm, is odd: one in 30,000 by chance, if normal."""

FEWEST = 20  # with fewer images, nothing is called odd

EMPTY = 4.0  # a picture with a smaller standard deviation, in grey levels, is too empty to be called blurred


def far_from_the_rest(features: np.ndarray, progress: Progress) -> list[tuple[int, float, float]]:
    """Do as `odd_ones` for the images farthest from their neighbours in features (n, length) of length 1, by 1 minus the mean cosine."""
    if len(features) < FEWEST:
        return []
    _, cosines = neighbours(features, NEIGHBOURS, partial(progress, "comparing features"))
    return odd_ones(1.0 - cosines.mean(axis=1, dtype=np.float64), 1)


def blurred(sharpness: np.ndarray, spread: np.ndarray) -> list[tuple[int, float, float]]:
    """Do as `odd_ones` for the images whose neighbouring pixels differ least, relative to contrast; arguments as in LOOK, (n,)."""
    values = sharpness.astype(np.float64) / np.maximum(spread, 1e-6)
    full = spread >= EMPTY
    if full.sum() < FEWEST:
        return []
    return odd_ones(np.where(full, values, np.median(values[full])), -1)


def odd_ones(values: np.ndarray, side: int) -> list[tuple[int, float, float]]:
    """Return the index and value of each odd image, the oddest first, with the median of all values.

    Odd is at least SPREADS robust standard deviations of the logarithm from the median: above it for side 1, below for -1.

    Source: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", section 3.3 (modified z-score).
    """
    logs = np.log(np.maximum(values, 1e-6))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    score = side * (logs - middle) / max(float(spread), 1e-6)
    order, usual = np.argsort(-score, kind="stable").tolist(), float(np.median(values))
    return [(index, float(values[index]), usual) for index in order if score[index] > SPREADS]
