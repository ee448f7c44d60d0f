"""Folders as cameras: `folder:DIR?fps=2&loop=1` plays the images of one, and `watch:DIR` waits for new ones.

A watched folder is polled, without inotify, so that network folders work too.
"""

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Stalled
from edgecnn.device.stream.sources import expand
from edgecnn.errors import CameraError, ImageError, nearest
from edgecnn.images import SUFFIXES, read_file
from edgecnn.labels import plural

OPTIONS = ("fps", "loop")

FPS = 1.0


class Folder:
    """A folder's images, and those of its sub-folders, each once, in the order of their paths, with the path as `name`.

    `fps` is the highest rate: a slow reader misses nothing. The source ends after the last image; with loop=1 it begins again.
    """

    live = False
    patient = True
    damaged = 0

    def __init__(self, text: str, settings: CameraSettings) -> None:
        self.name = f"folder:{text}"
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
        self._count = 0
        self._closed = threading.Event()
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

    def close(self) -> None:
        """Wake a waiting read. A second call does nothing."""
        self._closed.set()


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


class Watch:
    """New images in a folder, oldest first, each returned once, when complete. Never ends. CameraError if the folder is not readable."""

    live = False
    patient = True
    damaged = 0

    def __init__(self, text: str, settings: CameraSettings) -> None:
        self.name = f"watch:{text}"
        if not text:
            raise CameraError("watch: no folder given; expected a readable folder, such as watch:/srv/incoming.")
        self.about = f"new images in the folder {text}"
        self._folder = Path(text)
        self._key = os.path.realpath(text)
        self._growing: dict[str, tuple[Version, float]] = {}
        self._ready: deque[str] = deque()
        self._count = 0
        self._closed = threading.Event()
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

    def close(self) -> None:
        """Wake a waiting read. A second call does nothing."""
        self._closed.set()


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
