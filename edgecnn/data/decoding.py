"""Decode items to pixels at one size: find damaged ones and duplicates, and keep the others in memory, or in a mapped file if there are
many.

Images of all classes can count alike: the same number is drawn per class, or each class weighs the same.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.data.items import Item, Meter
from edgecnn.errors import DatasetError, ImageError, ImageTooLargeError, OutputError
from edgecnn.files import cache_home, sha256
from edgecnn.images import available_bytes
from edgecnn.pixels import as_array, as_image, resize, to_mode
from edgecnn.recipe import DataRecipe
from edgecnn.region import Region, pixel_box
from edgecnn.run_info import Duplicate, Unreadable
from edgecnn.tables import Struct

SHARE = 0.25
"""Fraction of the available memory that decoded images may take. Beyond it, they go to a mapped file, whose pages the system writes out and
reads again as it needs memory; the rest is for the network, its gradients and batches.
"""


def rooms(
    name: str, counts: Sequence[int], shape: tuple[int, int, int], note: Callable[[str], None] = lambda text: None
) -> list[np.ndarray]:
    """Return an uninitialised uint8 array (count, height, width, channels) for each count; OutputError if their file cannot be made.

    They are in memory if together they take at most SHARE of what is available, else in a temporary file that disappears with the process.
    """
    (height, width, channels), count = shape, sum(counts)
    size, available = count * math.prod(shape), available_bytes()
    about = f"{name}: {count:,} images of {height}x{width}x{channels} take {_gib(size)}"
    if available is None or size <= SHARE * available:
        try:
            return [np.empty((each, *shape), np.uint8) for each in counts]
        except (MemoryError, ValueError):  # ValueError: more than can be addressed
            raise DatasetError(f"{about}, more than this machine has. Choose a smaller input.") from None
    limit, folder = f"more than {SHARE:.0%} of the available memory ({_gib(available)})", cache_home()
    whole = _mapped(folder, (count, *shape), f"{about}, {limit}, so they need a file")
    kind, memory = file_system(folder), ""
    if kind in ("tmpfs", "ramfs"):
        memory = f" WARNING: it is in memory ({kind}); set XDG_CACHE_HOME to a folder on a disk."
    note(
        f"{name}: {_gib(size)} of decoded images, {limit}, are in a temporary file in {folder}, "
        f"which is gone when the command ends.{memory}"
    )
    return np.split(whole, np.cumsum(counts)[:-1])


def _mapped(folder: Path, shape: tuple[int, ...], need: str) -> np.ndarray:
    """Return an array in an unnamed temporary file; if that fails, the message begins with `need`."""
    size = math.prod(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OutputError(
                f"{need}; {folder} has {_gib(free)} left.\n"
                "Free some space, set XDG_CACHE_HOME to a folder on a larger disk, or choose a smaller input."
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), size)
            return np.memmap(file, np.uint8, "r+", shape=shape).view(np.ndarray)
    except OutputError:
        raise
    except (OSError, ValueError, OverflowError) as error:
        raise OutputError(
            f"{need}, which cannot be made in {folder}: {getattr(error, 'strerror', None) or error}.\n"
            "Set XDG_CACHE_HOME to a folder with that much space, or choose a smaller input."
        ) from None


def _reserve(descriptor: int, size: int) -> None:
    """Reserve a file's space on the disk; without it, a mapped page could later find no space, which ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = bytes(1 << 20)  # macOS has no such call
    for start in range(0, size, len(block)):
        os.pwrite(descriptor, block[: size - start], start)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def file_system(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the kind of file system that a path is on, such as "ext4" or "tmpfs"; "" if the system does not report it."""
    try:
        device = os.stat(path).st_dev
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split()[:1] for line in lines if line.split()[2:3] == [number]]
    return kinds[-1][0] if kinds and kinds[-1] else ""


class Split(Struct):
    """Decoded images by content hash: uint8 (n, height, width, channels), classes int64 (n,), and each image's source."""

    images: np.ndarray
    classes: np.ndarray
    sources: tuple[str, ...]


def picture(
    item: Item, read: Callable[[Item], bytes | np.ndarray], channels: int, least: tuple[int, int] = (0, 0)
) -> Image.Image:
    """Return an item as an upright image before the resize, at least twice `least`; ImageError if it is unreadable or has changed."""
    data = read(item)
    if isinstance(data, np.ndarray):
        return to_mode(as_image(data), channels)
    require_listed(item, data)
    return images.decode(data, channels, least)


def region_of(item: Item, read: Callable[[Item], bytes | np.ndarray], region: Region) -> np.ndarray:
    """Return the pixels of an upright item inside a region, uint8 (rows, columns, channels). Errors as `picture`."""
    data = read(item)
    channels = data.shape[2] if isinstance(data, np.ndarray) else images.probe(data)[2]
    image = picture(item, lambda _: data, channels)
    part = image.crop(pixel_box(image.size, region))
    return as_array(part).reshape(part.height, part.width, channels)


def require_listed(item: Item, data: bytes) -> None:
    """Raise ImageError if an item's encoded bytes are not those that were listed."""
    if sha256(data) != item.hash:
        raise ImageError("it changed after it was listed")


@dataclass(kw_only=True)
class Decoder:
    """Decodes one split after another to `shape`, (height, width, channels).

    `damaged` items are damaged everywhere; `lost` ones may be readable later or on another machine.
    """

    read: Callable[[Item], bytes | np.ndarray]
    recipe: DataRecipe
    shape: tuple[int, int, int]
    other_resize: Callable[[np.ndarray], np.ndarray] | None
    damaged: list[Unreadable] = field(default_factory=list)
    lost: list[Unreadable] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    _seen: dict[bytes, Item] = field(default_factory=dict)

    def split(self, items: Sequence[Item], room: np.ndarray, meter: Meter) -> Split:
        """Decode the items of a split that are whole and in no earlier split. `room` takes the pixels: uint8, at least as many."""
        kept: list[Item] = []
        for item in items:
            meter.advance()
            image = self.pixels(item)
            if image is None:
                continue
            first = self._seen.setdefault(hashlib.sha256(image.tobytes()).digest(), item)
            if first.split != item.split:
                self.duplicates.append(
                    Duplicate(source=item.source, split=item.split, of_source=first.source, of_split=first.split)
                )
                continue
            room[len(kept)] = image
            kept.append(item)
        pixels = room[: len(kept)]
        pixels.flags.writeable = False  # other stages of a command get the same array
        return Split(
            images=pixels,
            classes=np.array([item.label for item in kept], np.int64),
            sources=tuple(item.source for item in kept),
        )

    def pixels(self, item: Item) -> np.ndarray | None:
        """Return an item's pixels at the size; None if it cannot be read, which adds it to one of the lists."""
        found = self.lost
        try:
            data = self.read(item)
            if not isinstance(data, np.ndarray):
                require_listed(item, data)
            found = self.damaged
            return self._resized(data)
        except ImageError as error:
            found = self.lost if isinstance(error, ImageTooLargeError) else found
            found.append(Unreadable(source=item.source, split=item.split, reason=str(error)))
            return None

    def _resized(self, data: bytes | np.ndarray) -> np.ndarray:
        height, width, channels = self.shape
        fit, region, resampling = self.recipe.fit, self.recipe.region, self.recipe.resampling
        if not isinstance(data, np.ndarray) and self.other_resize is None:
            return images.load(data, height, width, channels, fit, region, resampling)
        image = to_mode(as_image(data), channels) if isinstance(data, np.ndarray) else images.decode(data, channels)
        if self.other_resize is not None:
            return self.other_resize(as_array(image))
        return resize(image, height, width, fit, region=region, resampling=resampling)


def balanced(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw the indices of `count` images, the same number per class while they last, interleaved.

    `classes` is an int array, shape (n,), of images in an order that does not depend on where they are stored.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(classes))
    turn = np.empty(len(order), np.int64)  # 0 for the first image drawn of its class, 1 for the second, …
    for label in np.unique(classes):
        of_class = classes[order] == label
        turn[of_class] = np.arange(np.sum(of_class))
    return order[np.lexsort((classes[order], turn))][:count]


def some(split: Split, count: int, seed: int) -> Split:
    """Return `count` images of a split, `balanced`, in their order."""
    chosen = np.sort(balanced(split.classes, count, seed))
    sources = tuple(split.sources[index] for index in chosen)
    return Split(images=split.images[chosen], classes=split.classes[chosen], sources=sources)


UNBALANCED = 3
"""Classes are unbalanced if the largest has at least this many times as many images as the smallest."""


def is_unbalanced(counts: Sequence[int] | np.ndarray) -> bool:
    """Return whether classes of these numbers of images are unbalanced; classes without images do not count."""
    present = [count for count in counts if count]
    return bool(present) and max(present) >= UNBALANCED * min(present)


def class_weights(classes: np.ndarray, rule: str = "auto") -> np.ndarray:
    """Return a weight for each image, float64 (n,), of mean 1: each class's total is the same if the classes are unbalanced.

    Otherwise, or with the rule "none", all weights are 1.
    """
    if rule == "none" or not is_unbalanced(np.bincount(classes)):
        return np.ones(len(classes))
    return equal_weights(classes)


def equal_weights(classes: np.ndarray) -> np.ndarray:
    """Return a weight for each image, float64 (n,), of mean 1, so that each class's total is the same."""
    present, of, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weights: np.ndarray = (len(classes) / len(present) / counts)[of]
    return weights


def weight_of_class(classes: np.ndarray, count: int, rule: str) -> np.ndarray | None:
    """Return the same by class, float64 (count,), 1 for a class without images; None if all weights are 1."""
    weights = class_weights(classes, rule)
    if np.all(weights == 1):
        return None
    found = np.ones(count)
    found[classes] = weights
    return found
