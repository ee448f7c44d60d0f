"""Find the images of a set that show the same thing: by content, by perceptual hash and by features."""

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgecnn.data import Progress
from edgecnn.data.items import Meter
from edgecnn.inspect.cache import Cache
from edgecnn.inspect.features import KIND as FEATURES
from edgecnn.inspect.features import Body, neighbours
from edgecnn.inspect.hashing import near_pairs
from edgecnn.inspect.inspection_report import By
from edgecnn.inspect.look import Looks, chunks
from edgecnn.inspect.pairs import (
    MEASURES,
    Limits,
    Measures,
    Pictures,
    Verdict,
    decided,
    frame_difference,
    measure,
)

P = TypeVar("P", bound=tuple)

FRAMES, DIFFERENCE = "frame-1", struct.Struct("<d")  # frame differences in the cache's format

KIND = f"pair-1 {FEATURES}"  # the name of cached measures; it changes with what is measured

CHUNK = 256  # pairs to measure before the results are stored

NEIGHBOURS = 3
"""Number of nearest images by features to compare: with 1,465 photos, a mirrored copy was always among them."""

LEAST_COSINE = 0.5
"""Pairs with a smaller cosine of features are not compared: a copy cut to 60 % of each side has 0.5 or more."""

RESEMBLING = 0.85
"""Two images with at least this cosine of features are of one scene, though perhaps no copies: dim frames of a grey wall have little else
in common. This connects each of 300 bursts of ten frames; one frame in a hundred is as near as that to one of another scene."""

MOST_PAIRS = 20_000  # maximum number of candidates by features to compare, nearest first: about three minutes

ALL_PAIRS = 20_000
"""Number of candidates by hash to compare. Of the others, only those are compared whose images are not in one group yet: 20,000 copies of a
few pictures have two million candidates."""

THUMB_LEVELS = 25.0
"""A candidate by hash is not decoded if its thumbnails differ by more, on average, in grey levels."""

LEAST_SIDE = 16
"""If the shorter side has fewer pixels, only equal pixels make a copy: nobody can say whether two 8x8 digits are the same."""

RANDOM_PAIRS = 200  # random pairs, to see how alike the set's images are anyway

USUAL_SHARE = 0.01
"""Fraction of them that may count as the same. If more do, the limits are tightened, unless these are bursts: no group is too large."""

LARGEST_GROUP = 0.6
"""Largest fraction of a class that one group may then have. More means a camera that never moves, and leaves nothing to test."""


class Pair(NamedTuple):
    """Two images that show the same thing, what detected it, and how alike they are."""

    first: int
    second: int
    by: By
    verdict: Verdict


