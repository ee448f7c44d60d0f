"""A decoded image becomes a model's input: 8-bit grey or RGB, the only resize of the project, and the codes that a quantized model reads.

Only Pillow does this work, whose bytes are the same on x86-64 and aarch64.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from edgecnn.errors import ImageError
from edgecnn.region import FITS, RESAMPLINGS, ROTATIONS, WHOLE, Region, pixel_box

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


PAD = 128
"""Grey level of letterbox bars and of shifted-in borders: real value 0."""

SIGN = np.uint8(128)
"""The bit that turns a pixel into its code, pixel - 128."""

KEPT = 2
"""The coarse steps, a JPEG's reduced decoding and the means of whole blocks, stop at this many times the result's size: at 2, they cost no
measurable accuracy (docs/figures.md, "The resize").
"""


def resize(
    image: Image.Image | np.ndarray,
    height: int,
    width: int,
    fit: str = "crop",
    rotation: int = 0,
    region: Region = WHOLE,
    resampling: str = "box",
) -> np.ndarray:
    """Resize an image to the model's input, uint8 (height, width, channels), channels 1 or 3. This is the only resize of the project.

    A pixel becomes the mean of the pixels in the area that it covers, or of more, weighted, with bilinear `resampling` (always if the
    image is enlarged): of the whole region, of its centre crop with the model's aspect ratio, or of the region between mid-grey bars. A
    region of the right size passes through unchanged. `image` has mode "L" or "RGB", or is uint8 (rows, columns, 1 or 3); `region` is of
    the rotated image. ValueError unless `fit`, `rotation` and `resampling` are in FITS, ROTATIONS and RESAMPLINGS.
    """
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, received {fit!r}")
    if rotation not in ROTATIONS:
        raise ValueError(f"rotation must be one of {', '.join(map(str, ROTATIONS))}, received {rotation!r}")
    if resampling not in RESAMPLINGS:
        raise ValueError(f"resampling must be one of {', '.join(RESAMPLINGS)}, received {resampling!r}")
    if rotation in (90, 270):
        height, width = width, height
    if region != WHOLE:
        image = cut(image, region, rotation)
    pixels = as_array(image) if isinstance(image, Image.Image) else image
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    rows, columns, _ = pixels.shape
    if (rows, columns) != (height, width):
        if fit == "letterbox":
            pixels = letterbox(pixels, height, width, resampling)
        else:
            if fit == "crop":
                left, top, right, bottom = crop_box((columns, rows), height, width)
                pixels = pixels[top:bottom, left:right]
            pixels = average(pixels, height, width, resampling)
    if rotation:
        pixels = np.ascontiguousarray(np.rot90(pixels, -rotation // 90))
    return pixels


def cut(image: Image.Image | np.ndarray, region: Region, rotation: int = 0) -> Image.Image | np.ndarray:
    """Cut a region out of an image, or out of an array (rows, columns, …) as a view; the arguments are those of `resize`."""
    size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
    left, top, right, bottom = pixel_box(size, region, rotation)
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    return image[top:bottom, left:right]


def average(pixels: np.ndarray, height: int, width: int, resampling: str = "box") -> np.ndarray:
    """Shrink an image, uint8 (rows, columns, 1 or 3), to (height, width) by one of RESAMPLINGS, or enlarge it.

    Blocks of whole rows, then columns, are averaged first, in integers: this is far cheaper than the filter, but may move an edge by a
    quarter of a pixel.
    """
    rows, columns, _ = pixels.shape
    if rows < height or columns < width:
        return _resized(as_image(pixels), height, width, Image.Resampling.BILINEAR)
    even = rows % height == 0 and columns % width == 0
    kept = 1 if even and resampling == "box" else KEPT
    down, across = max(1, rows // (kept * height)), max(1, columns // (kept * width))
    image = as_image(mean_of_rows(pixels, down))
    if across > 1:
        image = image.reduce((across, 1))
    box = (0, 0, columns / across, rows / down)
    return _resized(image, height, width, Image.Resampling[resampling.upper()], box)


def mean_of_rows(pixels: np.ndarray, count: int) -> np.ndarray:
    """Return the means of every `count` rows of uint8 pixels, halves rounded up; the last mean is of the remaining rows."""
    if count == 1:
        return pixels
    rows, columns, channels = pixels.shape
    sums = np.uint16 if count <= 256 else np.uint32  # 256 rows of 255, and a half of 256, are 65,408
    whole = rows // count
    blocks = pixels[: whole * count].reshape(whole, count, columns, channels)  # a view, of a crop too
    means = _divided(np.add.reduce(blocks, axis=1, dtype=sums), count)
    if whole * count == rows:
        return means
    left = _divided(np.add.reduce(pixels[whole * count :], axis=0, dtype=sums), rows - whole * count)
    return np.concatenate([means, left[np.newaxis]])


def _divided(sums: np.ndarray, count: int) -> np.ndarray:
    sums += count // 2
    sums //= count
    return sums.astype(np.uint8)


def _resized(
    image: Image.Image,
    height: int,
    width: int,
    filter_: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    if image.size != (width, height):
        image = image.resize((width, height), filter_, box=box)
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def crop_box(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """Return the largest centred box (left, top, right, bottom), in whole pixels, with aspect ratio width:height, in an image of `size`."""
    scale = min(size[0] / width, size[1] / height)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - across) // 2, (size[1] - down) // 2
    return left, top, left + across, top + down


def letterbox(pixels: np.ndarray, height: int, width: int, resampling: str = "box") -> np.ndarray:
    """Fit the whole image, uint8 (rows, columns, channels), into (height, width), centred, with bars of grey level PAD."""
    rows, columns, channels = pixels.shape
    scale = min(width / columns, height / rows)
    across, down = max(1, round(columns * scale)), max(1, round(rows * scale))
    left, top = (width - across) // 2, (height - down) // 2
    result = np.full((height, width, channels), PAD, np.uint8)
    result[top : top + down, left : left + across] = average(pixels, down, across, resampling)
    return result


def to_codes(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 pixels to the int8 codes that a quantized model reads: code = pixel - 128, one xor per byte; or ImageError.

    With scale 1/128 and zero point 0, its real value is (pixel - 128) / 128; with scale 1 and zero point -128 it is the pixel itself.
    Source: Jacob et al. 2017, equation 1 (arXiv:1712.05877).
    """
    if pixels.dtype != np.uint8:
        raise ImageError(f"pixels must be uint8, received {pixels.dtype}")
    return np.bitwise_xor(pixels, SIGN).view(np.int8)


def to_real(pixels: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Convert pixels to the float32 values that a float model reads: scale * (code - zero_point). Errors as in `to_codes`."""
    return (to_codes(pixels).astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
