"""Decode a file to an upright image, only here and only with Pillow, whose bytes are the same on x86-64 and aarch64.

Before that, estimate the memory that this takes, and compare it with the limit on this machine.
"""

import contextlib
import functools
import importlib
import io
import math
import os
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator

import numpy as np
from PIL import Image

from edgecnn.errors import ImageError, ImageTooLargeError
from edgecnn.files import open_regular
from edgecnn.labels import plural
from edgecnn.pixels import KEPT, resize, to_mode
from edgecnn.region import WHOLE, Region, whole_size

MEMORY_LIMIT = "EDGECNN_IMAGE_MIB"

SHARE = 0.5

SMALL_PIXELS = 1_500_000
"""Images up to this size are decoded without checking the memory: they take at most 33 MB."""

MAX_SCANS = 100
"""Each scan of a JPEG passes over the whole image, so a small file with thousands takes minutes. Progressive files have about ten."""

MAX_WORK = 600_000_000
"""Largest number of pixels times scans: ten scans of 60 million pixels, which take two seconds (x86-64, 3 ns for each pixel of a scan)."""

PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Pillow's bytes per pixel, by mode; 4 for all others, such as RGB and LA."""

DECODER_BYTES = {"WEBP": 12, "AVIF": 12}
"""A decoder's bytes per pixel, in addition to Pillow's image. Measured with Pillow 13.0.0 on images of 12 million pixels."""


def limit() -> tuple[float, str]:
    """Return the most bytes that decoding may take, and where the limit comes from: $EDGECNN_IMAGE_MIB, or half of the available memory."""
    text = os.environ.get(MEMORY_LIMIT, "")
    if text.isascii() and text.isdigit():
        return int(text) << 20, f"${MEMORY_LIMIT}"
    available = available_bytes()
    return (math.inf, "") if available is None else (int(SHARE * available), f"{SHARE:.0%} of the available memory")


def require_memory(needed: int) -> None:
    """Raise ImageTooLargeError if `needed` bytes exceed the limit."""
    allowed, source = limit()
    if needed > allowed:
        mib = -(-needed >> 20)
        raise ImageTooLargeError(
            f"decoding it would take about {mib:,} MiB; the limit is {int(allowed) >> 20:,} MiB ({source}). "
            f"Use a smaller image, or set {MEMORY_LIMIT}={mib}"
        )


def decoding_bytes(image: Image.Image, full: tuple[int, int], channels: int, data: bytes, turned: bool) -> int:
    """Return about how much memory it takes at most to decode an image, after `draft`, and resize it, without the encoded file.

    `full` is its (width, height) before `draft`; `turned` is whether its EXIF orientation rotates or mirrors it.
    """
    stored = PIXEL_BYTES.get(image.mode, 4)
    mode, result = ("L", 1) if channels == 1 else ("RGB", 4)
    converting = stored + (0 if image.mode == mode else result)
    pixel = max(
        DECODER_BYTES.get(image.format or "", 0) + stored, converting, 2 * result if turned else 0, result + channels
    )
    coefficients = 0
    if image.format == "JPEG" and not in_one_scan(data):
        coefficients = 2 * len(image.getbands()) * full[0] * full[1]  # for the whole image, however small the result
    return image.width * image.height * pixel + coefficients


def in_one_scan(data: bytes) -> bool:
    """Return whether a JPEG is decoded line by line: a baseline JPEG whose first scan has all of its components."""
    position, components, end = 2, 0, len(data) - 9
    while position < end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in (0xC0, 0xC1):
            components = data[position + 9]
        elif marker == 0xDA:
            return components == data[position + 4]
        position += 2 + (data[position + 2] << 8 | data[position + 3])
    return False


