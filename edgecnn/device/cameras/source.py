"""The interface of every source of frames: frames in order, a loss with its reason, an end."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from edgecnn.errors import CameraError


class Frame(NamedTuple):
    """One frame: `image` is an encoded image's bytes, or a uint8 RGB array (height, width, 3).

    `sequence` counts what the source delivered, from 0, gaps where it says that it dropped frames; `monotonic` is `time.monotonic()` when
    the frame was whole; `name` is a file's path where the frame is one.
    """

    sequence: int
    monotonic: float
    image: bytes | np.ndarray
    name: str = ""


class CameraLost(Exception):
    """A source that was open and stopped giving frames, for one of REASONS: the loop reports it and opens the source again."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Stalled(CameraLost):
    """A source that is open and silent. The text is "SOURCE: WHAT for SECONDS s", and the remark."""

    def __init__(self, source: str, what: str, seconds: float, remark: str = "") -> None:
        super().__init__("stall", f"{source}: {what} for {seconds:g} s{remark}.")
        self.source = source
        self.what = what
        self.remark = remark

    def lasting(self, seconds: float) -> "Stalled":
        return Stalled(self.source, self.what, seconds, self.remark)


class UnreadableFormatError(CameraError):
    """A camera that works, but whose formats edgecnn does not read; ffmpeg may."""


REASONS = ("stall", "unplugged", "io_error", "ended", "garbage")
"""No frame in time; the device is gone; a read failed; the process or stream ended; the bytes are not frames."""


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """The requested size and rate; 0 takes the source's own. `user` and `password` are for an address without them."""

    width: int = 640
    height: int = 480
    fps: float = 0.0
    user: str | None = None
    password: str | None = field(default=None, repr=False)


class Source(Protocol):
    """An open source of frames.

    `name` is its name in result lines, without passwords; `about` describes for people what was opened: device, format, size, rate.
    `live` is False for a source that waits for its reader (a video file, `synthetic:`), whose frames are not dropped for age.
    `patient` is True for a source in which silence is no failure (a watched folder): its stall only means that nothing has come yet.
    """

    name: str
    about: str
    live: bool
    patient: bool

    @property
    def damaged(self) -> int:
        """How many frames were skipped because they were damaged."""

    def read(self, timeout: float) -> Frame | None:
        """Return the next frame, None at the end of a source that ends; Stalled if none comes within `timeout` s; CameraLost."""

    def close(self) -> None:
        """Release the device and end every process; never blocks longer than a second. A second call does nothing."""
