"""Features of each image from an ImageNet network, in which copies lie close, even cut and mirrored ones."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgecnn.data.decoding import picture
from edgecnn.data.items import Item, Meter
from edgecnn.errors import ImageError
from edgecnn.inspect.cache import Cache
from edgecnn.inspect.look import chunks
from edgecnn.networks.pretrained import SOURCES, locate

SOURCE = SOURCES[0]
SIDE = 160  # side of the square that the whole image is resized to

LENGTH = 1280
STORED = np.dtype("<f2")
BATCH = 64
KIND = f"features-1 {SOURCE.sha256[:12]} {SIDE}"
"""The name under which features are cached; it changes with the weights and the size."""

Body = Callable[[np.ndarray], np.ndarray]


def missing_weights() -> bool:
    """Return whether the weights' package is missing."""
    try:
        locate(SOURCE)
    except ModuleNotFoundError:
        return True
    return False


def open_body(side: int = SIDE) -> Body:
    """Build the network, and return a function from uint8 (n, side, side, 3) to float32 features (n, LENGTH)."""
    from edgecnn.networks.efficientnet_lite import efficientnet_lite0_4000kb
    from edgecnn.networks.keras import keras
    from edgecnn.networks.predict import predictor
    from edgecnn.networks.pretrained import load_weights, read_weights

    model = efficientnet_lite0_4000kb(side, side, 3, 2)
    load_weights(model, read_weights(SOURCE))
    return predictor(keras.Model(model.inputs, model.layers[-1].input), 1 / 128, 0, BATCH)


def compute(
    items: Sequence[Item], read: Callable[[Item], Any], cache: Cache, body: Callable[[], Body], meter: Meter
) -> tuple[np.ndarray, int]:
    """Return each image's features, of length 1, and how many were computed; the others come from the cache."""
    known = cache.get(KIND, list(dict.fromkeys(item.hash for item in items)), LENGTH * STORED.itemsize)
    missing = list({item.hash: item for item in items if item.hash not in known}.values())
    meter.advance(len(items) - len(missing))
    if missing:
        network, size = body(), min(BATCH, len(missing))
        with ThreadPoolExecutor(2) as pool:
            for part in chunks(missing, BATCH):
                pictures = np.stack(list(pool.map(lambda item: square(item, read), part)))
                # one batch shape, so that the network is traced only once
                padded = np.concatenate([pictures, np.zeros((size - len(part), SIDE, SIDE, 3), np.uint8)])
                values = network(padded)[: len(part)].astype(STORED)
                fresh = [(item.hash, row.tobytes()) for item, row in zip(part, values, strict=True)]
                cache.put(KIND, fresh)
                known.update(fresh)
                meter.advance(len(part))
    rows = np.stack([np.frombuffer(known[item.hash], STORED) for item in items])
    return unit(rows.astype(np.float32)), len(missing)


def square(item: Item, read: Callable[[Item], Any]) -> np.ndarray:
    """Return an item's pixels for the network, uint8 (SIDE, SIDE, 3)."""
    from edgecnn.pixels import resize

    try:
        return resize(picture(item, read, 3, (SIDE, SIDE)), SIDE, SIDE, "stretch")
    except ImageError as error:
        raise ImageError(f"{item.source}: {error}. Inspect the images again.") from None


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows divided by their lengths, float32; zero rows stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def neighbours(features: np.ndarray, count: int, progress: Callable[[int, int], None]) -> tuple[np.ndarray, np.ndarray]:
    """Return each image's nearest others by cosine of the features, float32 (n, LENGTH) of length 1, nearest first."""
    total = len(features)
    count = min(count, total - 1)
    indices, cosines = np.empty((total, count), np.int64), np.empty((total, count), np.float32)
    for start in range(0, total, 512):
        block = features[start : start + 512] @ features.T
        rows = np.arange(len(block))
        block[rows, rows + start] = -2.0
        chosen = np.argpartition(-block, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(block, chosen, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices[start : start + 512] = np.take_along_axis(chosen, order, axis=1)
        cosines[start : start + 512] = np.take_along_axis(values, order, axis=1)
        progress(min(start + 512, total), total)
    return indices, cosines
