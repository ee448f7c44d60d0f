"""One look at each image: whether it can be read, its size, the hash of its pixels, its fingerprints and its features.

Perceptual hashes are 64 bits that barely change when a picture is compressed or resized. In the features of an ImageNet network, copies
lie close, even cut and mirrored ones. Results are stored by content: a second or resumed inspection computes nothing twice.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn

from edgecnn import images
from edgecnn.data.decoding import picture
from edgecnn.data.items import Item, Meter
from edgecnn.errors import ImageError
from edgecnn.files import cache_home, sha256
from edgecnn.networks.pretrained import SOURCES
from edgecnn.pixels import resize
from edgecnn.region import WHOLE, Region, region_text
from edgecnn.runtime.decision import unit_rows
from edgecnn.tables import Struct

FILE = "inspect-1.sqlite"  # in the user's cache folder; may be deleted to free space

CHUNK = 64  # results to compute before they are stored


class Cache:
    """Bytes by kind and content hash, in one file. The key of a pair is the hashes of both, one after the other.

    Values of one region of the images are kept apart from those of whole images. A file that cannot be used is replaced by memory, and
    `note` is called with a line that says so. `computed` is how many values of a kind were not stored.
    """

    def __init__(self, note: Callable[[str], None] = lambda text: None, region: Region = WHOLE) -> None:
        path, self._part = cache_home() / FILE, "" if region == WHOLE else f" {region_text(region)}"
        self.computed: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(str(path))
        except (OSError, sqlite3.Error) as error:
            note(f"{path} cannot be used ({error}), so results are not kept for next time.")
            self._open(":memory:")

    def _open(self, path: str) -> None:
        self._database = sqlite3.connect(path, timeout=30)
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS entries (kind TEXT, hash TEXT, value BLOB, PRIMARY KEY (kind, hash)) WITHOUT ROWID"
        )

    def get(self, kind: str, hashes: Iterable[str]) -> dict[str, bytes]:
        """Return the stored values of some hashes, by hash."""
        known: dict[str, bytes] = {}
        query = "SELECT value FROM entries WHERE kind = ? AND hash = ?"
        with contextlib.suppress(sqlite3.Error):  # the entries of a damaged file are computed again
            for key in hashes:
                if row := self._database.execute(query, (kind + self._part, key)).fetchone():
                    known[key] = row[0]
        return known

    def put(self, kind: str, values: Iterable[tuple[str, bytes]]) -> None:
        """Store values by hash, safely even if the process is killed next. A full disk stores nothing, silently."""
        with contextlib.suppress(sqlite3.Error), self._database:
            rows = [(kind + self._part, key, value) for key, value in values]
            self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    def completed(
        self, kind: str, keys: Sequence[str], compute: Callable[[Sequence[int]], Iterable[Any]], meter: Meter
    ) -> list[Any]:
        """Return the value of each key, stored or computed.

        `compute` returns the values of some keys, by their places. They are stored before the next CHUNK, if they are bytes.
        """
        known: dict[str, Any] = dict(self.get(kind, keys))
        missing = list({key: place for place, key in enumerate(keys) if key not in known}.values())
        meter.advance(len(keys) - len(missing))
        self.computed[kind] = len(missing)
        for part in chunks(missing, CHUNK):
            fresh = {}
            for place, value in zip(part, compute(part), strict=True):
                fresh[keys[place]] = value
                meter.advance()
            self.put(kind, [(key, value) for key, value in fresh.items() if isinstance(value, bytes)])
            known |= fresh
        return [known[key] for key in keys]

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


def perceptual_hashes(image: Image.Image) -> list[int]:
    """Return the 64-bit hashes of an image of mode "L" and of its mirror image: which of its 8x8 lowest frequencies are above their median.

    Source: Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1 (DCT based hash).
    """
    small = np.asarray(image.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX), np.float64)
    both = [dctn(pixels)[:KEPT, :KEPT] for pixels in (small, small[:, ::-1])]
    return [int.from_bytes(np.packbits(one > np.median(one)).tobytes(), "big") for one in both]


def near_pairs(
    hashes: np.ndarray, mirrored: np.ndarray, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, int]:
    """Return the pairs of images whose hashes, uint64 (n,), differ in at most NEAR bits, also with one of them mirrored.

    Returns:
            int64 (pairs, 3): the smaller index, the other one, and 1 if this one had to be mirrored, else 0; and the number of images not
            compared with later ones, since there were more than MOST_CANDIDATES pairs.
    """
    pairs, compared = [np.empty((0, 3), np.int64)], 0
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, np.newaxis]
        for flag, others in enumerate((hashes[start:], mirrored[start:])):
            first, second = np.nonzero(np.bitwise_count(block ^ others) <= NEAR)
            found = np.stack([first + start, second + start, np.full(len(first), flag)], axis=1)
            pairs.append(found[first < second])
        compared = min(start + BLOCK, len(hashes))
        progress(compared, len(hashes))
        if sum(map(len, pairs)) > MOST_CANDIDATES:
            break
    return np.concatenate(pairs), len(hashes) - compared


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


def look_at(items: Sequence[Item], read: Callable[[Item], Any], cache: Cache, meter: Meter) -> Looks:
    """Look at all items of a dataset; those that are not in the cache are decoded."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:

        def look(part: Sequence[int]) -> Iterator[bytes | str]:
            return pool.map(lambda place: one_look(items[place], read), part)

        seen = cache.completed(LOOK_KIND, [item.hash for item in items], look, meter)
    looks = list(zip(items, seen, strict=True))
    return Looks(
        items=tuple(item for item, one in looks if isinstance(one, bytes)),
        table=np.frombuffer(b"".join(one for one in seen if isinstance(one, bytes)), LOOK),
        broken=tuple((item, one) for item, one in looks if isinstance(one, str)),
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


def scaled(image: Image.Image, side: int, enlarge: bool = False) -> Image.Image:
    """Return an image with its longer side reduced to `side`, or also enlarged. No side drops below 8 unless it was below."""
    factor = side / max(image.size)
    if factor >= 1 and not enlarge:
        return image
    width, height = (max(round(factor * length), min(8, length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX if factor <= 1 else Image.Resampling.BILINEAR)


SOURCE = SOURCES[0]
FEATURES_SIDE = 160  # side of the square that the whole image is resized to

STORED = np.dtype("<f2")
FEATURES_KIND = f"features-1 {SOURCE.sha256[:12]} {FEATURES_SIDE}"
"""The name under which features are cached; it changes with the weights and the size."""

Body = Callable[[np.ndarray], np.ndarray]


def missing_weights() -> bool:
    return find_spec(SOURCE.package) is None


def open_body() -> Body:
    """Read the network, and return a function from uint8 (n, height, width, 3) to float32 features (n, 1280)."""
    from edgecnn.networks.blocks import frozen_network
    from edgecnn.networks.predict import predictor

    network = frozen_network("efficientnet_lite0", 3)
    return predictor(lambda pixels, training: network(pixels)["efficientnet_lite0_4000kb"], 1 / 128, 0, CHUNK)


def compute(
    items: Sequence[Item], read: Callable[[Item], Any], cache: Cache, body: Callable[[], Body], meter: Meter
) -> np.ndarray:
    """Return each image's features, of length 1, from the cache or computed. `body` returns the network, opened by its first call."""
    with ThreadPoolExecutor(2) as pool:

        def features(part: Sequence[int]) -> list[bytes]:
            pixels = np.stack(list(pool.map(lambda place: square(items[place], read), part)))
            return [row.tobytes() for row in body()(pixels).astype(STORED)]

        hashes = [item.hash for item in items]
        found = cache.completed(FEATURES_KIND, hashes, features, meter)
    return unit_rows(np.stack([np.frombuffer(one, STORED) for one in found]).astype(np.float32))


def square(item: Item, read: Callable[[Item], Any]) -> np.ndarray:
    """Return an item's pixels for the network, uint8 (SIDE, SIDE, 3)."""
    try:
        return resize(picture(item, read, 3, (FEATURES_SIDE, FEATURES_SIDE)), FEATURES_SIDE, FEATURES_SIDE, "stretch")
    except ImageError as error:
        raise ImageError(f"{item.source}: {error}. Inspect the images again.") from None


def neighbours(features: np.ndarray, count: int, progress: Callable[[int, int], None]) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's nearest others by cosine of the features, float32 (n, length) of length 1, nearest first."""
    total, indices, cosines = len(features), [], []
    count = min(count, total - 1)
    for start in range(0, total, 512):
        block = features[start : start + 512] @ features.T
        np.fill_diagonal(block[:, start:], -2.0)
        nearest = np.argpartition(-block, range(count), axis=1)[:, :count]
        indices.append(nearest.copy())  # a view would keep the whole block
        cosines.append(np.take_along_axis(block, indices[-1], axis=1))
        progress(min(start + 512, total), total)
    return np.concatenate(indices), np.concatenate(cosines)
