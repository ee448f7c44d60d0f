"""Split a byte stream of PPM images (P6: a header with the size, then RGB bytes) into its images."""

import re

import numpy as np

from edgecnn.device.cameras.source import CameraLost
from edgecnn.images import MAX_PIXELS

HEADER = re.compile(rb"P6\s(\d{1,6})\s(\d{1,6})\s255\s")
HEADER_BYTES = 24


class PpmSplitter:
    """Splits a stream of PPM images that arrives in chunks of any size. Memory stays below two images, since the size comes first."""

    damaged = 0

    def __init__(self) -> None:
        self._header = b""
        self._image = np.empty((0, 0, 3), np.uint8)
        self._filled = 0

    def feed(self, chunk: bytes) -> list[np.ndarray]:
        """Add the next bytes and return the images that they complete, uint8 (height, width, 3); CameraLost for bytes that are not PPM."""
        images = []
        rest = memoryview(chunk)
        while rest:
            if not self._image.size:
                rest = self._begin(rest)
                continue
            flat = self._image.reshape(-1)
            count = min(len(rest), flat.size - self._filled)
            flat[self._filled : self._filled + count] = np.frombuffer(rest[:count], np.uint8)
            self._filled += count
            rest = rest[count:]
            if self._filled == flat.size:
                images.append(self._image)
                self._image = np.empty((0, 0, 3), np.uint8)
        return images

    def _begin(self, rest: memoryview) -> memoryview:
        had = len(self._header)
        self._header += rest[: HEADER_BYTES - had].tobytes()
        match = HEADER.match(self._header)
        if match is None:
            if len(self._header) < HEADER_BYTES and b"P6".startswith(self._header[:2]):
                return rest[len(rest) :]
            raise CameraLost("garbage", f"not a PPM image: it begins with {self._header[:8]!r}")
        width, height = int(match[1]), int(match[2])
        if not 0 < width * height <= MAX_PIXELS:
            raise CameraLost("garbage", f"the PPM image has {width}x{height} pixels; expected 1 to {MAX_PIXELS:,}")
        self._header, self._image, self._filled = b"", np.empty((height, width, 3), np.uint8), 0
        return rest[match.end() - had :]