@dataclass(kw_only=True)
class Search:
    """Finds the pairs of a set.

    The features, float32 (n, LENGTH) of length 1, and the body that computes those of picture parts are None for hashes only. At the end,
    `alike` is the fraction of random pairs that the usual limits would call the same. `skipped` counts candidates by features that were not
    compared, `uncompared` images whose hashes were not compared with later ones. `resembling` are pairs of one scene, by the features of
    the whole images; with `scenes_only`, these are not also compared as possible copies.
    """

    looks: Looks
    pictures: Pictures
    features: np.ndarray | None
    body: Body | None
    cache: Cache
    progress: Progress
    scenes_only: bool = False
    resembling: list[Pair] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    alike: float = 0.0
    skipped: int = 0
    uncompared: int = 0

    def run(self, seed: int) -> list[Pair]:
        """Return all pairs that connect images that show the same thing, each image with the first one of its content."""
        pairs, distinct = self.by_content()
        table = self.looks.table[distinct]
        distinct = distinct[np.minimum(table["width"], table["height"]) >= LEAST_SIDE]
        tight = self.calibrate(distinct, np.random.default_rng(seed))
        found = self.near(distinct)
        if self.largest(distinct, found + self.resembling) > LARGEST_GROUP:
            if self.scenes_only:
                self.scenes_only = False
                found = self.near(distinct)
            if tight and self.largest(distinct, found) > LARGEST_GROUP:
                self.limits = tight
                found = self.near(distinct)
            self.resembling = []
        return pairs + found

    def near(self, distinct: np.ndarray) -> list[Pair]:
        found = self.by_hash(distinct)
        if self.features is not None:
            found += self.by_features(distinct, {(pair.first, pair.second) for pair in found})
        return found

    def largest(self, distinct: np.ndarray, found: Sequence[Pair]) -> float:
        """Return the largest fraction of a class's images in one group."""
        labels = [item.label for item in self.looks.items]
        totals = Counter(labels[index] for index in distinct.tolist())
        groups = (Counter(labels[index] for index in indices) for indices, _ in connected(len(labels), found))
        return max((count / totals[label] for group in groups for label, count in group.items()), default=0.0)

    def by_content(self) -> tuple[list[Pair], np.ndarray]:
        first: dict[bytes, int] = {}
        pairs = []
        for index, content in enumerate(self.looks.table["pixels"].tolist()):
            other = first.setdefault(content, index)
            if other != index:
                pairs.append(Pair(other, index, "content", Verdict(1.0, False)))
        return pairs, np.array(list(first.values()), np.int64)

    def calibrate(self, distinct: np.ndarray, random: np.random.Generator) -> Limits | None:
        """Return tighter limits if randomly chosen pairs pass the usual ones: half of what still separates the most alike of these."""
        if len(distinct) < 2:
            return None
        by_content = sorted(distinct.tolist(), key=lambda index: self.looks.items[index].hash)  # in any split
        drawn: list[tuple[int, int]] = [
            tuple(random.choice(by_content, 2, replace=False).tolist()) for _ in range(RANDOM_PAIRS)
        ]
        meter = Meter(self.progress, "comparing random pairs", RANDOM_PAIRS)
        usual = self.limits
        frames = np.array(self.framed([(*pair, False) for pair in drawn], Meter(None, "", RANDOM_PAIRS)))
        passed = frames <= usual.frame
        if self.body is None:
            meter.advance(RANDOM_PAIRS)
        else:
            measured = self.measured(drawn, meter)
            passed |= np.array([decided(item, usual) is not None for item in measured])
        self.alike = float(passed.mean())
        if self.alike <= USUAL_SHARE:
            return None
        tight = replace(usual, frame=min(usual.frame, float(np.quantile(frames, USUAL_SHARE)) / 2))
        if self.body is not None:
            present = [item for item in measured if item is not None]
            nearest = max((item.cosine for item in present), default=usual.burst)
            least = min((item.levels for item in present), default=usual.copied)
            burst, copied = max(usual.burst, (1 + nearest) / 2), min(usual.copied, least / 2)
            tight = replace(tight, burst=burst, copied=copied)
        return tight

    def measured(self, pairs: Sequence[tuple[int, int]], meter: Meter) -> list[Measures | None]:
        """Return the measures of pairs, from the cache or computed a few at a time, since their parts take memory."""
        items = self.looks.items
        keys = {pair: items[pair[0]].hash + items[pair[1]].hash for pair in pairs}
        known = {
            key: Measures(*MEASURES.unpack(value)) if len(value) == MEASURES.size else None
            for key, value in self.cache.get(KIND, list(keys.values())).items()
        }
        missing = [pair for pair, key in keys.items() if key not in known]
        meter.advance(len(pairs) - len(missing))
        for part in chunks(missing, CHUNK):
            measures = measure(self.pictures, part, self.body, meter.advance, self.limits)
            fresh = {keys[pair]: item for pair, item in zip(part, measures, strict=True)}
            self.cache.put(KIND, [(key, MEASURES.pack(*item) if item else b"") for key, item in fresh.items()])
            known |= fresh
        return [known[keys[pair]] for pair in pairs]

    def by_hash(self, distinct: np.ndarray) -> list[Pair]:
        """Return the pairs that are the same whole picture, among those with near perceptual hashes."""
        table = self.looks.table[distinct]
        progress = partial(self.progress, "comparing hashes")
        pairs, mirrored, self.uncompared = near_pairs(table["hash"], table["mirrored"], progress)
        keep = thumbs_agree(table["thumb"], pairs, mirrored)
        near = distinct[pairs[keep]]
        chosen = together(near, list(zip(*near.T.tolist(), mirrored[keep].tolist(), strict=True)))
        meter = Meter(self.progress, "comparing pictures", len(chosen))
        found = self.same_frames(chosen[:ALL_PAIRS], meter)
        group = grouped(len(self.looks.items), found)
        for part in chunks(chosen[ALL_PAIRS:], CHUNK):
            apart = [pair for pair in part if group[pair[0]] != group[pair[1]]]
            meter.advance(len(part) - len(apart))
            if same := self.same_frames(apart, meter):
                found += same
                group = grouped(len(group), found)
        return found

    def same_frames(self, pairs: Sequence[tuple[int, int, bool]], meter: Meter) -> list[Pair]:
        return [
            Pair(first, second, "hash", Verdict(1.0 - 0.5 * difference, flag))
            for (first, second, flag), difference in zip(pairs, self.framed(pairs, meter), strict=True)
            if difference <= self.limits.frame
        ]

    def framed(self, pairs: Sequence[tuple[int, int, bool]], meter: Meter) -> list[float]:
        """Return the frame differences of pairs, whose second image may be mirrored, from the cache if known."""
        items = self.looks.items
        keys = {pair: f"{items[pair[0]].hash}{items[pair[1]].hash}{'m' * pair[2]}" for pair in pairs}
        known = {
            key: DIFFERENCE.unpack(value)[0]
            for key, value in self.cache.get(FRAMES, list(keys.values()), DIFFERENCE.size).items()
        }
        missing = [pair for pair, key in keys.items() if key not in known]
        meter.advance(len(pairs) - len(missing))
        for part in chunks(missing, CHUNK):
            fresh = {}
            for pair in part:
                fresh[keys[pair]] = frame_difference(self.pictures, *pair)
                meter.advance()
            self.cache.put(FRAMES, [(key, DIFFERENCE.pack(value)) for key, value in fresh.items()])
            known |= fresh
        return [known[keys[pair]] for pair in pairs]

    def by_features(self, distinct: np.ndarray, known: set[tuple[int, int]]) -> list[Pair]:
        """Return the pairs that show the same thing, perhaps cut or moved, among those with near features, without the `known` ones."""
        assert self.features is not None
        if len(distinct) < 2:
            return []
        progress = partial(self.progress, "comparing features")
        nearest, cosines = neighbours(self.features[distinct], NEIGHBOURS, progress)
        candidates: dict[tuple[int, int], float] = {}
        for row, column in zip(*np.nonzero(cosines >= LEAST_COSINE), strict=True):
            first, second = sorted((int(distinct[row]), int(distinct[nearest[row, column]])))
            if (first, second) not in known:
                candidates[first, second] = float(cosines[row, column])
        self.resembling = [
            Pair(first, second, "features", Verdict(min(cosine, 1.0), False))
            for (first, second), cosine in candidates.items()
            if cosine >= RESEMBLING
        ]
        ordered = sorted(candidates, key=lambda pair: (-candidates[pair], pair))
        if self.scenes_only:
            ordered = [pair for pair in ordered if candidates[pair] < RESEMBLING]
        self.skipped = max(0, len(ordered) - MOST_PAIRS)
        chosen = together(np.stack([distinct, distinct[nearest[:, 0]]], axis=1), ordered[:MOST_PAIRS])
        meter = Meter(self.progress, "comparing pictures by their features", len(chosen))
        return [
            Pair(first, second, "features", verdict)
            for (first, second), item in zip(chosen, self.measured(chosen, meter), strict=True)
            if (verdict := decided(item, self.limits))
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


def components(count: int, ends: np.ndarray) -> list[int]:
    """Return the number of each image's component if the pairs in `ends`, integers (pairs, 2), are connected."""
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1].tolist()


def together(near: np.ndarray, pairs: Sequence[P]) -> list[P]:
    """Order pairs so that images connected by `near` follow each other: a burst's pictures are then decoded only once."""
    component = components(int(near.max(initial=0)) + 1, near)
    return sorted(pairs, key=lambda pair: (component[pair[0]], pair))


def grouped(count: int, pairs: Sequence[Pair]) -> list[int]:
    """Return the number of each image's group, which pairs connect."""
    return components(count, np.array([(pair.first, pair.second) for pair in pairs], np.int64).reshape(-1, 2))


def connected(count: int, pairs: Sequence[Pair]) -> Iterator[tuple[list[int], list[Pair]]]:
    """Yield the groups of images that pairs connect: their indices in order, and their pairs."""
    component = grouped(count, pairs)
    ends = sorted({index for pair in pairs for index in (pair.first, pair.second)})
    groups: dict[int, tuple[list[int], list[Pair]]] = {component[index]: ([], []) for index in ends}
    for index, number in enumerate(component):
        if number in groups:
            groups[number][0].append(index)
    for pair in pairs:
        groups[component[pair.first]][1].append(pair)
    yield from groups.values()
