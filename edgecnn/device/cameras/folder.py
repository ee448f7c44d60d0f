"""Cameras without a camera: folders that play or are watched, and synthetic frames for tests and benchmarks.

A watched folder is polled, without inotify, so that network folders work too.
"""

import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Stalled
from edgecnn.device.stream.sources import expand
from edgecnn.errors import CameraError, ImageError, nearest
from edgecnn.images import SUFFIXES, decode, read_file
from edgecnn.labels import plural

OPTIONS = ("fps", "loop")

FPS = 1.0


class Files:
    """What sources of image files have in common: they wait for their reader, and `close` wakes a waiting read."""

    live = False
    patient = True
    damaged = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self._count = 0
        self._closed = threading.Event()

    def close(self) -> None:
        self._closed.set()


class Folder(Files):
    """A folder's images, and those of its sub-folders, each once, in the order of their paths, with the path as `name`.

    `fps` is the highest rate: a slow reader misses nothing. The source ends after the last image; with loop=1 it begins again.
    """

    def __init__(self, text: str, settings: CameraSettings) -> None:
        super().__init__(f"folder:{text}")
        folder, _, query = (text, "", "") if os.path.isdir(text) else text.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for name in options:
            if name not in OPTIONS:
                raise CameraError(f"{self.name}: no option {name!r}. {nearest(name, OPTIONS)}")
        fps = rate(self.name, options.get("fps")) or settings.fps or FPS
        if options.get("loop", "1") != "1":
            raise CameraError(f"{self.name}: loop is {options['loop']!r}; expected 1, or no loop for an end.")
        self._loop = "loop" in options
        self._paths = [path for path, error in expand([folder], ()) if error is None] if os.path.isdir(folder) else []
        if not self._paths:
            raise CameraError(
                f"{self.name}: no images in {folder or 'no folder'}; expected such as folder:photos?fps=2."
            )
        self._interval = 1 / fps
        self._due = time.monotonic()
        self.about = f"{plural(len(self._paths), 'image')} of the folder {folder} at {fps:g} frames/s"

    def read(self, timeout: float) -> Frame | None:
        """Return the next image's bytes; for an unreadable file, they are empty."""
        if self._count >= len(self._paths) and not self._loop:
            return None
        wait = self._due - time.monotonic()
        if self._closed.wait(min(max(wait, 0.0), timeout)):
            raise CameraLost("ended", f"{self.name} was closed.")
        if wait > timeout:
            raise Stalled(self.name, "no image", timeout)
        now = time.monotonic()
        self._due = max(self._due + self._interval, now)
        path = self._paths[self._count % len(self._paths)]
        self._count += 1
        try:
            data = read_file(path)
        except ImageError:
            data = b""
        return Frame(self._count - 1, now, data, path)


def rate(source: str, text: str | None) -> float:
    """Return a rate in frames per second, 0 without one; CameraError unless it is a number above 0."""
    if text is None:
        return 0.0
    try:
        fps = float(text) if text.isascii() else 0.0
    except ValueError:
        fps = 0.0
    if not 0 < fps < 1000:
        raise CameraError(f"{source}: fps is {text!r}; expected a number above 0 and below 1000, such as 2 or 0.1.")
    return fps


LOOK_S = 0.1

SETTLED_S = 0.2  # a file with a valid end is complete once its size and date have not changed for this long

GIVEN_UP_S = 5.0  # a file without a valid end is passed on unmodified after this long without a change

TEMPORARY = (".", "~", "#", "_tmp", "tmp.")  # prefixes of the names of files that are still being written


class Version(NamedTuple):
    """A file's version, by its metadata: renaming keeps it, writing changes it."""

    inode: int
    size: int
    changed_ns: int


_seen: dict[str, set[Version]] = {}
"""Each folder's files that existed at first or were returned, so that reopening it neither skips nor repeats one."""


