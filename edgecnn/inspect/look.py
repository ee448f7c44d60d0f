"""One look at each image: whether it can be read, its size, the hash of its pixels, its fingerprints and its features.

Perceptual hashes are 64 bits that barely change when a picture is compressed or resized. In the features of an ImageNet network, copies
lie close, even cut and mirrored ones. Results are stored by content: a second or resumed inspection computes nothing twice.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.data.decoding import picture
from edgecnn.data.items import Item, Meter
from edgecnn.errors import ImageError
from edgecnn.files import cache_home, sha256
from edgecnn.networks.pretrained import SOURCES, locate
from edgecnn.region import WHOLE, Region, region_text
from edgecnn.tables import Struct

FILE = "inspect-1.sqlite"  # in the user's cache folder; may be deleted to free space

ASKED = 500  # keys of one query: below SQLite's own limit in every version

CHUNK = 64  # results to compute before they are stored


class Cache:
    """Bytes by kind and content hash, in one file. The key of a pair is the hashes of both, one after the other.

    Values of one region of the images are kept apart from those of whole images. A file that cannot be used is replaced by memory, and
    `note` is called with a line that says so.
    """

    def __init__(
        self, note: Callable[[str], None] = lambda text: None, region: Region = WHOLE, path: Path | None = None
    ) -> None:
        self._path = path or cache_home() / FILE
        self._part = "" if region == WHOLE else f" {region_text(region)}"
        try:
            self._database = self._opened(self._path)
        except (OSError, sqlite3.Error) as error:
            note(f"{self._path} cannot be used ({error}), so results are not kept for next time.")
            self._database = self._opened(":memory:")

    @staticmethod
    def _opened(path: Path | str) -> sqlite3.Connection:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=30)
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS entries (kind TEXT, hash TEXT, value BLOB, PRIMARY KEY (kind, hash)) WITHOUT ROWID"
        )
        database.commit()
        return database

    def get(self, kind: str, hashes: Sequence[str], size: int | None = None) -> dict[str, bytes]:
        """Return the stored values of some hashes, by hash, except those that do not have `size` bytes."""
        known: dict[str, bytes] = {}
        for part in chunks(hashes, ASKED):
            query = f"SELECT hash, value FROM entries WHERE kind = ? AND hash IN ({','.join('?' * len(part))})"
            with contextlib.suppress(sqlite3.Error):  # the entries of a damaged file are computed again
                rows = self._database.execute(query, (kind + self._part, *part)).fetchall()
                known.update((key, value) for key, value in rows if size is None or len(value) == size)
        return known

    def put(self, kind: str, values: Iterable[tuple[str, bytes]]) -> None:
        """Store values by hash, safely even if the process is killed next. A full disk stores nothing, silently."""
        with contextlib.suppress(sqlite3.Error), self._database:
            rows = [(kind + self._part, key, value) for key, value in values]
            self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    def completed(
        self,
        kind: str,
        keys: Sequence[str],
        compute: Callable[[Sequence[int]], Iterable[Any]],
        meter: Meter,
        size: int | None = None,
    ) -> tuple[list[Any], int]:
        """Return the value of each key, and how many were computed; the others, of `size` bytes, were stored.

        `compute` returns the values of some keys, by their places. They are stored before the next CHUNK, if they are bytes.
        """
        known: dict[str, Any] = dict(self.get(kind, list(dict.fromkeys(keys)), size))
        missing = [place for place, key in enumerate(keys) if key not in known]
        meter.advance(len(keys) - len(missing))
        for part in chunks(missing, CHUNK):
            fresh = {}
            for place, value in zip(part, compute(part), strict=True):
                fresh[keys[place]] = value
                meter.advance()
            self.put(kind, [(key, value) for key, value in fresh.items() if isinstance(value, bytes)])
            known |= fresh
        return [known[key] for key in keys], len(missing)

    def close(self) -> None:
        self._database.close()


def chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


HASH_SIDE = 32  # side, in pixels, of the grey picture whose frequencies make the hash

KEPT = 8  # lowest frequencies to keep on each axis

NEAR = 8
"""Maximum number of the 64 bits in which hashes of candidates differ. Candidates are compared as pictures before they are called copies."""

BLOCK = 64
"""Hashes to compare with all others in one block: 31 MB of differences for 60,000. Larger blocks exceed the caches and are slower."""

MOST_CANDIDATES = 2_000_000
"""Maximum number of candidates: only pictures without content have more, and the pixels still give their copies."""


COSINES = np.cos(np.pi * np.arange(KEPT)[:, np.newaxis] * (2 * np.arange(HASH_SIDE)[np.newaxis] + 1) / (2 * HASH_SIDE))
"""The first KEPT rows of the DCT-II of SIDE values, float64 (KEPT, SIDE)."""


def perceptual_hashes(image: Image.Image) -> list[int]:
    """Return the 64-bit hashes of an image of mode "L" and of its mirror image: which of its 8x8 lowest frequencies are above their median.

    Source: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1 (DCT based hash).
    """
    small = np.asarray(image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX), np.float64)
    both = [COSINES @ pixels @ COSINES.T for pixels in (small, small[:, ::-1])]
    return [int.from_bytes(np.packbits(one > np.median(one)).tobytes(), "big") for one in both]


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


LOOK_KIND = "look-1"  # the name of cached looks; it changes with what is computed

THUMB = 16  # side of the small picture for comparing candidates for copies

SHARP_SIDE = 160
"""Longer side, in pixels, for measuring sharpness: a photo and its reduced copy are then equally sharp."""

LOOK = np.dtype([
    ("width", "<u4"), ("height", "<u4"), ("channels", "u1"), ("pixels", "S64"), ("hash", "<u8"), ("mirrored", "<u8"),
    ("sharpness", "<f4"), ("spread", "<f4"), ("thumb", "u1", (THUMB, THUMB, 3)),
])  # fmt: skip
"""A look, in the cache's format: `pixels` is the SHA-256 of the decoded upright pixels, in RGB, with their size; `sharpness` the mean
difference of neighbouring pixels and `spread` the standard deviation, both in grey levels."""


class Looks(Struct):
    """All readable items, their looks as an array of LOOK, and the other items with the reasons."""

    items: tuple[Item, ...]
    table: np.ndarray
    broken: tuple[tuple[Item, str], ...]
    computed: int


def look_at(items: Sequence[Item], read: Callable[[Item], Any], cache: Cache, meter: Meter) -> Looks:
    """Look at all items of a dataset; those that are not in the cache are decoded."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:

        def look(part: Sequence[int]) -> Iterator[bytes | str]:
            return pool.map(lambda place: one_look(items[place], read), part)

        seen, computed = cache.completed(LOOK_KIND, [item.hash for item in items], look, meter, LOOK.itemsize)
    looks = list(zip(items, seen, strict=True))
    return Looks(
        items=tuple(item for item, one in looks if isinstance(one, bytes)),
        table=np.frombuffer(b"".join(one for one in seen if isinstance(one, bytes)), LOOK),
        broken=tuple((item, one) for item, one in looks if isinstance(one, str)),
        computed=computed,
    )


