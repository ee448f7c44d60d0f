"""Save pictures from a camera in the layout that `edgecnn train` reads: DIR/<label>/*."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgecnn.device.stream import pictures
from edgecnn.device.stream.events import Event
from edgecnn.device.stream.feed import Ended, Feed, Taken
from edgecnn.device.stream.settings import Pictures
from edgecnn.errors import ImageError
from edgecnn.files import write_atomic
from edgecnn.region import WHOLE

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
        when, number = pictures.stamp(time.time(), 3), self.kept
        while (path := self._folder / f"{when}-{number}{suffix}").exists() or path.is_symlink():
            number += 1
        write_atomic(path, data)
        self._last = small
        self.skipped -= 1
        self.kept += 1
        return Shot(path, None, sharp, changed)