def require_few_scans(data: bytes, pixels: int) -> None:
    """Raise ImageTooLargeError if a JPEG of this many pixels has more than MAX_SCANS scans, or needs more than MAX_WORK."""
    limit = min(MAX_SCANS, MAX_WORK // pixels)
    if not in_one_scan(data) and (count := scans(data, limit)) > limit:
        raise ImageTooLargeError(
            f"the JPEG has {count:,} scans; the limit is {limit} for {pixels:,} pixels. Save it again as a baseline JPEG"
        )


def scans(data: bytes, limit: int) -> int:
    """Return the number of scans of a JPEG; up to `limit`, pictures in its metadata or after its end may count too."""
    most = data.count(b"\xff\xda")
    if most <= limit:
        return most
    import re  # imported here because few files have this many scans

    marker = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # without those that are inside a scan or have no length
    count, position = 0, 2
    while (found := marker.search(data, position)) and found[0] != b"\xff\xd9":
        count += found[0] == b"\xff\xda"
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return count


def available_bytes(root: str = "/") -> int | None:
    """Return the bytes available without swapping: MemAvailable, or a lower limit of a control group; None if unknown."""
    free = [int(line.split()[1]) * 1024 for line in _lines(root, "proc/meminfo") if line.startswith("MemAvailable:")]
    return min([*free, *_limits(root)], default=None)


def _limits(root: str) -> Iterator[int]:
    """Yield the limits of this process's control group and its parents, version 2 or 1."""
    for line in _lines(root, "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        groups = path.strip("/").split("/")
        for depth in range(len(groups) + 1):
            texts = _lines(root, os.path.join(base, *groups[:depth], name))
            yield from (int(text) for text in texts if text.isdigit())  # "max" is not a number


def _lines(root: str, path: str) -> list[str]:
    with contextlib.suppress(OSError), open(os.path.join(root, path), encoding="ascii", errors="replace") as file:
        return file.read().splitlines()
    return []


MAX_PIXELS = 100_000_000
"""Largest width times height to decode; it is read from the header, before any pixel."""

MAX_SIDE = 65_535
"""Largest width and height to decode, which is JPEG's own limit: Pillow needs up to 24 bytes per row, however short."""

MAX_FILE_BYTES = 256 * 1024 * 1024

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")
"""Suffixes of files that count as images, in lower case. The content decides the decoder."""

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
"""Each format's signatures and their offset, the Pillow plugin that reads it (`Image.open` would import all plugins, at each start) and its
usual suffix. If a file contains several images, the first is read."""

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
"""What makes an image upright, for each EXIF orientation but the first; from 5 on, it swaps width and height. EXIF 2.32, tag 274."""

DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, struct.error, Warning
)  # fmt: skip
"""What Pillow's decoders raise on damaged files; a warning if the program that uses edgecnn turns warnings into errors."""


def decode(data: bytes, channels: int = 3, least: tuple[int, int] = (0, 0)) -> Image.Image:
    """Decode an encoded image to grey (1 channel) or RGB (3), upright by its EXIF: a Pillow image of mode "L" or "RGB".

    Transparency is laid over white. 16-bit samples keep their upper 8 bits. `least` is the (height, width) that the whole image will be
    resized to: a much larger JPEG is decoded at a half, a quarter or an eighth of its size, at least twice `least`; zeros reduce nothing.

    ImageError if the bytes are not a complete image of a known format, ImageTooLargeError above MAX_PIXELS, MAX_SIDE, the limits on
    a JPEG's scans or the memory limit.
    """
    with _opened(data) as image:
        full = image.size
        if image.format == "JPEG":
            require_few_scans(data, full[0] * full[1])
            if all(least):
                height, width = reversed(least) if orientation(image) >= 5 else least
                image.draft(None, (KEPT * width, KEPT * height))
        if full[0] * full[1] > SMALL_PIXELS:
            # data after a PNG's pixels may rotate it, and Pillow decodes all of it to see that
            turned = image.format == "PNG" or orientation(image) > 1
            require_memory(decoding_bytes(image, full, channels, data, turned))
        image.load()
        turn = TURNS.get(orientation(image))
        decoded = to_mode(image, channels)
        del image  # its memory must be freed before the rotation takes as much
    return decoded if turn is None else decoded.transpose(turn)


def probe(data: bytes) -> tuple[int, int, int]:
    """Return an encoded image's upright (height, width, channels) from its header; 1 channel if it is grey. Errors as in `decode`."""
    with _opened(data) as image:
        late = image.format == "PNG" and metadata_after_pixels(data)
        if late:
            require_memory(decoding_bytes(image, image.size, 3, data, turned=True))
        # Pillow reports the upright size of a TIFF
        turned = orientation(image, by_header=not late) >= 5 and image.format != "TIFF"
        width, height = reversed(image.size) if turned else image.size
        grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        return height, width, 1 if grey else 3


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    if not data:
        raise ImageError("the image is empty, it has 0 bytes: copy it again, or delete it")
    plugin = next((plugin for start, signatures, plugin, _ in READERS if data.startswith(signatures, start)), None)
    if plugin is None:
        raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})")
    try:
        with _reader(plugin)(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                limit = f"{MAX_PIXELS:,}, or {MAX_SIDE:,} in a row or a column"
                raise ImageTooLargeError(f"the image claims {width}x{height} pixels, more than the limit of {limit}")
            yield image
    except ImageError:
        raise
    except (MemoryError, Image.DecompressionBombError) as error:
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


def orientation(image: Image.Image, by_header: bool = False) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1, upright, if it has none. A PNG is decoded to find it, unless `by_header`."""
    try:
        value = (Image.Image.getexif(image) if by_header else image.getexif()).get(EXIF_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return value if value in TURNS else 1


def metadata_after_pixels(data: bytes) -> bool:
    """Return whether a PNG may have EXIF or XMP after its pixels, judging by the data after the last chunk that looks like pixels."""
    last = data.rfind(b"IDAT")
    rest = data[last + 8 + int.from_bytes(data[last - 4 : last], "big") :] if last >= 4 else b""
    return any(name in rest for name in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))


def suffix_of(data: bytes) -> str:
    """Return the usual suffix of an encoded image, from its first bytes; ".jpg" for an unknown format."""
    return next((suffix for start, signatures, _, suffix in READERS if data.startswith(signatures, start)), ".jpg")


def left_out(names: Collection[str]) -> str:
    """Return a line about files that are not read as images: counts by suffix, and what to do; "" without such files."""
    if not names:
        return ""
    suffixes = (os.path.splitext(name)[1].lower() for name in names)
    kinds = Counter(suffix if suffix and suffix.isprintable() else "without a suffix" for suffix in suffixes)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8))
    more = f" and {len(kinds) - 8:,} other kinds" if len(kinds) > 8 else ""
    return (
        f"{plural(len(names), 'file')} left out ({listed}{more}): only {' '.join(SUFFIXES)} are read. "
        "Convert photos among them to JPEG or PNG."
    )


def upright(image: Image.Image) -> Image.Image:
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read an encoded image's bytes; ImageError if the file cannot be read or is larger than MAX_FILE_BYTES."""
    try:
        with open_regular(path) as file:
            # a file of /proc has size 0; reading MAX_FILE_BYTES from a file would allocate that much memory each time
            size = os.fstat(file.fileno()).st_size
            data = file.read() if 0 < size <= MAX_FILE_BYTES else io.BufferedReader(file).read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ImageTooLargeError(f"the file has more than {MAX_FILE_BYTES:,} bytes")
    return data


def load(
    data: bytes,
    height: int,
    width: int,
    channels: int,
    fit: str = "crop",
    region: Region = WHOLE,
    resampling: str = "box",
) -> np.ndarray:
    """Decode and resize an encoded image: bytes to the model's input pixels, uint8 (height, width, channels). Errors as in `decode`."""
    decoded = decode(data, channels, whole_size(height, width, region))
    return resize(decoded, height, width, fit, region=region, resampling=resampling)
