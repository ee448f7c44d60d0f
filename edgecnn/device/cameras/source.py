"""The interface of every source of frames, and a byte stream split into images: Motion JPEG, and PPM.

The JPEG structure determines the cuts. Marker segments are skipped by their length, since a thumbnail inside one has its own end marker.
Entropy-coded data is searched for the next marker that is neither a stuffed byte nor a restart.

Source: ITU-T T.81, annex B.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from edgecnn.errors import CameraError
from edgecnn.images import MAX_PIXELS


class Frame(NamedTuple):
    """One frame: `image` is an encoded image's bytes, or a uint8 RGB array (height, width, 3).

    `sequence` counts the source's frames from 0, with gaps for frames that it reports as dropped. `monotonic` is `time.monotonic()` when
    the frame was complete. `name` is the path of a frame that is a file.
    """

    sequence: int
    monotonic: float
    image: bytes | np.ndarray
    name: str = ""


class CameraLost(Exception):
    """A source has stopped delivering frames, for one of REASONS. The loop reports it and opens the source again."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Stalled(CameraLost):
    """A source is open but delivers nothing. The text is "SOURCE: WHAT for SECONDS s", then the remark."""

    def __init__(self, source: str, what: str, seconds: float, remark: str = "") -> None:
        super().__init__("stall", f"{source}: {what} for {seconds:g} s{remark}.")
        self.source = source
        self.what = what
        self.remark = remark

    def lasting(self, seconds: float) -> "Stalled":
        return Stalled(self.source, self.what, seconds, self.remark)


class UnreadableFormatError(CameraError):
    """A working camera with formats that edgecnn cannot read; ffmpeg may be able to."""


REASONS = ("stall", "unplugged", "io_error", "ended", "garbage")
"""No frame in time; the device is gone; a read failed; the process or stream ended; the bytes are not frames."""


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """The requested size and rate; 0 keeps the source's own. `user` and `password` are for an address without them."""

    width: int = 640
    height: int = 480
    fps: float = 0.0
    user: str | None = None
    password: str | None = field(default=None, repr=False)


class Source(Protocol):
    """A source of frames, once opened.

    `name` is its name in result lines, without passwords. `about` describes it for people: device, format, size, rate.
    `live` is False for a source that waits for its reader (a video file, `synthetic:`); its frames are not dropped for age.
    `patient` is True for a source whose silence is not a failure (a watched folder): a stall only means that nothing has arrived yet.
    """

    name: str
    about: str
    live: bool
    patient: bool

    @property
    def damaged(self) -> int:
        """How many frames were skipped because they were damaged."""

    def read(self, timeout: float) -> Frame | None:
        """Return the next frame, or None at the end of the source. Raises CameraLost, or Stalled if no frame arrives within `timeout` s."""

    def close(self) -> None:
        """Release the device and end all processes, within a second. A second call does nothing."""


MAX_FRAME_BYTES = 32 * 1024 * 1024  # largest image: a 48-megapixel JPEG at quality 90 is smaller

MAX_BARREN_BYTES = 64 * 1024 * 1024  # maximum bytes without a whole image, including one joined midway

SOI = re.compile(rb"\xff\xd8\xff")

MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

STARTS_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15: one per image

EDGES = re.compile(rb"\xff\xd8(?=\xff)|\xff\xd9")

START, NESTED, END = b"<", b"!", b">"  # an image's start, a start that follows a start, and an end

APP0 = 0xE0  # segments with this code or a higher one hold application data, such as thumbnails


class Edges:
    """Where images start and end in a stream. Each byte is searched once, however often its segment is parsed."""

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._kinds = bytearray()
        self._searched = 0

    def search(self, data: bytearray, base: int, start: int, end: int) -> None:
        """Search `data` from `start` to `end`, inclusive; its first byte is byte number `base` of the stream."""
        for edge in EDGES.finditer(data, max(start, self._searched - base), end + 1):
            kind = END if edge[0] == b"\xff\xd9" else NESTED if self._kinds[-1:] in (START, NESTED) else START
            self._positions.append(base + edge.start())
            self._kinds += kind
            self._searched = base + edge.end()
        self._searched = max(self._searched, base + end - 1)  # the last two bytes may begin a start

    def between(self, start: int, end: int) -> bytearray:
        """Return the kinds of the edges in a segment's content, stream bytes `start` to before `end`. No edge begins at its last byte."""
        return self._kinds[bisect_left(self._positions, start) : bisect_left(self._positions, end - 1)]

    def forget(self, base: int) -> None:
        count = bisect_left(self._positions, base)
        del self._positions[:count], self._kinds[:count]


