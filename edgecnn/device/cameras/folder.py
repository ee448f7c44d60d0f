"""Play a folder of images as a camera: `folder:DIR?fps=2&loop=1`."""

import os
import threading
import time
from urllib.parse import parse_qsl

from edgecnn.device.cameras.source import CameraLost, CameraSettings, Frame, Stalled
from edgecnn.device.stream.sources import expand
from edgecnn.errors import CameraError, ImageError, nearest
from edgecnn.images import read_file
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
