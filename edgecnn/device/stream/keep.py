"""Frames on which the classifier is unsure, kept in a folder of limited size: to train on, or as pictures of what was seen in them."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.device.stream.events import Event, SaveFailedEvent, Seldom
from edgecnn.device.stream.loop import Item
from edgecnn.device.stream.pictures import encode, folder_name
from edgecnn.device.stream.results import FrameResult
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import output_errors, write_atomic

INDEX = ".edgecnn-saved"
"""In the folder: the paths of the files that were written, oldest first. `edgecnn train` leaves hidden files out."""

LEAST_INTERVAL_S = 1.0
"""Least time between two frames that are kept: those of one second are almost the same picture."""

FAILED_EVERY_S = 10.0
"""Least seconds between two events about frames that could not be written."""

NO_GUESS = "unknown"

MOST_STALE = 64
"""The index is rewritten once it has at least this many lines whose files are gone."""


class UncertainFrames:
    """Keeps unsure frames as DIR/<guess>/<time>-<number>.jpg: a data set for `edgecnn train` once a person has moved each to its class.

    A frame is unsure if its decision is no label, or if the best score leads the second by less than `margin`: that works for two
    classes, whose best score is never below one half, and for a thousand. The guess is the best class. When the files take more than
    `cap_bytes`, the oldest are removed: only those that this or an earlier run wrote, and that are still in place with the same size.
    A file that was moved to another folder, or that someone else put here, is never removed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        margin: float,
        cap_bytes: int,
        rotation: int = 0,
        write: Callable[[bytes | np.ndarray, int], tuple[bytes, str]] = encode,
        interruptible: contextlib.AbstractContextManager[Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Read what earlier runs wrote.

        Args:
            folder: made when the first frame is kept.
            margin: a smaller lead of the best score over the second is unsure, in [0, 1].
            cap_bytes: the most that the files may take.
            rotation: clockwise degrees by which frames are turned.
            write: turns a frame and the rotation into a file's bytes and its suffix: the frame itself, unless it makes something else.
            interruptible: entered while a frame is written, which a slow disk can make long.
            clock, wall: monotonic seconds, and seconds since the epoch.

        Raises:
            OutputError: if the folder's index cannot be read.
        """
        self._folder = folder
        self._margin = margin
        self._cap_bytes = cap_bytes
        self._rotation = rotation
        self._write = write
        self._interruptible = interruptible or contextlib.nullcontext()
        self._failed = Seldom(FAILED_EVERY_S, clock)
        self._clock = clock
        self._wall = wall
        self._last: float | None = None
        self._stale = 0
        self._files: deque[tuple[str, int]] = deque(self._read_index())
        self._bytes = sum(size for _, size in self._files)

    def take(self, item: Item) -> Iterable[Event]:
        """Keep a frame if its result is unsure; return an event if it cannot be written."""
        if not isinstance(item, FrameResult):
            return ()
        try:
            with self._interruptible:
                self.offer(item)
        except (ImageError, OutputError) as error:
            count = self._failed.count()
            if count:
                ts = self._wall()
                return (SaveFailedEvent(ts=ts, source=item.source, message=str(error), seq=item.seq, count=count),)
        return ()

    def poll(self) -> Iterable[Event]:
        """Do nothing: a frame is written when it is taken."""
        return ()

    def finish(self, wait_s: float) -> Iterable[Event]:
        """Do nothing, for the same reason."""
        return ()

    def offer(self, result: FrameResult) -> None:
        """Keep a frame if its result is unsure.

        Raises:
            OutputError: if it cannot be written; nothing is left half-written.
            ImageError: if `write` cannot make a file of it.
        """
        if result.reason is None and result.lead >= self._margin:
            return
        now = self._clock()
        if self._last is not None and now - self._last < LEAST_INTERVAL_S:
            return
        self._last = now
        data, suffix = self._write(result.image, self._rotation)
        if len(data) > self._cap_bytes:
            raise OutputError(
                f"a frame of {len(data):,} bytes is larger than the limit for all kept frames, {self._cap_bytes:,} bytes.",
                advice="keep_more",
            )
        guess = folder_name(result.top[0].label) if result.top else NO_GUESS
        wall = self._wall()
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(wall))}.{int(wall * 1e6) % 1_000_000:06d}Z"
        name = f"{guess}/{stamp}-{result.seq}{suffix}"
        self._make_room(len(data))
        write_atomic(self._folder / name, data)
        self._files.append((name, len(data)))
        self._bytes += len(data)
        with output_errors(self._folder / INDEX), (self._folder / INDEX).open("a", encoding="utf-8") as index:
            index.write(f"{len(data)} {name}\n")

    def _make_room(self, size: int) -> None:
        while self._files and self._bytes + size > self._cap_bytes:
            name, expected = self._files.popleft()
            self._bytes -= expected
            path = self._folder / name
            with output_errors(path), contextlib.suppress(FileNotFoundError):
                if path.lstat().st_size == expected:
                    path.unlink()
            self._stale += 1
        if self._stale > max(
            MOST_STALE, len(self._files)
        ):  # lines of removed files do no harm: the index is rewritten now and then
            self._stale = 0
            write_atomic(self._folder / INDEX, "".join(f"{size} {name}\n" for name, size in self._files))

    def _read_index(self) -> list[tuple[str, int]]:
        """Return (path below the folder, size) of the files that earlier runs wrote and that are still there, oldest first."""
        files = []
        try:
            lines = (self._folder / INDEX).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise OutputError(f"cannot read {self._folder / INDEX}: {error}. Remove it to start again.") from None
        for line in lines:
            size, _, name = line.partition(" ")
            parts = name.split("/")
            if not size.isdecimal() or len(parts) != 2 or any(part in ("", ".", "..") for part in parts):
                continue  # a line cut short by a full disk
            with contextlib.suppress(OSError):
                if os.lstat(self._folder / name).st_size == int(size):
                    files.append((name, int(size)))
        return files
