"""Frames on which the classifier is unsure, kept in a folder of limited size: to train on, or as pictures of what was seen in them."""

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.device.stream.events import Event, SaveFailedEvent, Seldom
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.pictures import encode, folder_name, stamp
from edgecnn.device.stream.results import FrameResult
from edgecnn.device.stream.settings import Reaction
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import output_errors, write_atomic

INDEX = ".edgecnn-saved"
"""In the folder: the paths of the files that were written, oldest first. `edgecnn train` leaves hidden files out."""

LEAST_INTERVAL_S = 1.0  # least time between two frames that are kept: those of one second are almost the same picture

FAILED_EVERY_S = 10.0

NO_GUESS = "unknown"

MOST_STALE = 64  # the index is rewritten once it has at least this many lines whose files are gone


class UncertainFrames(Consumer):
    """Keeps unsure frames as DIR/<guess>/<time>-<number>.jpg; above `save_cap` MiB it removes the oldest.

    A frame is unsure if its decision is no label, or its best score leads by less than `save_margin`. Only files that a run
    wrote, and that are still in place with the same size, are ever removed.
    """

    def __init__(
        self,
        folder: Path,
        settings: Reaction,
        write: Callable[[bytes | np.ndarray], tuple[bytes, str]] = encode,
        interruptible: contextlib.AbstractContextManager[Any] = contextlib.nullcontext(),
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Read what earlier runs wrote, or raise OutputError. `write` returns a file's bytes and suffix, within `interruptible`."""
        self._folder = folder
        self._margin = settings.save_margin
        self._cap_bytes = round(settings.save_cap * 2**20)
        self._write = write
        self._interruptible = interruptible
        self._failed = Seldom(FAILED_EVERY_S, clock)
        self._clock = clock
        self._wall = wall
        self._last = -math.inf
        self._stale = 0
        self.on_kept: Callable[[str, FrameResult], object] = lambda name, result: None
        """Is called with each file's path below the folder."""
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
            if count := self._failed.count():
                ts = self._wall()
                return (SaveFailedEvent(ts=ts, source=item.source, message=str(error), seq=item.seq, count=count),)
        return ()

    def offer(self, result: FrameResult) -> None:
        """Keep a frame if its result is unsure. OutputError if it cannot be written, wholly; ImageError if `write` raises it."""
        if result.reason is None and result.lead >= self._margin:
            return
        now = self._clock()
        if now - self._last < LEAST_INTERVAL_S:
            return
        self._last = now
        data, suffix = self._write(result.image)
        if len(data) > self._cap_bytes:
            raise OutputError(
                f"a frame of {len(data):,} bytes is larger than the limit for all kept frames, {self._cap_bytes:,} bytes. "
                "Allow more with --save-cap."
            )
        guess = folder_name(result.top[0].label) if result.top else NO_GUESS
        name = f"{guess}/{stamp(self._wall(), 6)}-{result.seq}{suffix}"
        self._make_room(len(data))
        write_atomic(self._folder / name, data)
        self._files.append((name, len(data)))
        self._bytes += len(data)
        with output_errors(self._folder / INDEX), (self._folder / INDEX).open("a", encoding="utf-8") as index:
            index.write(f"{len(data)} {name}\n")
        self.on_kept(name, result)

    def newest(self, count: int) -> list[str]:
        """Return the newest files' paths below the folder, oldest first."""
        return [name for name, _ in self._files][-count:]

    def _make_room(self, size: int) -> None:
        while self._files and self._bytes + size > self._cap_bytes:
            name, expected = self._files.popleft()
            self._bytes -= expected
            path = self._folder / name
            with output_errors(path), contextlib.suppress(FileNotFoundError):
                if path.lstat().st_size == expected:
                    path.unlink()
            self._stale += 1
        if self._stale > max(MOST_STALE, len(self._files)):
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
