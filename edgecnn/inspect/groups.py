"""Find the images of a set that show the same thing, by content, by perceptual hash and by features; bursts; and images unlike all others.

A burst is frames that a board kept one after another and that look alike: one person at the door, one part on the belt. An image is unlike
the others if it is far away in features, or blurred.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgecnn.data import Progress
from edgecnn.data.items import Meter
from edgecnn.data.splits import BURST, Link
from edgecnn.inspect.findings import By
from edgecnn.inspect.look import FEATURES_KIND, Body, Cache, Looks, chunks, near_pairs, neighbours
from edgecnn.inspect.pairs import MEASURES, Measures, Pictures, frame_difference, likeness, measure_pairs

P = TypeVar("P", bound=tuple[Any, ...])

KIND = f"pair-1 {FEATURES_KIND}"  # the name of cached measures; it changes with what is measured

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
    """Finds the pairs of a set.

    The features, float32 (n, LENGTH) of length 1, and the body that computes those of picture parts are None for hashes only. At the end,
    `skipped` counts candidates by features that were not compared, `uncompared` images whose hashes were not compared with later ones.
    `all_alike` means that most of a class looked like one group, so that only equal pixels make a pair.
    """

    looks: Looks
    pictures: Pictures
    features: np.ndarray | None
    body: Body | None
    cache: Cache
    progress: Progress
    all_alike: bool = False
    skipped: int = 0
    uncompared: int = 0

    def run(self) -> list[Pair]:
        """Return the pairs of images that are copies or near copies of each other, each image with the first one of its content."""
        pairs, distinct = self.by_content()
        table = self.looks.table[distinct]
        distinct = distinct[np.minimum(table["width"], table["height"]) >= LEAST_SIDE]
        found = self.near(distinct)
        self.all_alike = self.too_large(distinct, found)
        return pairs if self.all_alike else pairs + found

    def near(self, distinct: np.ndarray) -> list[Pair]:
        found = self.by_hash(distinct)
        if self.features is not None:
            found += self.by_features(distinct, {(pair.first, pair.second) for pair in found})
        return found

    def too_large(self, distinct: np.ndarray, found: Sequence[Pair]) -> bool:
        """Return whether one group has most of a class's different images, and at least FEWEST_OF_A_GROUP of them."""
        labels = [item.label for item in self.looks.items]
        totals = Counter(labels[index] for index in distinct.tolist())
        groups = (Counter(labels[index] for index in indices) for indices, _ in connected(len(labels), found))
        return any(
            count >= FEWEST_OF_A_GROUP and count > LARGEST_GROUP * totals[label]
            for group in groups
            for label, count in group.items()
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
        values, _ = self.cache.completed(KIND, keys, measures, meter, MEASURES.size)
        return [Measures(*MEASURES.unpack(value)) for value in values]

    def by_hash(self, distinct: np.ndarray) -> list[Pair]:
        """Return the pairs that are the same whole picture, among those with near perceptual hashes."""
        table, count = self.looks.table[distinct], len(self.looks.items)
        progress = partial(self.progress, "comparing hashes")
        pairs, mirrored, self.uncompared = near_pairs(table["hash"], table["mirrored"], progress)
        keep = thumbs_agree(table["thumb"], pairs, mirrored)
        near = zip(*distinct[pairs[keep]].T.tolist(), mirrored[keep].tolist(), strict=True)
        chosen = together(count, list(near))
        meter = Meter(self.progress, "comparing pictures", len(chosen))
        found, group = list[Pair](), grouped(count, ())
        for part in (chosen[:ALL_PAIRS], *chunks(chosen[ALL_PAIRS:], CHUNK)):
            apart = [pair for pair in part if group[pair[0]] != group[pair[1]]]
            meter.advance(len(part) - len(apart))
            if same := self.same_frames(apart, meter):
                found += same
                group = grouped(count, found)
        return found

    def same_frames(self, pairs: Sequence[tuple[int, int, bool]], meter: Meter) -> list[Pair]:
        """Return the pairs, whose second image may be mirrored, that are the same whole picture."""
        found = []
        for first, second, mirrored in pairs:
            difference = frame_difference(self.pictures, first, second, mirrored)
            meter.advance()
            if difference <= 1:
                found.append(Pair(first, second, "hash", 1.0 - 0.5 * difference, mirrored))
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
        chosen = together(len(self.looks.items), ordered[:MOST_PAIRS])
        meter = Meter(self.progress, "comparing pictures by their features", len(chosen))
        return [
            Pair(*pair, "features", score, measures.mirrored)
            for pair, measures in zip(chosen, self.measured(chosen, meter), strict=True)
            if (score := likeness(measures))
        ]


def thumbs_agree(thumbs: np.ndarray, pairs: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """Return which pairs have thumbnails similar enough to decode their images, bool (pairs,)."""
    agree = np.empty(len(pairs), bool)
    for start in range(0, len(pairs), 4096):
        part, flags = pairs[start : start + 4096], mirrored[start : start + 4096, np.newaxis, np.newaxis, np.newaxis]
        one, other = thumbs[part[:, 0]].astype(np.int16), thumbs[part[:, 1]].astype(np.int16)
        levels = one - np.where(flags, other[:, :, ::-1], other)
        levels = levels - levels.mean(axis=(1, 2), keepdims=True)
        agree[start : start + 4096] = np.abs(levels).mean(axis=(1, 2, 3)) <= THUMB_LEVELS
    return agree


def grouped(count: int, pairs: Sequence[P]) -> list[int]:
    """Return the number of each image's group, which pairs connect: each begins with two images."""
    first, second = np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), (count, count))
    return connected_components(graph, directed=False)[1].tolist()


