"""Watch a folder for new images: `watch:DIR`. It is polled, without inotify, so that network folders work too."""

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Stalled
from edgecnn.errors import CameraError, ImageError
from edgecnn.images import SUFFIXES, read_file

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
