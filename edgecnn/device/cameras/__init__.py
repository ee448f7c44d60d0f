"""Cameras and other streams of frames: one file per source. A source's module is imported when that source is opened."""

import importlib
import os
import sys
from typing import TYPE_CHECKING

from edgecnn.errors import CameraError

if TYPE_CHECKING:
    from edgecnn.device.cameras.source import CameraSettings, Source

SOURCES = {
    "rpicam": "edgecnn.device.cameras.rpicam:Rpicam",
    "v4l2": "edgecnn.device.cameras.v4l2:V4L2Camera",
    "ffmpeg": "edgecnn.device.cameras.ffmpeg:Ffmpeg",
    "exec": "edgecnn.device.cameras.command:CommandSource",
    "watch": "edgecnn.device.cameras.watch:Watch",
    "synthetic": "edgecnn.device.cameras.synthetic:Synthetic",
}

PREFIXES = {"csi:": "rpicam", "ffmpeg:": "ffmpeg", "exec:": "exec", "watch:": "watch", "synthetic:": "synthetic"}
"""The prefixes by which a SOURCE argument names one of SOURCES; the rest is what that source opens."""

SCHEMES = ("rtsp://", "rtsps://", "http://", "https://", "rtmp://", "udp://", "tcp://", "srt://")

VIDEOS = (
    ".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm", ".mjpeg", ".mjpg", ".mpg", ".mpeg", ".ts", ".h264", ".flv", ".wmv", ".3gp",
)  # fmt: skip


def kind_of(text: str) -> tuple[str, str]:
    """Return (name of one of SOURCES, what it opens) for a SOURCE argument; ("", text) if it names files, or nothing."""
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
    """Return whether a SOURCE argument names a stream of frames rather than image files. Imports nothing and looks at no file."""
    return bool(kind_of(text)[0])


def make(name: str, text: str, settings: "CameraSettings") -> "Source":
    """Import a source's class and open it; CameraError if it cannot be opened, or needs another operating system."""
    if sys.platform != "linux" and name != "synthetic":
        raise CameraError(
            f"{name}: cameras and streams are read on Linux only; this is {sys.platform}. Give image files instead."
        )
    module, _, attribute = SOURCES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)(text, settings)


def open_source(text: str, settings: "CameraSettings") -> "Source":
    """Open the stream that a SOURCE argument names, such as "/dev/video2", "rtsp://…", "clip.mp4" or "synthetic:"; or CameraError."""
    name, rest = kind_of(text)
    if not name:
        from edgecnn.device.secrets import masked

        raise CameraError(
            f"{masked(text)}: not a camera or a stream; expected /dev/videoN, an address such as rtsp://…, a video file or "
            f"{', '.join(PREFIXES)}"
        )
    return make(name, rest, settings)


PROOF_S = {"rpicam": 10.0, "v4l2": 5.0, "ffmpeg": 10.0}


def find_camera(settings: "CameraSettings") -> "Source":
    """Open the first camera that gives a frame, which is dropped, or raise CameraError, which lists each attempt and why it failed."""
    from edgecnn.device.cameras.nodes import video_nodes
    from edgecnn.device.cameras.source import CameraLost, UnreadableFormatError

    failures = []
    nodes = video_nodes()
    candidates = [("rpicam", ""), *(("v4l2", node) for node in nodes)]
    for name, text in candidates:
        try:
            return proved(name, text, settings)
        except (CameraError, CameraLost) as error:
            failures.append(str(error))
            if isinstance(error, UnreadableFormatError):
                candidates.append(("ffmpeg", text))  # which may read it; tried last
    if not nodes:
        failures.append("USB: there is no /dev/video*. Plug in a camera, and look at what `dmesg` says of it.")
    raise CameraError("no camera found; tried:" + "".join(f"\n  {failure}" for failure in failures))


def proved(name: str, text: str, settings: "CameraSettings") -> "Source":
    """Open a camera and read one frame, which is dropped. Raises CameraError or CameraLost."""
    source = make(name, text, settings)
    given = False
    try:
        given = source.read(PROOF_S[name]) is not None
    finally:
        if not given:
            source.close()
    return source
