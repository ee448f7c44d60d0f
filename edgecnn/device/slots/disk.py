"""Changes to the disk, one method each, so that a test can record the changes and lose some of them.

The folder may belong to the service's user while root works in it, so no path below it follows a link.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from edgecnn.errors import SlotError


class Disk:
    """The real disk. A change survives a power cut after `sync` of its file and folder. OSError; SlotError for a link or special file."""

    def __init__(self, root: Path) -> None:
        self.root = root  # may itself be a link, made by systemd

    def make_folder(self, path: Path) -> None:
        with self._folder(path.parent) as parent:
            try:
                os.mkdir(path.name, dir_fd=parent)
            except FileExistsError:
                return
        with self._folder(path) as made:
            os.fchmod(made, 0o755)

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file that everyone may read. An existing file of that name is removed, not written into."""
        with self._folder(path.parent) as folder, contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        with os.fdopen(self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)

    def sync(self, path: Path) -> None:
        descriptor = self._open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file within its folder, replacing any file of the new name."""
        with self._folder(old.parent) as folder:
            os.replace(old.name, new.name, src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, path: Path) -> None:
        with self._folder(path.parent) as folder:
            os.unlink(path.name, dir_fd=folder)

    def remove_folder(self, path: Path) -> None:
        with self._folder(path.parent) as folder:
            os.rmdir(path.name, dir_fd=folder)

    def names(self, path: Path) -> list[str]:
        with self._folder(path) as folder:
            return sorted(os.listdir(folder))

    def open(self, path: Path) -> BufferedReader:
        return os.fdopen(self._open(path, os.O_RDONLY), "rb")

    @contextlib.contextmanager
    def _folder(self, path: Path) -> Iterator[int]:
        descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, path: Path, flags: int) -> int:
        """Open a file or folder one path component at a time, so that no folder can become a link in between."""
        if self.root not in path.parents:
            return os.open(path, flags, 0o600)
        with self._folder(path.parent) as parent:
            try:
                descriptor = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=parent)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                    raise _foreign(path) from None
                raise
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return descriptor
        os.close(descriptor)
        raise _foreign(path)


def _foreign(path: Path) -> SlotError:
    return SlotError(
        f"{path} is a link or a special file, which edgecnn did not make. Find out who made it, and remove it."
    )


def replace(disk: Disk, path: Path, data: bytes) -> None:
    """Write a file so that a power cut leaves either the complete old content or the complete new content."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        disk.write(fresh, data)
        disk.sync(fresh)
        disk.rename(fresh, path)
    except (OSError, SlotError):
        with contextlib.suppress(OSError, SlotError):
            disk.remove(fresh)
        raise
    disk.sync(path.parent)


def read_json(disk: Disk, path: Path, most_bytes: int, damaged: Callable[[object], Exception]) -> Any:
    """Return the content of a JSON file; `damaged` makes the error for a file that is too long or not JSON. Raises OSError or SlotError."""
    with disk.open(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise damaged(f"it has more than {most_bytes:,} bytes")
    try:
        table = json.loads(data)
        json.dumps(table, ensure_ascii=False).encode()  # a lone surrogate is not text
    except RecursionError:
        raise damaged("it is nested too deeply") from None
    except ValueError as error:
        raise damaged(error) from None
    return table
