"""Room for decoded images: in memory, or in a mapped file if there are many."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgecnn.errors import DatasetError, OutputError
from edgecnn.files import cache_home
from edgecnn.memory import available_bytes

SHARE = 0.25
"""Fraction of the available memory that decoded images may take. Beyond it, they go to a mapped file, whose pages the system writes out and
reads again as it needs memory; the rest is for the network, its gradients and batches.
"""


def rooms(
    name: str, counts: Sequence[int], shape: tuple[int, int, int], note: Callable[[str], None] = lambda text: None
) -> list[np.ndarray]:
    """Return an uninitialised uint8 array (count, height, width, channels) for each count; OutputError if their file cannot be made.

    They are in memory if together they take at most SHARE of what is available, else in a temporary file that disappears with the process.
    """
    (height, width, channels), count = shape, sum(counts)
    size, available = count * math.prod(shape), available_bytes()
    about = f"{name}: {count:,} images of {height}x{width}x{channels} take {_gib(size)}"
    if available is None or size <= SHARE * available:
        try:
            return [np.empty((each, *shape), np.uint8) for each in counts]
        except (MemoryError, ValueError):  # ValueError: more than can be addressed
            raise DatasetError(f"{about}, more than this machine has. Choose a smaller input.") from None
    limit, folder = f"more than {SHARE:.0%} of the available memory ({_gib(available)})", cache_home()
    whole = _mapped(folder, (count, *shape), f"{about}, {limit}, so they need a file")
    kind, memory = file_system(folder), ""
    if kind in ("tmpfs", "ramfs"):
        memory = f" WARNING: it is in memory ({kind}); set XDG_CACHE_HOME to a folder on a disk."
    note(
        f"{name}: {_gib(size)} of decoded images, {limit}, are in a temporary file in {folder}, "
        f"which is gone when the command ends.{memory}"
    )
    return np.split(whole, np.cumsum(counts)[:-1])


def _mapped(folder: Path, shape: tuple[int, ...], need: str) -> np.ndarray:
    """Return an array in an unnamed temporary file; if that fails, the message begins with `need`."""
    size = math.prod(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OutputError(
                f"{need}; {folder} has {_gib(free)} left.\n"
                "Free some space, set XDG_CACHE_HOME to a folder on a larger disk, or choose a smaller input."
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), size)
            return np.memmap(file, np.uint8, "r+", shape=shape).view(np.ndarray)
    except OutputError:
        raise
    except (OSError, ValueError, OverflowError) as error:
        raise OutputError(
            f"{need}, which cannot be made in {folder}: {getattr(error, 'strerror', None) or error}.\n"
            "Set XDG_CACHE_HOME to a folder with that much space, or choose a smaller input."
        ) from None


def _reserve(descriptor: int, size: int) -> None:
    """Reserve a file's space on the disk; without it, a mapped page could later find no space, which ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = bytes(1 << 20)  # macOS has no such call
    for start in range(0, size, len(block)):
        os.pwrite(descriptor, block[: size - start], start)


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def file_system(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """Return the kind of file system that a path is on, such as "ext4" or "tmpfs"; "" if the system does not report it."""
    try:
        device = os.stat(path).st_dev
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = [line.partition(" - ")[2].split()[:1] for line in lines if line.split()[2:3] == [number]]
    return kinds[-1][0] if kinds and kinds[-1] else ""
