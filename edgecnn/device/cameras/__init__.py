"""Cameras and other streams of frames. A source's module is imported when that source is opened."""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgecnn.errors import CameraError

if TYPE_CHECKING:
    from edgecnn.device.cameras.source import CameraSettings, Source


def video_nodes(dev: Path = Path("/dev")) -> list[str]:
    """Return each V4L2 node as its /dev/videoN: first those with a stable name in `by-id`, then the others by number."""
    numbered = [path for path in dev.iterdir() if re.fullmatch(r"video\d+", path.name)] if dev.is_dir() else []
    numbered.sort(key=lambda path: int(path.name[5:]))
    return list(dict.fromkeys([*names_by_id(dev), *(os.path.realpath(path) for path in numbered)]))


def names_by_id(dev: Path = Path("/dev")) -> dict[str, list[str]]:
    by_id = dev / "v4l" / "by-id"
    names: dict[str, list[str]] = {}
    for path in sorted(by_id.iterdir()) if by_id.is_dir() else ():
        names.setdefault(os.path.realpath(path), []).append(str(path))
    return names


SOURCES = {
    "rpicam": "edgecnn.device.cameras.process:Rpicam",
    "v4l2": "edgecnn.device.cameras.v4l2:V4L2Camera",
    "ffmpeg": "edgecnn.device.cameras.process:Ffmpeg",
    "exec": "edgecnn.device.cameras.process:CommandSource",
    "watch": "edgecnn.device.cameras.folder:Watch",
    "folder": "edgecnn.device.cameras.folder:Folder",
    "synthetic": "edgecnn.device.cameras.folder:Synthetic",
}

PREFIXES = {
    "csi:": "rpicam", "ffmpeg:": "ffmpeg", "exec:": "exec", "watch:": "watch", "folder:": "folder", "synthetic:": "synthetic",
}  # fmt: skip
"""Prefixes of a SOURCE argument that select one of SOURCES, which opens the rest."""

SCHEMES = ("rtsp://", "rtsps://", "http://", "https://", "rtmp://", "udp://", "tcp://", "srt://")

VIDEOS = (
    ".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm", ".mjpeg", ".mjpg", ".mpg", ".mpeg", ".ts", ".h264", ".flv", ".wmv", ".3gp",
)  # fmt: skip


def kind_of(text: str) -> tuple[str, str]:
    """Return (key of SOURCES, text to open) for a SOURCE argument; ("", text) if it names image files or nothing."""
    if "\0" in text:
        return "", text
    for prefix, name in PREFIXES.items():
        if text.startswith(prefix):
            return name, text[len(prefix) :]
    if text.startswith(("/dev/video", "/dev/v4l/")):
        return "v4l2", text
    if text.lower().startswith(SCHEMES) or os.path.splitext(text)[1].lower() in VIDEOS:
        return "ffmpeg", text
    return "", text


def is_stream(text: str) -> bool:
    """Return whether a SOURCE argument names a stream of frames rather than image files. Imports nothing and reads no file."""
    return bool(kind_of(text)[0])


def make(name: str, text: str, settings: "CameraSettings") -> "Source":
    """Import a source's class and open it; CameraError if it cannot be opened or does not support this system."""
    if sys.platform != "linux" and name not in ("folder", "synthetic"):
        raise CameraError(
            f"{name}: cameras and streams work on Linux only; this is {sys.platform}. Use image files instead."
        )
    module, _, attribute = SOURCES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(text, settings)


def open_source(text: str, settings: "CameraSettings") -> "Source":
    """Open the stream that a SOURCE argument names, such as "/dev/video2", "rtsp://…", "clip.mp4" or "synthetic:"; else CameraError."""
    name, rest = kind_of(text)
    if not name:
        from edgecnn.device.system import masked

        raise CameraError(
            f"{masked(text)}: not a camera or a stream; expected /dev/videoN, an address such as rtsp://…, a video file or "
            f"{', '.join(PREFIXES)}"
        )
    return make(name, rest, settings)


PROOF_S = {"rpicam": 10.0, "v4l2": 5.0, "ffmpeg": 10.0}


def find_camera(settings: "CameraSettings") -> "Source":
    """Open the first camera that delivers a frame, which is dropped. CameraError lists each attempt and why it failed."""
    from edgecnn.device.cameras.source import CameraLost, UnreadableFormatError

    failures = []
    nodes = video_nodes()
    candidates = [("rpicam", ""), *(("v4l2", node) for node in nodes)]
    for name, text in candidates:
        try:
            return open_proved(name, text, settings)
        except (CameraError, CameraLost) as error:
            failures.append(str(error))
            if isinstance(error, UnreadableFormatError):
                candidates.append(("ffmpeg", text))  # which may read it; tried last
    if not nodes:
        failures.append("USB: no /dev/video* exists. Plug in a camera, then check `dmesg`.")
    raise CameraError("no camera found; tried:" + "".join(f"\n  {failure}" for failure in failures))


def open_proved(name: str, text: str, settings: "CameraSettings") -> "Source":
    """Open a camera and read one frame, which is dropped. Raises CameraError or CameraLost."""
    source = make(name, text, settings)
    given = False
    try:
        given = source.read(PROOF_S[name]) is not None
    finally:
        if not given:
            source.close()
    return source
