"""Pillow images in the two forms that a model reads, 8-bit grey and RGB, and as arrays."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from edgecnn.errors import ImageError

BAND_PIXELS = 500_000
"""A larger image is converted in bands of this size: otherwise memory would hold all of it in both forms and those in between."""


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert a Pillow image to 8-bit grey (1 channel) or RGB (3), transparency over white; ImageError for modes "I" and "F"."""
    if image.mode in ("I", "F") and image.format != "PNG":  # Pillow below 10.3 opens a 16-bit PNG as "I"
        raise ImageError(
            f"a sample of the image (Pillow's mode {image.mode}) has 32 bits, and it is unknown which value is white. "
            "Convert it to 8 or 16 bits"
        )
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.width * image.height <= BAND_PIXELS:
        return _converted(image, mode)
    result = Image.new(mode, image.size)
    for top, bottom in _bands(image):
        box = (0, top, image.width, bottom)
        result.paste(_converted(image.crop(box), mode), box)
    return result


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == mode else image.convert(mode)


def as_image(pixels: np.ndarray) -> Image.Image:
    """Return pixels, uint8 (height, width, channels), as an image: of mode "L" for one channel."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def as_array(image: Image.Image) -> np.ndarray:
    """Return an image's pixels: uint8, shape (rows, columns) or (rows, columns, 3)."""
    if image.width * image.height <= BAND_PIXELS:
        return np.asarray(image)  # holds the pixels twice for a moment
    shape = (image.height, image.width)
    pixels = np.empty(shape if image.mode == "L" else (*shape, 3), np.uint8)
    for top, bottom in _bands(image):
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, min(top + rows, image.height)
