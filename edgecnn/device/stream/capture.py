"""Pictures from a camera into the layout that `edgecnn train` reads: DIR/<label>/*."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecnn.device.stream import pictures
from edgecnn.device.stream.feed import Ended, Feed, SourceBack, SourceLost, SourceOpened, Taken
from edgecnn.errors import ImageError
from edgecnn.files import write_atomic
from edgecnn.region import WHOLE, Region

TICK_S = 0.05
"""Longest wait for a frame between checks of the keyboard and of signals."""

TAKE, QUIT = "take", "quit"
"""What a key means."""

BLURRED, SAME, DAMAGED = "blurred", "same", "damaged"
"""Why a picture was skipped."""


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """What to capture.

    Attributes:
        label: the class, which names a folder: see `pictures.why_no_folder`.
        folder: where the class folder is, or is made.
        interval_s: seconds between pictures of a live source; 0 where a key takes each. Of any other source, every frame is considered.
        count: pictures to keep; 0 for no limit.
        min_sharpness: a picture with a lower `pictures.sharpness` counts as blurred.
        min_change: a picture with a lower `pictures.change` from the last picture kept counts as the same.
        rotation: degrees to turn pictures clockwise.
        region: the part of each picture that is looked at and kept, after the turn.
    """

    label: str
    folder: Path
    interval_s: float = 0.0
    count: int = 0
    min_sharpness: float = 10.0
    min_change: float = 2.0
    rotation: int = 0
    region: Region = WHOLE


class Shot(NamedTuple):
    """A picture: where it was kept, or which of BLURRED, SAME and DAMAGED it is.

    `sharpness` is None for a damaged picture; `change` is None also for the first picture and for a blurred one.
    """

    path: Path | None
    reason: str | None
    sharpness: float | None
    change: float | None


class Capture:
    """Takes pictures; `kept` and `skipped` count them."""

    def __init__(
        self,
        feed: Feed,
        settings: CaptureSettings,
        *,
        key: Callable[[], str | None] | None = None,
        check: Callable[[], object] = bool,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            feed: where frames come from; `run` starts and closes it.
            settings: see there.
            key: returns TAKE or QUIT if a key was pressed since the last call, else None, without waiting.
            check: called often; raises to end.
            clock, wall: monotonic seconds, and seconds since the epoch.
        """
        self.kept = 0
        self.skipped = 0
        self._feed = feed
        self._settings = settings
        self._key = key
        self._check = check
        self._clock = clock
        self._wall = wall
        self._last: np.ndarray | None = None

    def run(self, report: Callable[[Shot | SourceOpened | SourceLost | SourceBack], None]) -> None:
        """Take pictures until there are enough, a key or the source ends it, or `check` raises; then close the source.

        Args:
            report: called with each picture and each notice about the source.

        Raises:
            CameraError: if the source cannot be opened, or was away for too long.
            OutputError: if a picture cannot be written.
        """
        try:
            self._feed.start()
            self._loop(report)
        finally:
            self._feed.close()

    def _loop(self, report: Callable[[Shot | SourceOpened | SourceLost | SourceBack], None]) -> None:
        due = self._clock()
        pressed_at: float | None = None
        while not self._settings.count or self.kept < self._settings.count:
            self._check()
            pressed = self._key() if self._key else None
            if pressed == QUIT:
                return
            if pressed == TAKE:
                pressed_at = self._clock()
            item = self._feed.take(TICK_S)
            if isinstance(item, Ended):
                return
            if isinstance(item, SourceOpened | SourceLost | SourceBack):
                report(item)
            elif isinstance(item, Taken):
                now = self._clock()
                by_key = pressed_at is not None and (not item.live or item.frame.monotonic >= pressed_at)
                by_time = self._settings.interval_s > 0 and (not item.live or now >= due)
                if by_key or by_time:
                    pressed_at, due = None, now + self._settings.interval_s
                    report(self._picture(item))

    def _picture(self, taken: Taken) -> Shot:
        """Keep a frame, or say why not."""
        settings, image, rotation = self._settings, taken.frame.image, self._settings.rotation
        self.skipped += 1
        try:
            if settings.region != WHOLE:
                image, rotation = pictures.part(image, rotation, settings.region), 0
            sharp = pictures.sharpness(image)
            if sharp < settings.min_sharpness:
                return Shot(None, BLURRED, sharp, None)
            small = pictures.thumbnail(image)
            data, suffix = pictures.encode(image, rotation)
        except ImageError:
            return Shot(None, DAMAGED, None, None)
        changed = None if self._last is None else pictures.change(small, self._last)
        if changed is not None and changed < settings.min_change:
            return Shot(None, SAME, sharp, changed)
        path = self._free_path(suffix)
        write_atomic(path, data)
        self._last = small
        self.skipped -= 1
        self.kept += 1
        return Shot(path, None, sharp, changed)

    def _free_path(self, suffix: str) -> Path:
        wall = self._wall()
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(wall))}.{int(wall * 1000) % 1000:03d}Z"
        folder = self._settings.folder / self._settings.label
        number = self.kept
        while (path := folder / f"{stamp}-{number}{suffix}").exists() or path.is_symlink():
            number += 1
        return path
