"""Decode items to pixels at one size: find damaged ones and duplicates, and keep the others."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.data.items import Item, Meter
from edgecnn.errors import ImageError, ImageTooLargeError
from edgecnn.files import sha256
from edgecnn.modes import as_array, as_image, to_mode
from edgecnn.pixels import resize
from edgecnn.recipe import DataRecipe
from edgecnn.region import Region, pixel_box
from edgecnn.run_info import Duplicate, Unreadable
from edgecnn.tables import Struct


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
        fit, region = self.recipe.fit, self.recipe.region
        if not isinstance(data, np.ndarray) and self.other_resize is None:
            return images.load(data, height, width, channels, fit, region)
        image = to_mode(as_image(data), channels) if isinstance(data, np.ndarray) else images.decode(data, channels)
        if self.other_resize is not None:
            return self.other_resize(as_array(image))
        return resize(image, height, width, fit, region=region)