class Watch(Files):
    """New images in a folder, oldest first, each returned once, when complete. Never ends. CameraError if the folder is not readable."""

    def __init__(self, text: str, settings: CameraSettings) -> None:
        super().__init__(f"watch:{text}")
        if not text:
            raise CameraError("watch: no folder given; expected a readable folder, such as watch:/srv/incoming.")
        self.about = f"new images in the folder {text}"
        self._folder = Path(text)
        self._key = os.path.realpath(text)
        self._growing: dict[str, tuple[Version, float]] = {}
        self._ready: deque[str] = deque()
        try:
            present = self._look()
        except OSError as error:
            raise CameraError(f"{self.name}: {error.strerror or error}; expected a readable folder.") from None
        _seen.setdefault(self._key, set(present.values()))

    def _look(self) -> dict[str, Version]:
        present = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name
                if name.lower().startswith(TEMPORARY) or os.path.splitext(name)[1].lower() not in SUFFIXES:
                    continue
                try:
                    if entry.is_file():
                        status = entry.stat()
                        present[name] = Version(status.st_ino, status.st_size, status.st_mtime_ns)
                except OSError:  # it has just been removed
                    continue
        return present

    def read(self, timeout: float) -> Frame:
        """Return the next new image: the file's bytes, with its path as `name`. For an unreadable file, the bytes are empty."""
        deadline = time.monotonic() + timeout
        while True:
            frame = self._next()
            if frame is not None:
                return frame
            left = deadline - time.monotonic()
            if left <= 0:
                raise Stalled(self.name, "no new image", timeout)
            if self._closed.wait(min(LOOK_S, left)):
                raise CameraLost("ended", f"{self.name} was closed.")

    def _next(self) -> Frame | None:
        if not self._ready:
            self._collect()
        while self._ready:
            path = self._folder / self._ready.popleft()
            try:
                data = read_file(path)
            except ImageError:
                if not os.path.lexists(path):
                    continue  # it was removed before we read it
                data = b""
            self._count += 1
            return Frame(self._count - 1, time.monotonic(), data, str(path))
        return None

    def _collect(self) -> None:
        try:
            present = self._look()
        except FileNotFoundError:
            raise CameraLost("unplugged", f"{self.name}: the folder is gone.") from None
        except OSError as error:
            raise CameraLost("io_error", f"{self.name}: {error.strerror or error}.") from None
        seen, now = _seen[self._key], time.monotonic()
        if present:  # an empty folder may be the mount point of a disk that comes back
            seen.intersection_update(present.values())
        growing = {}
        for name, version in sorted(present.items(), key=lambda item: (item[1].changed_ns, item[0])):
            if version in seen:
                continue
            before, since = self._growing.get(name, (version, now))
            if before != version:
                since = now
            age = now - since
            if age >= GIVEN_UP_S or (age >= SETTLED_S and has_end(self._folder / name, version.size)):
                seen.add(version)
                self._ready.append(name)
            else:
                growing[name] = version, since
        self._growing = growing


