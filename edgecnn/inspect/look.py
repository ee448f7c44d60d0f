"""The result of one look at each image: whether it can be read, its size, the hash of its pixels, and its fingerprints."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.data.decoding import picture
from edgecnn.data.items import Item, Meter
from edgecnn.errors import ImageError
from edgecnn.files import sha256
from edgecnn.inspect.cache import Cache
from edgecnn.inspect.hashing import mirrored_hash, perceptual_hash
from edgecnn.tables import Struct

KIND = "look-1"  # the name of cached looks; it changes with what is computed

THUMB = 16  # side of the small picture for comparing candidates for copies

SHARP_SIDE = 160
"""Longer side, in pixels, for measuring sharpness: a photo and its reduced copy are then equally sharp."""

CHUNK = 64  # images to look at before the results are stored

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
    known = cache.get(KIND, list(dict.fromkeys(item.hash for item in items)), LOOK.itemsize)
    table = np.zeros(len(items), LOOK)
    reasons: dict[int, str] = {}
    missing = []
    for index, item in enumerate(items):
        if item.hash in known:
            table[index] = np.frombuffer(known[item.hash], LOOK)[0]
        else:
            missing.append(index)
    meter.advance(len(items) - len(missing))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for part in chunks(missing, CHUNK):
            fresh = []
            for index, looked in zip(part, pool.map(lambda index: one_look(items[index], read), part), strict=True):
                meter.advance()
                if isinstance(looked, str):
                    reasons[index] = looked
                else:
                    table[index] = looked
                    fresh.append((items[index].hash, looked.tobytes()))
            cache.put(KIND, fresh)
    good = [index for index in range(len(items)) if index not in reasons]
    return Looks(
        items=tuple(items[index] for index in good),
        table=table[good],
        broken=tuple((items[index], reason) for index, reason in reasons.items()),
        computed=len(missing),
    )


def chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def one_look(item: Item, read: Callable[[Item], Any]) -> Any:
    """Return an item's look, a scalar of LOOK; or the reason, as text, if it cannot be read."""
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
    result["hash"], result["mirrored"] = perceptual_hash(grey), mirrored_hash(grey)
    small = np.asarray(scaled(grey, SHARP_SIDE), np.float32)
    result["sharpness"] = (steps(small) + steps(small.T)) / 2
    result["spread"] = small.std()
    result["thumb"] = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX))
    return result[()]


def steps(pixels: np.ndarray) -> float:
    return float(np.abs(np.diff(pixels)).mean()) if pixels.shape[1] > 1 else 0.0


def scaled(image: Image.Image, side: int) -> Image.Image:
    """Return an image with its longer side reduced to `side`, a smaller one unchanged. No side drops below 8 unless it was below."""
    factor = side / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(round(factor * length), min(8, length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)
