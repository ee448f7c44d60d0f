"""The only image-to-tensor code of edgecnn: training, verification and the device all call it.

A pixel is the model's input: the tensor is the resized uint8 image itself, and the int8 code that a quantized model reads is
`pixel - 128`. Only Pillow decodes and resizes, since its bytes were found equal on x86-64 and aarch64.
"""

import contextlib
import functools
import importlib
import io
import logging
import os
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator

import numpy as np
from PIL import Image

from edgecnn.errors import ImageError, ImageTooLargeError
from edgecnn.memory import SMALL_PIXELS, decoding_bytes, require_memory
from edgecnn.modes import as_array, to_mode

MAX_PIXELS = 100_000_000
"""Largest width times height that is decoded, read from the header before any pixel is."""

# Pillow's own limit warns from 89 million pixels on and raises at twice that, which would come before ours with less to say.
Image.MAX_IMAGE_PIXELS = None

# What Pillow warns and logs of damaged metadata would reach standard error: such an image is upright, or an ImageError says it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Largest encoded image that is read."""

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")
"""File names that count as images, in lower case, for training and on the device alike. The content decides how they are decoded."""

FITS = ("crop", "letterbox", "stretch")
"""Ways to fit an image into the model's aspect: centre crop, mid-grey bars, or neither."""

ROTATIONS = (0, 90, 180, 270)
"""Clockwise turns, in degrees, that make an image upright."""

PAD = 128
"""Grey level of letterbox bars and of shifted-in borders: real value 0."""

SIGN = np.uint8(128)
"""The bit that turns a pixel into its code, pixel - 128."""

FORMATS = ("JPEG", "PNG", "BMP", "WebP", "TIFF", "GIF", "AVIF")
READERS = (
    (0, (b"\xff\xd8\xff",), "Jpeg", ".jpg"),
    (0, (b"\x89PNG\r\n\x1a\n",), "Png", ".png"),
    (0, (b"BM",), "Bmp", ".bmp"),
    (0, (b"RIFF",), "WebP", ".webp"),
    (0, (b"II*\0", b"MM\0*"), "Tiff", ".tif"),
    (0, (b"GIF87a", b"GIF89a"), "Gif", ".gif"),
    (4, (b"ftypavif", b"ftypavis"), "Avif", ".avif"),
)
"""Each format's signatures and where they stand, Pillow's plugin that reads it (`Image.open` would import them all, at each start) and
its usual suffix. Of several images in one file the first is read."""

EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation but the first upright; from 5 on width and height change places. EXIF 2.32, tag 274."""

DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, struct.error
)  # fmt: skip
"""What Pillow's decoders raise on damaged files."""


def decode(data: bytes, channels: int = 3, least: tuple[int, int] = (0, 0)) -> Image.Image:
    """Decode an encoded image to grey or RGB, upright.

    EXIF rotation is applied. Transparency is laid over white. 16-bit samples keep their upper 8 bits. A JPEG much larger than `least` is
    decoded at a half, a quarter or an eighth of its size by the decoder itself, which averages as the resize would and
    leaves most of the work out.

    Args:
        data: the bytes of a file of one of FORMATS.
        channels: 1 for grey, 3 for RGB.
        least: (height, width) that the image will be resized to; a reduced one keeps at least twice as much. Zeros reduce nothing.

    Returns:
        A Pillow image of mode "L" or "RGB", at the image's own size or reduced.

    Raises:
        ImageError: if the bytes are not a whole image of a known format.
        ImageTooLargeError: if the header claims more than MAX_PIXELS pixels, or decoding would take more memory than it may
            (`edgecnn.memory.require_memory`).
    """
    with _opened(data) as image:
        full = image.size
        if all(least):
            height, width = reversed(least) if orientation(image) >= 5 else least
            image.draft(None, (KEPT * width, KEPT * height))  # does nothing but for a JPEG
        if full[0] * full[1] > SMALL_PIXELS:
            require_memory(decoding_bytes(image, full, channels, data, orientation(image) > 1))
        image.load()
        turn = TURNS.get(orientation(image))
        decoded = to_mode(image, channels)
        del image  # what it holds has to go before the turn takes as much
    return decoded if turn is None else decoded.transpose(turn)