def one_look(item: Item, read: Callable[[Item], Any]) -> bytes | str:
    """Return an item's look, the bytes of a LOOK; or the reason, as text, if it cannot be read."""
    try:
        data = read(item)
        image = picture(item, lambda _: data, 3)
        channels = data.shape[2] if isinstance(data, np.ndarray) else images.probe(data)[2]
    except ImageError as error:
        return str(error)
    grey = image.convert("L")
    result = np.zeros((), LOOK)
    result["width"], result["height"], result["channels"] = *image.size, channels
    result["pixels"] = sha256(f"{image.size}".encode() + image.tobytes()).encode()
    result["hash"], result["mirrored"] = perceptual_hashes(grey)
    small = np.asarray(scaled(grey, SHARP_SIDE), np.float32)
    result["sharpness"] = (steps(small) + steps(small.T)) / 2
    result["spread"] = small.std()
    result["thumb"] = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX))
    return result.tobytes()


def steps(pixels: np.ndarray) -> float:
    return float(np.abs(np.diff(pixels)).mean()) if pixels.shape[1] > 1 else 0.0


def scaled(image: Image.Image, side: int) -> Image.Image:
    """Return an image with its longer side reduced to `side`, a smaller one unchanged. No side drops below 8 unless it was below."""
    factor = side / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(round(factor * length), min(8, length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


SOURCE = SOURCES[0]
FEATURES_SIDE = 160  # side of the square that the whole image is resized to

LENGTH = 1280
STORED = np.dtype("<f2")
FEATURES_KIND = f"features-1 {SOURCE.sha256[:12]} {FEATURES_SIDE}"
"""The name under which features are cached; it changes with the weights and the size."""

Body = Callable[[np.ndarray], np.ndarray]


def missing_weights() -> bool:
    """Return whether the weights' package is missing."""
    try:
        locate(SOURCE)
    except ModuleNotFoundError:
        return True
    return False


def open_body(side: int = FEATURES_SIDE) -> Body:
    """Build the network, and return a function from uint8 (n, side, side, 3) to float32 features (n, LENGTH)."""
    from edgecnn.networks.blocks import efficientnet_lite0_4000kb
    from edgecnn.networks.keras import keras
    from edgecnn.networks.predict import predictor
    from edgecnn.networks.pretrained import load_weights, read_weights

    model = efficientnet_lite0_4000kb(side, side, 3, 2)
    load_weights(model, read_weights(SOURCE))
    return predictor(keras.Model(model.inputs, model.layers[-1].input), 1 / 128, 0, CHUNK)


def compute(
    items: Sequence[Item], read: Callable[[Item], Any], cache: Cache, body: Callable[[], Body], meter: Meter
) -> tuple[np.ndarray, int]:
    """Return each image's features, of length 1, and how many were computed; the others come from the cache.

    `body` returns the network, opened by its first call.
    """
    distinct = {item.hash: item for item in items}
    hashes, batch = list(distinct), np.empty(0)
    meter.advance(len(items) - len(distinct))
    with ThreadPoolExecutor(2) as pool:

        def features(part: Sequence[int]) -> list[bytes]:
            nonlocal batch
            if not len(batch):  # one shape for all batches, so that the network is traced only once
                batch = np.empty((len(part), FEATURES_SIDE, FEATURES_SIDE, 3), np.uint8)
            for row, pixels in enumerate(pool.map(lambda place: square(distinct[hashes[place]], read), part)):
                batch[row] = pixels
            return [row.tobytes() for row in body()(batch)[: len(part)].astype(STORED)]

        found, computed = cache.completed(FEATURES_KIND, hashes, features, meter, LENGTH * STORED.itemsize)
    rows = dict(zip(hashes, found, strict=True))
    every = np.stack([np.frombuffer(rows[item.hash], STORED) for item in items])
    return unit(every.astype(np.float32)), computed


def square(item: Item, read: Callable[[Item], Any]) -> np.ndarray:
    """Return an item's pixels for the network, uint8 (SIDE, SIDE, 3)."""
    from edgecnn.pixels import resize

    try:
        return resize(picture(item, read, 3, (FEATURES_SIDE, FEATURES_SIDE)), FEATURES_SIDE, FEATURES_SIDE, "stretch")
    except ImageError as error:
        raise ImageError(f"{item.source}: {error}. Inspect the images again.") from None


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows divided by their lengths, float32; zero rows stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def neighbours(features: np.ndarray, count: int, progress: Callable[[int, int], None]) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's nearest others by cosine of the features, float32 (n, LENGTH) of length 1, nearest first."""
    total, indices, cosines = len(features), [], []
    count = min(count, total - 1)
    for start in range(0, total, 512):
        block = features[start : start + 512] @ features.T
        np.fill_diagonal(block[:, start:], -2.0)
        chosen = np.argpartition(-block, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(block, chosen, axis=1), axis=1, kind="stable")
        indices.append(np.take_along_axis(chosen, order, axis=1))
        cosines.append(np.take_along_axis(block, indices[-1], axis=1))
        progress(min(start + 512, total), total)
    return np.concatenate(indices), np.concatenate(cosines)
