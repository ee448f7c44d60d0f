"""Frames as pictures: upright, encoded as files, with sharpness and difference; and saved in the layout that edgecnn train reads."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from edgecnn import images
from edgecnn.device.stream.events import Event
from edgecnn.device.stream.feed import Ended, Feed, Taken
from edgecnn.device.stream.settings import Pictures
from edgecnn.errors import ImageError
from edgecnn.files import write_atomic
from edgecnn.labels import SPLIT_FOLDERS, why_not_a_label
from edgecnn.pixels import as_array, cut
from edgecnn.region import WHOLE, Region

JPEG_QUALITY = 95

PREVIEW_SIDE, PREVIEW_QUALITY = 1280, 85  # for previews of a few hundred kilobytes at most

TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
"""Clockwise degrees, and Pillow's names for them, which count anticlockwise."""

SHARPNESS_WIDTH = 320
THUMBNAIL = 32


def turn(image: bytes | np.ndarray, rotation: int) -> Image.Image | np.ndarray:
    """Turn a frame, encoded bytes or uint8 (height, width, 3), clockwise; ImageError, here and below, if bytes cannot be decoded."""
    if isinstance(image, bytes):
        picture = images.decode(image)
        return picture.transpose(TURNS[rotation]) if rotation else picture
    return np.ascontiguousarray(np.rot90(image, -rotation // 90))


def part(image: bytes | np.ndarray, rotation: int, region: Region) -> np.ndarray:
    """Return a region of the upright frame: uint8 (height, width, 3)."""
    upright = cut(turn(image, rotation), region)
    return as_array(upright) if isinstance(upright, Image.Image) else np.ascontiguousarray(upright)


def encode(image: bytes | np.ndarray, rotation: int = 0) -> tuple[bytes, str]:
    """Return an upright frame's bytes and suffix. An encoded, upright frame stays unchanged; others become JPEG at JPEG_QUALITY."""
    if isinstance(image, bytes) and not rotation:
        return image, images.suffix_of(image)
    return _jpeg(_upright(image, rotation), quality=JPEG_QUALITY, subsampling=0), ".jpg"


def as_jpeg(image: bytes | np.ndarray, rotation: int = 0) -> bytes:
    """Return a preview of a frame as JPEG bytes: upright, at most PREVIEW_SIDE pixels wide and high, at PREVIEW_QUALITY."""
    picture = _upright(image, rotation).convert("RGB")
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE), Image.Resampling.BILINEAR)
    return _jpeg(picture, quality=PREVIEW_QUALITY)


def _upright(image: bytes | np.ndarray, rotation: int) -> Image.Image:
    upright = turn(image, rotation)
    return upright if isinstance(upright, Image.Image) else Image.fromarray(upright)


