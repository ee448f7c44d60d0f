"""The interface of every source of frames: frames in order, losses with a reason, an end."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from edgecnn.errors import CameraError


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
