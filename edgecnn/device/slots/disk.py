"""Every change that releases make to a disk, one method each, so that a test can record the changes and lose some of them."""

import contextlib
import os
from pathlib import Path


class Disk:
    """The real disk. No change is sure to outlive a power cut until `sync` was called for its file, and for its folder."""

    def make_folder(self, path: Path) -> None:
        """Make a folder that all may read, unless it is there."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
            os.chmod(path, 0o755)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file that all may read, from its beginning."""
        with path.open("wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)

    def sync(self, path: Path) -> None:
        """Wait until a file's content is on the disk, or the names in a folder."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name in its folder, in place of what has that name."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        os.rmdir(path)


def replace(disk: Disk, path: Path, data: bytes) -> None:
    """Write a file so that after a power cut its path holds the old content or the new one, whole.

    Raises:
        OSError: if it cannot be written; the old content is there, and nothing else.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        disk.write(fresh, data)
        disk.sync(fresh)
        disk.rename(fresh, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(fresh)
        raise
    disk.sync(path.parent)
