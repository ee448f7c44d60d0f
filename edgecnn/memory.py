"""The memory that decoding an image takes, and its limit on this machine."""

import contextlib
import math
import os
import threading
from collections.abc import Iterator

from PIL import Image

from edgecnn.errors import ImageTooLargeError

MEMORY_LIMIT = "EDGECNN_IMAGE_MIB"

SHARE = 0.5

SMALL_PIXELS = 1_500_000
"""Images up to this size are decoded without checking the memory: they take at most 33 MB."""

SMALL_BYTES = 4 << 20
"""Encoded files up to this size are read without regard to the memory that other threads use."""

MAX_SCANS = 100
"""Each scan of a JPEG passes over the whole image, so a small file with thousands takes minutes. Progressive files have about ten."""

MAX_WORK = 600_000_000
"""Largest number of pixels times scans: ten scans of 60 million pixels, which take two seconds (x86-64, 3 ns for each pixel of a scan)."""

PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Pillow's bytes per pixel, by mode; 4 for all others, such as RGB and LA."""

DECODER_BYTES = {"WEBP": 12, "AVIF": 12}
"""A decoder's bytes per pixel, in addition to Pillow's image. Measured with Pillow 13.0.0 on images of 12 million pixels."""


_shares: dict[int, int] = {}
"""The bytes for the image of each thread in `shared_memory`, by the thread's identifier."""

_freed = threading.Condition()


@contextlib.contextmanager
def shared_memory() -> Iterator[None]:
    """Process one image in each of several threads. If all together would exceed the limit, threads wait until others leave."""
    thread = threading.get_ident()
    with _freed:
        _shares[thread] = 0
    try:
        yield
    finally:
        with _freed:
            if _shares.pop(thread):
                _freed.notify_all()


def await_memory(needed: int) -> bool:
    """In `shared_memory`, wait until `needed` more bytes fit next to the other threads' images, or until there are none.

    Return True if they fit next to others.
    """
    thread = threading.get_ident()
    if thread not in _shares:
        return False
    with _freed:
        while (others := sum(_shares.values()) - _shares[thread]) and others + needed > limit()[0]:
            _freed.wait()
        _shares[thread] += needed
        return others > 0


def limit() -> tuple[float, str]:
    """Return the most bytes that decoding may take, and where the limit comes from: $EDGECNN_IMAGE_MIB, or half of the available memory."""
    text = os.environ.get(MEMORY_LIMIT, "")
    if text.isascii() and text.isdigit():
        return int(text) << 20, f"${MEMORY_LIMIT}"
    available = available_bytes()
    return (math.inf, "") if available is None else (int(SHARE * available), f"{SHARE:.0%} of the available memory")


def require_memory(needed: int) -> None:
    """Raise ImageTooLargeError if `needed` bytes exceed the limit, however long this thread waits for others."""
    if await_memory(needed):
        return
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
