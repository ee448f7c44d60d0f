"""Features that frozen ImageNet networks compute from photos: every rung of a family in one pass, cached in a run."""

import copy
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.data import Dataset, Progress
from edgecnn.data.decoding import balanced
from edgecnn.files import sha256, write_atomic
from edgecnn.networks.backbone import build_backbone, is_backbone
from edgecnn.networks.efficientnet_lite import all_features
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import real_input
from edgecnn.networks.pretrained import load_weights, read_weights, source_of

SMALLEST = 96  # side at which photos are first decoded, to find the readable ones

BATCH = 32

HASHES = "hashes"


class Photos:
    """At most `count` readable photos of some splits: their places, hashes, groups and classes."""

    def __init__(
        self, dataset: Dataset, splits: Sequence[str], channels: int, seed: int, count: int, progress: Progress | None
    ) -> None:
        self.dataset, self.channels, self.progress = dataset, channels, progress
        loaded = dataset.load(
            splits, height=SMALLEST, width=SMALLEST, channels=channels, stage="train", progress=progress
        )
        hashes = {(split, item.source): item.hash for split in splits for item in dataset.items[split]}
        places = [(split, source) for split in splits for source in loaded[split].sources]
        classes = np.concatenate([loaded[split].classes for split in splits])
        self.places, self.classes = places, classes
        self.hashes = [hashes[place] for place in places]
        self.groups = [dataset.sides[one].group if one in dataset.sides else one for one in self.hashes]
        self._draw(count, seed)

    def some(self, count: int, seed: int) -> "Photos":
        """Return at most `count` of these photos, drawn like these."""
        fewer = copy.copy(self)
        fewer._draw(count, seed)
        return fewer

    def _draw(self, count: int, seed: int) -> None:
        drawn = np.sort(balanced(self.classes, count, seed))
        self.places = [self.places[index] for index in drawn]
        self.hashes = [self.hashes[index] for index in drawn]
        self.groups = [self.groups[index] for index in drawn]
        self.classes = self.classes[drawn]

    def at_size(
        self, places: Sequence[tuple[str, str]], shape: tuple[int, int, int], progress: Progress | None = None
    ) -> np.ndarray:
        """Decode photos as uint8, each of `shape` (height, width, channels), in the given order."""
        by_split = {split: [source for one, source in places if one == split] for split, _ in places}
        pixels = {
            split: iter(self.dataset.at_size(split, sources, shape, stage="train", progress=progress))
            for split, sources in by_split.items()
        }
        return np.stack([next(pixels[split]) for split, _ in places])


def frozen_features(
    family: str,
    size: tuple[int, int],
    photos: Photos,
    reading: tuple[float, int],
    kept: Path,
    options: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Return each rung's features of the photos, float32 (n, length). The folder `kept` caches them; missing ones are computed.

    A backbone's file, with the `options` of its recipe, is a family of one.

    `size` is the input's (height, width), `reading` the scale and zero point of its code. Raises NetworkError or ModuleNotFoundError
    like `pretrained.read_weights`.
    """
    source, label = source_of(family if is_backbone(family) else f"{family}_"), Path(family).name
    assert source is not None
    key = sha256(f"{source.sha256 or options} {size} {photos.channels} {reading} {BATCH}".encode())[:12]
    path = kept / f"{label}-{size[0]}x{size[1]}-{key}.npz"
    rows, values = read_features(path)
    missing = {one: index for index, one in enumerate(photos.hashes) if one not in rows}
    if missing:
        fresh = computed(family, size, photos, list(missing.values()), reading, options or {})
        values = {rung: np.concatenate([*([values[rung]] if rows else []), more]) for rung, more in fresh.items()}
        rows |= {one: len(rows) + number for number, one in enumerate(missing)}
        write_features(path, rows, values)
    chosen = [rows[one] for one in photos.hashes]
    return {rung: found[chosen].astype(np.float32) for rung, found in values.items()}


def computed(
    family: str,
    size: tuple[int, int],
    photos: Photos,
    indices: Sequence[int],
    reading: tuple[float, int],
    options: Mapping[str, str],
) -> dict[str, np.ndarray]:
    from edgecnn.networks.keras import tf

    shape = (*size, photos.channels)
    rungs, model = trained_features(family, shape, options)

    @tf.function(reduce_retracing=True)
    def forward(images):
        return tf.nest.flatten(model(real_input(images, *reading), training=False))  # a list of one is a tensor

    parts: list[list[np.ndarray]] = [[] for _ in rungs]
    for start in range(0, len(indices), BATCH):
        part = indices[start : start + BATCH]
        images = photos.at_size([photos.places[index] for index in part], shape)
        # batches of one shape: the network is traced once, and an image's features do not depend on the number of images
        padded = np.concatenate([images, np.zeros((BATCH - len(part), *shape), np.uint8)])
        for values, output in zip(parts, forward(tf.constant(padded)), strict=True):
            values.append(output.numpy()[: len(part)].astype(np.float16))
        if photos.progress:
            photos.progress(f"features of {Path(family).name} at {size[1]}x{size[0]}", start + len(part), len(indices))
    return {rung: np.concatenate(values) for rung, values in zip(rungs, parts, strict=True)}


def trained_features(
    family: str, shape: tuple[int, int, int], options: Mapping[str, str]
) -> tuple[tuple[str, ...], Any]:
    """Return a family's rungs, and a model with trained weights from an input to a list of outputs: each rung's features."""
    if is_backbone(family):
        model = build_backbone(Path(family), *shape, 2, options)
        return (Path(family).name,), keras.Model(model.inputs, [model.layers[-1].input])
    rungs, model = all_features(family, *shape)
    source = source_of(rungs[0])
    assert source is not None
    load_weights(model, read_weights(source))
    return rungs, model


def read_features(path: Path) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Return each image's row by its hash, and each rung's features. Both are empty if the file is missing or unusable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name: file[name] for name in file.files}
        rows = {one: row for row, one in enumerate(values.pop(HASHES).tolist())}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}, {}
    return (rows, values) if all(len(one) == len(rows) for one in values.values()) else ({}, {})


def write_features(path: Path, rows: Mapping[str, int], values: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{HASHES: np.array(list(rows), np.str_), **values})
    write_atomic(path, buffer.getvalue())