class MjpegSplitter:
    """Splits a stream of JPEG images, with memory for at most the largest image and one chunk. Broken images count as `damaged`."""

    def __init__(self, max_frame: int = MAX_FRAME_BYTES, max_barren: int = MAX_BARREN_BYTES) -> None:
        self.damaged = 0
        self._max_frame = max_frame
        self._max_barren = max_barren
        self._barren = 0
        self._data = bytearray()
        self._base = 0  # number of the stream's bytes before `_data`
        self._edges = Edges()
        self._restart()

    def _restart(self) -> None:
        self._inside = False  # an image has begun, at byte 0
        self._at = 0  # where parsing continues
        self._before = 0  # the start of the segment that ends at `_at`, or 0
        self._entropy = False
        self._scanned = self._sized = False  # seen a scan, seen a frame header

    def feed(self, chunk: bytes) -> list[bytes]:
        """Add the next bytes and return the images that they complete; CameraLost ("garbage") after too many bytes without an image."""
        self._data += chunk
        self._edges.forget(self._base)
        images: list[bytes] = []
        while self._step(images):
            pass
        if self._inside and len(self._data) > self._max_frame:
            raise CameraLost("garbage", f"an image that does not end within {self._max_frame:,} bytes")
        return images

    def _step(self, images: list[bytes]) -> bool:
        if not self._inside:
            return self._seek()
        if self._entropy:
            match = MARKER.search(self._data, self._at)
            if match is None:
                self._at = max(self._at, len(self._data) - 1)  # a marker may be split between chunks
                return False
            self._at, self._before, self._entropy = match.start(), 0, False
        return self._marker(images)

    def _seek(self) -> bool:
        match = SOI.search(self._data)
        if match is None:
            self._skip(max(0, len(self._data) - 2))
            return False
        self._skip(match.start())
        self._restart()
        self._inside, self._at = True, 2
        return True

    def _skip(self, count: int) -> None:
        self._drop(count)
        self._barren += count
        if self._barren > self._max_barren:
            raise CameraLost("garbage", f"no complete image in {self._barren:,} bytes")

    def _drop(self, count: int) -> None:
        del self._data[:count]
        self._base += count

    def _damage(self, resume: int) -> bool:
        self.damaged += 1
        self._restart()
        self._skip(resume)
        return True

    def _marker(self, images: list[bytes]) -> bool:
        data, at = self._data, self._at
        if len(data) < at + 2:
            return False
        code = data[at + 1]
        # not a marker: the length of the segment before it was wrong
        if data[at] != 0xFF or (code < 0xC0 and code != 0x01):
            return self._damage(self._before + 2 if self._before else at)
        if code == 0xFF:  # a fill byte
            self._at = at + 1
        elif code == 0xD9:
            return self._finish(at + 2, images)
        elif code == 0x01 or 0xD0 <= code <= 0xD7:
            self._at, self._before = at + 2, 0
        elif code == 0xD8 or (code in STARTS_FRAME and self._sized):
            return self._damage(at)  # it belongs to the next image
        else:
            return self._segment(at, code)
        return True

    def _segment(self, at: int, code: int) -> bool:
        data = self._data
        if len(data) < at + 6:
            return False
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        cut = end < at + 4 or data.find(b"\xff\xd8\xff", at + 2, at + 6) >= 0
        if not cut:
            if len(data) <= end:
                return False
            self._edges.search(data, self._base, at + 4, end)
            inner = self._edges.between(self._base + at + 4, self._base + end)
            nested = inner.find(NESTED, 1) >= 0 or inner[-1:] in (START, NESTED)  # not whole thumbnails
            cut = nested or (code < APP0 and bool(inner.strip(END)))
        if cut:  # the next image begins within the segment
            return self._damage(at + 2)
        self._before, self._at = at, end
        self._sized |= code in STARTS_FRAME
        if code == 0xDA:
            self._entropy = self._scanned = True
        return True

    def _finish(self, end: int, images: list[bytes]) -> bool:
        if not (self._scanned and self._sized):  # only tables
            return self._damage(end)
        images.append(bytes(self._data[:end]))
        self._drop(end)
        self._barren = 0
        self._restart()
        return True


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
