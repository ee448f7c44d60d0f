"""Frames without any device, for tests and benchmarks: `synthetic:640x480?frames=100&fps=30&pattern=noise|bars|FILE&seed=0`."""

import re
import time
from collections.abc import Callable
from urllib.parse import parse_qsl

import numpy as np

from edgecnn.device.cameras.source import CameraSettings, Frame, Stalled
from edgecnn.errors import CameraError, ImageError, nearest
from edgecnn.labels import plural

OPTIONS = ("frames", "fps", "pattern", "seed")
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
            if name not in OPTIONS:
                raise CameraError(f"synthetic:{text}: no option {name!r}. {nearest(name, OPTIONS)}")
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
    from edgecnn.images import decode, read_file

    try:
        image = np.asarray(decode(read_file(pattern)))
    except ImageError as error:
        expected = "expected bars, noise or an image file"
        raise CameraError(f"synthetic: pattern is {pattern!r}; {expected}: {error}.") from None
    return lambda count: image.copy()