def together(count: int, pairs: Sequence[P]) -> list[P]:
    """Order pairs so that those of a group follow each other: a burst's pictures are then decoded only once."""
    group = grouped(count, pairs)
    return sorted(pairs, key=lambda pair: (group[pair[0]], pair))


def connected(count: int, pairs: Sequence[Pair]) -> list[tuple[list[int], list[Pair]]]:
    """Return the groups of images that pairs connect: their indices in order, and their pairs."""
    group = grouped(count, pairs)
    groups: dict[int, tuple[list[int], list[Pair]]] = defaultdict(lambda: ([], []))
    for index in sorted({index for pair in pairs for index in pair[:2]}):
        groups[group[index]][0].append(index)
    for pair in pairs:
        groups[group[pair.first]][1].append(pair)
    return list(groups.values())


GAP_S, LONGEST_S = 15.0, 60.0
"""Largest time between two frames of a burst, and between its first and its last: a longer stay gives several bursts."""

ELSEWHERE = 5
"""Fewest frames of other moments, from which the board's usual view is known."""

ALIKE, ALIKE_AS_A_WHOLE = 0.4, 0.9
"""Smallest cosine of two frames from which the board's usual view is subtracted, and of whole frames if that view is not known. On 12
made-up doors, with faces 4 s apart, 95 % of the pairs of one person had 0.43 or more, and 95 % of those of two people 0.53 or less."""


def bursts(
    taken: Sequence[tuple[float, str]], rows: Mapping[str, int], thumbs: np.ndarray, features: np.ndarray | None
) -> Iterator[Link]:
    """Yield links between frames of one board that follow each other in time and are alike.

    At a fixed door the background makes all frames alike, so the mean of the frames of other moments is subtracted first.

    Args:
        taken: the time and the hash of each frame, in order.
        rows: the row of each image, by hash.
        thumbs: small pictures, uint8 (n, side, side, 3), which are compared if there are no features.
        features: float32 (n, length), or None.
    """
    values = thumbs.reshape(len(thumbs), -1).astype(np.float32) if features is None else features
    frames = values[[rows[one] for _, one in taken]]
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


class OddOnes(NamedTuple):
    """Indices of odd images, the oddest first; the values of all images, and their median."""

    indices: tuple[int, ...]
    values: np.ndarray
    usual: float


def far_from_the_rest(features: np.ndarray, progress: Progress) -> OddOnes:
    """Return the images farthest from their neighbours in features (n, LENGTH), of length 1: 1 minus the mean cosine, 0 to 2."""
    if len(features) < FEWEST:
        return OddOnes((), np.zeros(len(features)), 0.0)
    _, cosines = neighbours(features, NEIGHBOURS, partial(progress, "comparing features"))
    return odd_ones(1.0 - cosines.mean(axis=1, dtype=np.float64), 1)


def blurred(sharpness: np.ndarray, spread: np.ndarray) -> OddOnes:
    """Return the images whose neighbouring pixels differ least, relative to contrast; arguments as in LOOK, (n,)."""
    values = sharpness.astype(np.float64) / np.maximum(spread, 1e-6)
    full = spread >= EMPTY
    if full.sum() < FEWEST:
        return OddOnes((), values, 0.0)
    return odd_ones(np.where(full, values, np.median(values[full])), -1)._replace(values=values)


def odd_ones(values: np.ndarray, side: int) -> OddOnes:
    """Return the values at least SPREADS robust standard deviations of the logarithm from the median: above it for side 1, below for -1.

    Source: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", section 3.3 (modified z-score).
    """
    logs = np.log(np.maximum(values, 1e-6))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    score = side * (logs - middle) / max(float(spread), 1e-6)
    order = np.argsort(-score, kind="stable")
    odd = tuple(int(index) for index in order if score[index] > SPREADS)
    return OddOnes(odd, values, float(np.median(values)))