def _jpeg(picture: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", **options)
    return buffer.getvalue()


def grey(image: bytes | np.ndarray, width: int, height: int = 0) -> np.ndarray:
    """Return a frame in grey, scaled to a width and a height (0 keeps the aspect ratio): float32, shape (height, width), 0 to 255."""
    picture = images.decode(image, 1) if isinstance(image, bytes) else Image.fromarray(image).convert("L")
    height = height or max(3, round(picture.height * width / picture.width))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(np.float32)


def sharpness(image: bytes | np.ndarray) -> float:
    """Return the variance of a frame's Laplacian, in grey at SHARPNESS_WIDTH: 367 and 1299 for two photographs, 4 for a bare wall."""
    levels = grey(image, SHARPNESS_WIDTH)
    middle = 4 * levels[1:-1, 1:-1]
    return float((middle - levels[:-2, 1:-1] - levels[2:, 1:-1] - levels[1:-1, :-2] - levels[1:-1, 2:]).var())


def thumbnail(image: bytes | np.ndarray) -> np.ndarray:
    return grey(image, THUMBNAIL, THUMBNAIL)


def change(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean absolute difference of two thumbnails, in grey levels from 0 to 255."""
    return float(np.abs(one - other).mean())


def stamp(seconds: float, digits: int) -> str:
    """Return seconds since the epoch as part of a file name, in UTC and with `digits` decimals: 20251125T040000.250Z."""
    whole, fraction = time.gmtime(seconds), int(seconds * 10**digits) % 10**digits
    return f"{time.strftime('%Y%m%dT%H%M%S', whole)}.{fraction:0{digits}d}Z"


LONGEST_NAME = 100


def why_no_folder(label: str) -> str:
    """Return why a label cannot be a class folder that `edgecnn train` reads; "" if it can."""
    if why := why_not_a_label(label):
        return why
    if label.startswith(".") or label == "__MACOSX":
        return "hidden folders are left out of training"
    if label.lower() in SPLIT_FOLDERS:
        return f"{', '.join(SPLIT_FOLDERS)} are names of splits"
    if "/" in label or "\\" in label or not label.isprintable():
        return "it contains a slash, a backslash or an unprintable character"
    if label != label.strip():
        return "it begins or ends with a space"
    if len(os.fsencode(label)) > LONGEST_NAME:
        return f"it is longer than {LONGEST_NAME} bytes"
    return ""


TICK_S = 0.05  # longest wait for a frame between checks of the keyboard and of signals

TAKE, QUIT = "take", "quit"

BLURRED, SAME, DAMAGED = "blurred", "same", "damaged"


class Shot(NamedTuple):
    """A picture: the `path` if it was kept, else the `reason`: BLURRED, SAME or DAMAGED. `change` is also None for the first picture."""

    path: Path | None
    reason: str | None
    sharpness: float | None
    change: float | None


class Capture:
    def __init__(
        self,
        feed: Feed,
        folder: Path,
        settings: Pictures,
        rotation: int = 0,
        *,
        key: Callable[[], str | None] = lambda: None,
        check: Callable[[], object] = bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`key` returns TAKE, QUIT or None without waiting; `check` raises to stop; `rotation` is in degrees clockwise."""
        self.kept = 0
        self.skipped = 0
        self._feed = feed
        self._folder = folder
        self._settings = settings
        self._rotation = rotation
        self._key = key
        self._check = check
        self._clock = clock
        self._last: np.ndarray | None = None

    def run(self, report: Callable[[Shot | Event], None]) -> None:
        """Take pictures until the count is reached, QUIT is pressed, the source ends or `check` raises; then close the source."""
        try:
            self._feed.start()
            self._loop(report)
        finally:
            self._feed.close()

    def _loop(self, report: Callable[[Shot | Event], None]) -> None:
        due = self._clock()
        pressed_at: float | None = None
        while not self._settings.count or self.kept < self._settings.count:
            self._check()
            pressed = self._key()
            if pressed == QUIT:
                return
            if pressed == TAKE:
                pressed_at = self._clock()
            item = self._feed.take(TICK_S)
            if isinstance(item, Ended):
                return
            if isinstance(item, Event):
                report(item)
            elif isinstance(item, Taken):
                now = self._clock()
                by_key = pressed_at is not None and (not item.live or item.frame.monotonic >= pressed_at)
                by_time = self._settings.interval_s > 0 and (not item.live or now >= due)
                if by_key or by_time:
                    pressed_at, due = None, now + self._settings.interval_s
                    report(self._picture(item))

    def _picture(self, taken: Taken) -> Shot:
        settings, image, rotation = self._settings, taken.frame.image, self._rotation
        self.skipped += 1
        try:
            if settings.region not in (None, WHOLE):
                image, rotation = part(image, rotation, settings.region), 0
            sharp = sharpness(image)
            if sharp < settings.min_sharpness:
                return Shot(None, BLURRED, sharp, None)
            small = thumbnail(image)
            data, suffix = encode(image, rotation)
        except ImageError:
            return Shot(None, DAMAGED, None, None)
        changed = None if self._last is None else change(small, self._last)
        if changed is not None and changed < settings.min_change:
            return Shot(None, SAME, sharp, changed)
        when, number = stamp(time.time(), 3), self.kept
        while (path := self._folder / f"{when}-{number}{suffix}").exists() or path.is_symlink():
            number += 1
        write_atomic(path, data)
        self._last = small
        self.skipped -= 1
        self.kept += 1
        return Shot(path, None, sharp, changed)
