"""Room for decoded images: in memory, or in a mapped file where they are many."""

import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgecnn.errors import DatasetError, OutputError
from edgecnn.files import cache_home
from edgecnn.memory import available_bytes

SHARE = 0.25
"""Share of the available memory that decoded images may take. More of them go to a mapped file, whose pages the system writes out and reads
again as it needs memory; the rest is for the network, its gradients and batches."""

BLOCK = 1024
"""Images that are copied at once."""

IN_MEMORY = ("tmpfs", "ramfs")
"""File systems whose files are in memory."""


@dataclass(kw_only=True)
class Rooms:
    """Makes the arrays for a dataset's decoded images.

    Attributes:
        name: of the dataset, for messages.
        count: images that are decoded at once, all splits together.
        shape: (height, width, channels) of each.
        note: called with a line when a file is used.
    """

    name: str
    count: int
    shape: tuple[int, int, int]
    note: Callable[[str], None] = field(default=lambda text: None)

    @property
    def size(self) -> int:
        """Bytes that all images take."""
        return self.count * math.prod(self.shape)

    def open(self, counts: Sequence[int]) -> list[np.ndarray]:
        """Return an array for each count of images: uint8, shape (count, height, width, channels), of no content.

        They are in memory if all together take at most SHARE of what is available, else in one temporary file, which has no name: nothing
        is left of it when the process ends, however it ends.

        Raises:
            OutputError: if the file cannot be made, or the disk has no space for it.
            DatasetError: if the images take more than can be addressed.
        """
        available = available_bytes()
        if available is None or self.size <= SHARE * available:
            return [self._in_memory(count) for count in counts]
        whole = self._mapped(available)
        ends = np.cumsum([0, *counts]).tolist()
        return [whole[start:end] for start, end in itertools.pairwise(ends)]

    def _in_memory(self, count: int) -> np.ndarray:
        try:
            return np.empty((count, *self.shape), np.uint8)
        except (MemoryError, ValueError):  # ValueError: more than can be addressed
            raise DatasetError(f"{self._about()}, more than this machine has. Choose a smaller input.") from None

    def _mapped(self, available: int) -> np.ndarray:
        folder = cache_home()
        limit = f"more than {SHARE:.0%} of the available memory ({_gib(available)})"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if self.size > free:
                raise OutputError(
                    f"{self._about()}, {limit}, so they need a file; {folder} has {_gib(free)} left.\n"
                    "Free some space, set XDG_CACHE_HOME to a folder on a larger disk, or choose a smaller input."
                )
            with tempfile.TemporaryFile(dir=folder) as file:
                _reserve(file.fileno(), self.size)
                whole = np.memmap(file, np.uint8, "r+", shape=(self.count, *self.shape)).view(np.ndarray)
        except OutputError:
            raise
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"{self._about()}, {limit}, so they need a file, which cannot be made in {folder}: {reason}.\n"
                "Set XDG_CACHE_HOME to a folder with that much space, or choose a smaller input."
            ) from None
        kind = file_system(folder)
        memory = (
            f" WARNING: it is in memory ({kind}); set XDG_CACHE_HOME to a folder on a disk."
            if kind in IN_MEMORY
            else ""
        )
        self.note(
            f"{self.name}: {_gib(self.size)} of decoded images, {limit}, are in a temporary file in {folder}, "
            f"which is gone when the command ends.{memory}"
        )
        return whole

    def _about(self) -> str:
        height, width, channels = self.shape
        return f"{self.name}: {self.count:,} images of {height}x{width}x{channels} take {_gib(self.size)}"


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its space on the disk: a page of a mapping that finds none later would end the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = bytes(1 << 20)  # macOS has no such call
    for start in range(0, size, len(block)):
        os.pwrite(descriptor, block[: size - start], start)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def file_system(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the kind of file system that a path is on, such as "ext4" or "tmpfs"; "" where the system does not say."""
    try:
        device = os.stat(path).st_dev
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split()[:1] for line in lines if line.split()[2:3] == [number]]
    return kinds[-1][0] if kinds and kinds[-1] else ""


def taken(images: np.ndarray, keep: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Copy chosen images into a room, a block at a time, and return the part that they fill.

    Args:
        images: uint8, shape (n, height, width, channels).
        keep: their indices.
        room: uint8, shape (at least as many, height, width, channels).
    """
    for start in range(0, len(keep), BLOCK):
        chosen = keep[start : start + BLOCK]
        room[start : start + len(chosen)] = images[chosen]
    return room[: len(keep)]
