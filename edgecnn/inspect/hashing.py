"""Perceptual hashes: 64 bits that barely change when a picture is compressed or resized, and the search for similar ones."""

from collections.abc import Callable

import numpy as np
from PIL import Image

SIDE = 32  # side, in pixels, of the grey picture whose frequencies make the hash

KEPT = 8  # lowest frequencies to keep on each axis

NEAR = 8
"""Maximum number of the 64 bits in which hashes of candidates differ. Candidates are compared as pictures before they are called copies."""

BLOCK = 64
"""Hashes to compare with all others in one block: 31 MB of differences for 60,000. Larger blocks exceed the caches and are slower."""

MOST_CANDIDATES = 2_000_000
"""Maximum number of candidates: only pictures without content have more, and the pixels still give their copies."""


COSINES = np.cos(np.pi * np.arange(KEPT)[:, np.newaxis] * (2 * np.arange(SIDE)[np.newaxis] + 1) / (2 * SIDE))
"""The first KEPT rows of the DCT-II of SIDE values, float64 (KEPT, SIDE)."""


def perceptual_hash(image: Image.Image) -> int:
    """Return the 64-bit hash of an image of mode "L": which of its 8x8 lowest frequencies are above their median.

    Source: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1 (DCT based hash).
    """
    return _hash(_small(image))


def mirrored_hash(image: Image.Image) -> int:
    return _hash(_small(image)[:, ::-1])


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)


def _hash(pixels: np.ndarray) -> int:
    frequencies = COSINES @ pixels @ COSINES.T
    bits = (frequencies > np.median(frequencies)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(
    hashes: np.ndarray, mirrored: np.ndarray, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the pairs of images whose hashes, uint64 (n,), differ in at most NEAR bits, also with one of them mirrored.

    Returns:
            int64 (pairs, 2), the smaller index first; bool (pairs,): whether the second had to be mirrored; and the number of images not
            compared with later ones, since there were more than MOST_CANDIDATES pairs.
    """
    pairs, flags = [np.empty((0, 2), np.int64)], [np.empty(0, bool)]
    found = compared = 0
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, np.newaxis]
        for flag, others in ((False, hashes[start:]), (True, mirrored[start:])):
            first, second = np.nonzero(np.bitwise_count(block ^ others) <= NEAR)
            later = second > first
            pairs.append(np.stack([first[later], second[later]], axis=1) + start)
            flags.append(np.full(int(later.sum()), flag))
            found += len(pairs[-1])
        compared = min(start + BLOCK, len(hashes))
        progress(compared, len(hashes))
        if found > MOST_CANDIDATES:
            break
    return np.concatenate(pairs), np.concatenate(flags), len(hashes) - compared