def probe(data: bytes) -> tuple[int, int, int]:
    """Return an encoded image's upright (height, width, channels) by its header; 1 channel if it is grey.

    Raises:
        ImageError: if the bytes are not an image of a known format.
        ImageTooLargeError: if the header claims more than MAX_PIXELS pixels.
    """
    with _opened(data) as image:
        # Pillow gives a TIFF's size upright
        width, height = reversed(image.size) if orientation(image) >= 5 and image.format != "TIFF" else image.size
        grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        return height, width, 1 if grey else 3


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    plugin = next((plugin for start, signatures, plugin, _ in READERS if data.startswith(signatures, start)), None)
    if plugin is None:
        raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})")
    try:
        with _reader(plugin)(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageTooLargeError(
                    f"the image claims {width}x{height} pixels, more than the {MAX_PIXELS:,} that are decoded"
                )
            yield image
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError(f"the image is too large to decode: {error}") from None
    except DAMAGE as error:
        raise ImageError(f"the image is damaged: {error}") from None


@functools.cache
def _reader(plugin: str) -> Callable[[io.BytesIO], Image.Image]:
    try:
        module = importlib.import_module(f"PIL.{plugin}ImagePlugin")
    except ModuleNotFoundError:
        module = None
    if module is None or not getattr(module, "SUPPORTED", True):
        raise ImageError(
            f"this Pillow cannot read {plugin.upper()}. Convert it to JPEG or PNG, or upgrade: pip install --upgrade Pillow"
        )
    return getattr(module, f"{plugin}ImageFile")


def orientation(image: Image.Image) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1, upright, where it has none that can be read."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return value if value in TURNS else 1


def suffix_of(data: bytes) -> str:
    """Return the usual suffix of an encoded image by how it begins; ".jpg" for one of no known format."""
    return next((suffix for start, signatures, _, suffix in READERS if data.startswith(signatures, start)), ".jpg")


def left_out(names: Collection[str]) -> str:
    """Return a line about files that stand among images and are not read: how many of which suffix, and what to do; "" for none."""
    if not names:
        return ""
    suffixes = (os.path.splitext(name)[1].lower() for name in names)
    kinds = Counter(suffix if suffix and suffix.isprintable() else "without a suffix" for suffix in suffixes)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8))
    more = f" and {len(kinds) - 8:,} other kinds" if len(kinds) > 8 else ""
    return (
        f"{len(names):,} file{'s' if len(names) > 1 else ''} left out ({listed}{more}): only {' '.join(SUFFIXES)} are read. "
        "Convert photos among them to JPEG or PNG."
    )


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if the image has one other than upright."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def resize(
    image: Image.Image | np.ndarray, height: int, width: int, fit: str = "crop", rotation: int = 0
) -> np.ndarray:
    """Resize an image to the model's input: the one resize of the project.

    A pixel becomes the mean of what it covers (bilinear interpolation where the image is enlarged), over the whole image, its
    centre crop of the model's aspect, or the image between mid-grey bars. An image of the right size passes through unchanged.
    The rotation turns the small image.

    Args:
        image: of mode "L" or "RGB", or as a uint8 array (rows, columns, 1 or 3).
        height: rows of the result.
        width: columns of the result.
        fit: one of FITS.
        rotation: one of ROTATIONS.

    Returns:
        uint8 array, shape (height, width, channels), channels 1 or 3.
    """
    if rotation in (90, 270):
        height, width = width, height
    pixels = as_array(image) if isinstance(image, Image.Image) else image
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    rows, columns, _ = pixels.shape
    if (rows, columns) != (height, width):
        if fit == "letterbox":
            pixels = letterbox(pixels, height, width)
        else:
            if fit == "crop":
                left, top, right, bottom = crop_box((columns, rows), height, width)
                pixels = pixels[top:bottom, left:right]
            pixels = average(pixels, height, width)
    if rotation:
        pixels = np.ascontiguousarray(np.rot90(pixels, -rotation // 90))
    return pixels


KEPT = 2
"""How many times the result's size is left by the coarse steps, a JPEG's reduced decoding and the means of whole blocks: at this, they
cost no accuracy that was measurable (README, "The resize")."""


def average(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average an image down to (height, width), or enlarge it.

    First blocks of whole rows are averaged, then blocks of whole columns, in integers: that is much cheaper than the filter that
    does the rest. Where the blocks come out even, there is no rest. The filter takes a block where its centre lies, so that an
    edge may move by half a block: a quarter of a pixel of the result.

    Args:
        pixels: uint8, shape (rows, columns, 1 or 3); a view will do.
        height, width: of the result.

    Returns:
        uint8 array, shape (height, width, 1 or 3).
    """
    rows, columns, _ = pixels.shape
    if rows < height or columns < width:
        return _resized(_as_image(pixels), height, width, Image.Resampling.BILINEAR)
    even = rows % height == 0 and columns % width == 0
    kept = 1 if even else KEPT
    down, across = max(1, rows // (kept * height)), max(1, columns // (kept * width))
    image = _as_image(mean_of_rows(pixels, down))
    if across > 1:
        image = image.reduce((across, 1))
    box = (0, 0, columns / across, rows / down)
    return _resized(image, height, width, Image.Resampling.BOX, box)


def mean_of_rows(pixels: np.ndarray, count: int) -> np.ndarray:
    """Return the means of every `count` rows, halves rounded up; the last mean is of the rows that are left.

    Args:
        pixels: uint8, shape (rows, columns, channels).
        count: at least 1.
    """
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


def _as_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])


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
    """Return the largest centred box (left, top, right, bottom), in whole pixels, of aspect width:height in an image of `size`."""
    scale = min(size[0] / width, size[1] / height)
    across, down = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size[0] - across) // 2, (size[1] - down) // 2
    return left, top, left + across, top + down


def letterbox(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fit the whole image, uint8 (rows, columns, channels), into (height, width), centred, with bars of grey level PAD."""
    rows, columns, channels = pixels.shape
    scale = min(width / columns, height / rows)
    across, down = max(1, round(columns * scale)), max(1, round(rows * scale))
    left, top = (width - across) // 2, (height - down) // 2
    result = np.full((height, width, channels), PAD, np.uint8)
    result[top : top + down, left : left + across] = average(pixels, down, across)
    return result


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read an encoded image's bytes.

    Raises:
        ImageError: if the file cannot be read or is larger than MAX_FILE_BYTES.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            # of a pipe or a device the size is 0; to ask a file for MAX_FILE_BYTES would cost that much memory each time
            if 0 < os.fstat(file.fileno()).st_size <= MAX_FILE_BYTES:
                data = file.readall()
            else:
                data = io.BufferedReader(file).read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"the file has more than {MAX_FILE_BYTES:,} bytes")
    return data


def load(data: bytes, height: int, width: int, channels: int, fit: str = "crop") -> np.ndarray:
    """Decode and resize an encoded image: bytes to the model's input pixels.

    Returns:
        uint8 array, shape (height, width, channels).

    Raises:
        ImageError: as `decode` does.
    """
    return resize(decode(data, channels, (height, width)), height, width, fit)


def to_codes(pixels: np.ndarray) -> np.ndarray:
    """Convert pixels to the int8 codes that a quantized model reads.

    code = pixel - 128, one xor per byte. With scale 1/128 and zero point 0 its real value is
    (pixel - 128) / 128; with scale 1 and zero point -128 it is the pixel itself.

    Args:
        pixels: uint8 array of any shape.

    Returns:
        int8 array, same shape.

    Raises:
        ImageError: if the dtype is not uint8; the message gives the dtype received.

    Source: Jacob et al. 2017, equation 1 (arXiv:1712.05877).
    """
    if pixels.dtype != np.uint8:
        raise ImageError(f"pixels must be uint8, received {pixels.dtype}")
    return np.bitwise_xor(pixels, SIGN).view(np.int8)


def to_real(pixels: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Convert pixels to the real values that a float model reads: scale * (code - zero_point).

    Args:
        pixels: uint8 array of any shape.
        scale: the input scale of the manifest.
        zero_point: the input zero point of the manifest.

    Returns:
        float32 array, same shape.

    Raises:
        ImageError: if the dtype is not uint8.
    """
    return (to_codes(pixels).astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
