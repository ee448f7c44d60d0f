"""A dataset: divided, fingerprinted, and decoded split by split on request."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.data import splits
from edgecnn.data.items import NAMED, Item, LabelledImages, Meter, Progress, unreadable
from edgecnn.errors import DatasetError, ImageError, SplitError, UnknownNameError, nearest
from edgecnn.files import sha256
from edgecnn.modes import as_array
from edgecnn.pixels import resize
from edgecnn.recipe import DataRecipe
from edgecnn.run_info import Conflict, DataInfo, Duplicate

PRECEDENCE = ("test", "validation", "train")
"""An image that is in two splits stays in the one that comes first here."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Decoded images, sorted by content hash.

    `images` is uint8, shape (n, height, width, channels); `classes` is int64, shape (n,), indices into the dataset's
    labels; `sources` names each image.
    """

    images: np.ndarray
    classes: np.ndarray
    sources: tuple[str, ...]


class Dataset:
    """Labelled images, listed, hashed and divided; `open_dataset` makes one.

    Attributes:
        name: short name, such as "cifar10" or a folder's base name.
        title: what cards and reports call the data.
        labels: class names; a class index points into it.
        shape: native (height, width, channels), channels 1 or 3.
        mirror: whether classes survive a left-right flip.
        sizes: images in each split, as listed: before duplicates are kept out.
        hashes: SHA-256 of each split's labels and content hashes.
        fingerprint: SHA-256 of all splits, labels and content hashes.
        duplicates: images kept out of their split; filled by loading "train".
        conflicts: images that are in more than one class; all of them are used.
        skipped: files among the images that are not read as images.
        own_test: whether the source has a test split.
    """

    def __init__(self, listed: LabelledImages, recipe: DataRecipe, for_training: bool = True):
        """Divide the images of a source.

        Raises, for training:
            DatasetError: if a class has no training image, or validation or test are empty.
        """
        self.name = listed.name
        self.title = recipe.title or listed.title
        self.labels = listed.labels
        self.shape = listed.shape
        self.mirror = listed.mirror
        self.skipped = listed.skipped
        self.duplicates: tuple[Duplicate, ...] = ()
        self._recipe = recipe
        self._read = listed.read
        self._items = splits.divide(listed.items, recipe)
        self.own_test = any(item.split == "test" for item in listed.items)
        if for_training:
            splits.check(self._items, self.labels, recipe, self.name)
        self.sizes = {split: len(items) for split, items in self._items.items()}
        self.hashes = {split: splits.split_hash(items, self.labels) for split, items in self._items.items()}
        self.fingerprint = splits.fingerprint(self._items, self.labels)
        self.conflicts = find_conflicts(self._items, self.labels)

    def summary(self) -> list[str]:
        """Return lines for people: images, classes and splits, then the files left out and the images with two labels."""
        counts = Counter(item.label for items in self._items.values() for item in items)
        classes = sorted(range(len(self.labels)), key=lambda index: (counts[index], index))
        small, large = classes[0], classes[-1]
        lines = [
            f"{self.name}: {sum(counts.values()):,} images in {len(self.labels)} classes, {counts[small]:,} ({self.labels[small]}) to "
            f"{counts[large]:,} ({self.labels[large]}) per class; {self.sizes['train']:,} for training, "
            f"{self.sizes['validation']:,} for validation, {self.sizes['test']:,} for test"
        ]
        outside = [path for path in self.skipped if path.lower().endswith(images.SUFFIXES)]
        if outside:
            lines.append(
                f"{self.name}: {len(outside):,} images left out, since they are outside of the class folders: {outside[0]}"
            )
        if others := [path for path in self.skipped if path not in outside]:
            lines.append(f"{self.name}: {images.left_out(others)}")
        if self.conflicts:
            named = "; ".join(f"{item.source} and {item.other_source}" for item in self.conflicts[:NAMED])
            more = f"; and {len(self.conflicts) - NAMED:,} more" if len(self.conflicts) > NAMED else ""
            lines.append(
                f"{self.name}: {len(self.conflicts):,} images have two labels: {named}{more}. Each is used with both; "
                "remove it from the wrong class."
            )
        return lines

    def info(self, used: Mapping[str, int]) -> DataInfo:
        """Return what a run records about its data; `used` counts the images that trained and validated, by split."""
        return DataInfo(
            name=self.name,
            title=self.title,
            native_shape=self.shape,
            labels=tuple(self.labels),
            fingerprint=self.fingerprint,
            split_hashes=self.hashes,
            split_sizes=self.sizes,
            used=used,
            duplicates=self.duplicates,
            conflicts=self.conflicts,
        )

    def load(
        self,
        requested: Sequence[str],
        *,
        height: int,
        width: int,
        channels: int,
        stage: str,
        progress: Progress | None = None,
        other_resize: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> dict[str, Split]:
        """Decode splits at the model's size.

        Exact duplicates of the resized pixels across splits are kept out of training, and out of validation if they
        are in test. To detect them, the splits that come before in PRECEDENCE are decoded too, hashed and dropped.

        Args:
            requested: of "train", "validation" and "test".
            height: rows of the result.
            width: columns of the result.
            channels: 1 for grey, 3 for RGB.
            stage: the stage that loads; only "verify" may have "test".
            progress: called for each decoded image.
            other_resize: how another program brings an image, uint8 (rows, columns, channels), to that size; by default edgecnn's way.

        Returns:
            The splits by name, in the order requested.

        Raises:
            SplitError: if a stage other than "verify" requests "test".
            DatasetError: if images cannot be read (the first five are named), changed since they were listed, or a
                class has no training image left.
            UnknownNameError: if a split is not one of the three.
        """
        self._permit(requested, stage)
        needed = PRECEDENCE[: max(map(PRECEDENCE.index, requested), default=-1) + 1]
        total = sum(self.sizes[split] for split in needed)
        meter = Meter(progress, f"decoding {self.name}", total)
        broken: list[tuple[str, str]] = []
        seen: dict[bytes, Item] = {}
        duplicates: list[Duplicate] = []
        loaded = {}
        for split in needed:
            pixels = self._room(self.sizes[split] if split in requested else 0, height, width, channels)
            kept: list[Item] = []
            for item in self._items[split]:
                meter.advance()
                try:
                    image = self._decode(item, height, width, channels, other_resize)
                except ImageError as error:
                    broken.append((item.source, str(error)))
                    continue
                first = seen.setdefault(hashlib.sha256(image.tobytes()).digest(), item)
                if first.split != split:
                    duplicates.append(
                        Duplicate(source=item.source, split=split, of_source=first.source, of_split=first.split)
                    )
                    continue
                if split in requested:
                    pixels[len(kept)] = image
                    kept.append(item)
            loaded[split] = Split(
                images=pixels[: len(kept)],
                classes=np.array([item.label for item in kept], np.int64),
                sources=tuple(item.source for item in kept),
            )
        if broken:
            raise unreadable(broken, total, self.name)
        if "train" in requested:
            self.duplicates = tuple(duplicates)
            splits.check_classes(loaded["train"].classes.tolist(), self.labels, self._recipe, self.name)
        return {split: loaded[split] for split in requested}

    def _permit(self, requested: Sequence[str], stage: str) -> None:
        for split in requested:
            if split not in splits.SPLITS:
                raise UnknownNameError(f"{split!r} is not a split. {nearest(split, splits.SPLITS)}")
        if "test" in requested and stage != "verify":
            raise SplitError(
                f"the stage {stage!r} requested test images, which only 'verify' may see: "
                "the test split is used once.\nUse the splits 'train' and 'validation'."
            )

    def _room(self, count: int, height: int, width: int, channels: int) -> np.ndarray:
        try:
            return np.empty((count, height, width, channels), np.uint8)
        except (MemoryError, ValueError):  # ValueError: more than can be addressed
            raise DatasetError(
                f"{self.name}: {count:,} images of {height}x{width}x{channels} take "
                f"{count * height * width * channels / 2**30:,.1f} GiB, more than this machine has. Choose a smaller input."
            ) from None

    def _decode(
        self,
        item: Item,
        height: int,
        width: int,
        channels: int,
        other_resize: Callable[[np.ndarray], np.ndarray] | None,
    ) -> np.ndarray:
        data = self._read(item)
        if isinstance(data, np.ndarray):
            image = images.to_mode(Image.fromarray(data[:, :, 0] if data.shape[2] == 1 else data), channels)
        elif sha256(data) != item.hash:
            raise ImageError("it changed after it was listed")
        elif other_resize is None:
            return images.load(data, height, width, channels, self._recipe.fit, self._recipe.region)
        else:
            image = images.decode(data, channels)
        if other_resize is not None:
            return other_resize(as_array(image))
        return resize(image, height, width, self._recipe.fit, region=self._recipe.region)


def find_conflicts(divided: Mapping[str, Sequence[Item]], labels: Sequence[str]) -> tuple[Conflict, ...]:
    """Find identical files under different labels: each item whose content was seen before under another label.

    Args:
        divided: items by split.
        labels: class names.
    """
    first: dict[str, Item] = {}
    conflicts = []
    for items in divided.values():
        for item in items:
            other = first.setdefault(item.hash, item)
            if other.label != item.label:
                conflicts.append(
                    Conflict(
                        source=item.source,
                        label=labels[item.label],
                        other_source=other.source,
                        other_label=labels[other.label],
                    )
                )
    return tuple(conflicts)