def has_end(path: Path, size: int) -> bool:
    """Return whether an image file ends as its format requires; the content is not checked."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(max(0, size - 64))
            tail = file.read()
    except OSError:
        return False
    whole = {
        b"\xff\xd8": b"\xff\xd9" in tail,
        b"\x89PNG": b"IEND\xae\x42\x60\x82" in tail,
        b"BM": int.from_bytes(head[2:6], "little") <= size,
        b"RIFF": int.from_bytes(head[4:8], "little") + 8 <= size,
    }
    return any(ends for start, ends in whole.items() if head.startswith(start))


SYNTHETIC_OPTIONS = ("frames", "fps", "pattern", "seed")
LARGEST = 8192

BARS = ((255, 255, 255), (255, 255, 0), (0, 255, 255), (0, 255, 0), (255, 0, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0))
"""Colours of the bars, from left to right. Each frame shifts the pattern by one more column."""

NOISE_ROWS = 256  # each frame starts one row further down, up to this many, so a frame costs only a copy


class Synthetic:
    """Computed frames. The same text, a size and then options after a question mark, gives the same frames on every machine.

    `frames` limits their number (0: no limit), and `fps` makes the source live. `pattern` is "bars" (the default), "noise" or the path of
    an image to repeat. `seed` is for the noise. Size and rate default to the settings.
    """

    patient = False
    damaged = 0

    def __init__(self, text: str, settings: CameraSettings) -> None:
        size, _, query = text.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for name in options:
            if name not in SYNTHETIC_OPTIONS:
                raise CameraError(f"synthetic:{text}: no option {name!r}. {nearest(name, SYNTHETIC_OPTIONS)}")
        match = re.fullmatch(r"(\d+)x(\d+)|", size)
        if match is None:
            expected = "expected WIDTHxHEIGHT, such as synthetic:640x480?frames=100."
            raise CameraError(f"synthetic:{text}: the size is {size!r}; {expected}")
        width, height = (int(match[1]), int(match[2])) if size else (settings.width or 640, settings.height or 480)
        if not (0 < width <= LARGEST and 0 < height <= LARGEST):
            raise CameraError(f"synthetic:{text}: {width}x{height} is out of range; both sides must be 1 to {LARGEST}.")
        self._frames = int(number(text, options, "frames", 0))
        fps = number(text, options, "fps", settings.fps)
        pattern = options.get("pattern", "bars")
        self._make = maker(pattern, width, height, int(number(text, options, "seed", 0)))
        self._interval = 1 / fps if fps else 0.0
        self._started = time.monotonic()
        self._count = 0
        self.live = fps > 0
        self.name = f"synthetic:{text}"
        height, width = self._make(0).shape[:2]
        rate = f" at {fps:g} frames/s" if fps else ""
        frames = f", {plural(self._frames, 'frame')}" if self._frames else ""
        self.about = f"synthetic frames: {pattern}, {width}x{height}{rate}{frames}"

    def read(self, timeout: float) -> Frame | None:
        now = time.monotonic()
        if self._interval:  # a slow reader misses frames, as with a camera
            self._count = max(self._count, int((now - self._started) / self._interval))
        if self._frames and self._count >= self._frames:
            return None
        if self._interval:
            wait = self._started + self._count * self._interval - now
            if wait > timeout:
                time.sleep(max(0.0, timeout))
                raise Stalled(self.name, "no frame", timeout, f"; the next one is due in {wait:.3g} s")
            if wait > 0:
                time.sleep(wait)
                now = time.monotonic()
        self._count += 1
        return Frame(self._count - 1, now, self._make(self._count - 1))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def number(text: str, options: dict[str, str], name: str, default: float) -> float:
    value = options.get(name)
    if value is None:
        return default
    pattern = r"\d+(\.\d+)?" if name == "fps" else r"\d+"
    if not re.fullmatch(pattern, value):
        kind = "a number" if name == "fps" else "a whole number"
        raise CameraError(f"synthetic:{text}: {name} is {value!r}; expected {kind} of at least 0.")
    return float(value)


def maker(pattern: str, width: int, height: int, seed: int) -> Callable[[int], np.ndarray]:
    """Return a function from a frame's number to its pixels, uint8 (height, width, 3)."""
    if pattern == "bars":
        colours = np.array(BARS, np.uint8)[np.arange(width) * len(BARS) // width]
        twice = np.concatenate([colours, colours])
        return lambda count: np.repeat(twice[np.newaxis, count % width : count % width + width], height, axis=0)
    if pattern == "noise":
        noise = np.random.default_rng(seed).integers(0, 256, (height + NOISE_ROWS, width, 3), np.uint8)
        return lambda count: noise[count % NOISE_ROWS : count % NOISE_ROWS + height].copy()
    try:
        image = np.asarray(decode(read_file(pattern)))
    except ImageError as error:
        expected = "expected bars, noise or an image file"
        raise CameraError(f"synthetic: pattern is {pattern!r}; {expected}: {error}.") from None
    return lambda count: image.copy()
