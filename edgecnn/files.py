"""Atomic writes, hashes and the folders that travel with the package."""

import contextlib
import errno
import io
import json
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any

from edgecnn.errors import OutputError, OutputExistsError
from edgecnn.labels import utf8

if sys.version_info >= (3, 12):
    from _sha2 import sha256 as _own_sha256
else:
    from _sha256 import sha256 as _own_sha256


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal digits.

    By Python's own code, since `hashlib` loads OpenSSL: 5 MB of a device's memory, and the time for it, to hash a bundle of 2 MB.
    """
    return _own_sha256(data).hexdigest()


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a file to read its bytes, without a buffer; at once, where a pipe would wait for someone who writes to it.

    Raises:
        OSError: if it cannot be opened, or is no regular file but a pipe, a device or a socket.
    """
    try:
        file = io.FileIO(os.fspath(path), opener=_open_at_once)
    except ValueError as error:  # a null character in the path
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    import hashlib  # here, for what `sha256` says

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys: the same value gives the same text, hence the same hash."""
    return utf8(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1), r"\\") + "\n"


def is_own(path: Path) -> bool:
    """Return whether a path, and what it leads to if it is a link, belong to this process's user."""
    owners = {path.lstat().st_uid}
    with contextlib.suppress(FileNotFoundError):
        owners.add(path.stat().st_uid)
    return owners == {os.geteuid()}


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's errors for a full disk, a used-up quota and too large a file."""


@contextlib.contextmanager
def output_errors(path: Path):
    """Turn an OSError raised while writing `path` into an OutputError that names the path and the reason.

    Raises:
        OutputError: with the system's reason and what to do.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        advice = "Free some space." if error.errno in NO_SPACE else "Its folder must be one that you can write to."
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Nothing was left half-written. {advice}"
        ) from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that its path holds the old content or the new, never a part.

    The data go to a temporary file in the same folder, are flushed to the disk and renamed; missing
    folders are made. On failure the temporary file is removed.

    Args:
        path: where to write.
        data: the content; text is written as UTF-8.

    Raises:
        OutputError: if the file cannot be written (no space, no permission, a folder in its place).
    """
    content = data.encode() if isinstance(data, str) else data
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.name}.{os.urandom(8).hex()}.tmp"
        # not by `tempfile`, which lets only the owner read: its files would need the umask, which cannot be read without changing it
        with contextlib.ExitStack() as undo:
            with open(name, "xb") as file:
                undo.callback(name.unlink, missing_ok=True)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
            undo.pop_all()


stderr_is_ours = False
"""Whether edgecnn may redirect this process's standard error. The command line sets it; a program that uses edgecnn as a library writes its
own log there, from other threads too."""

_redirecting = threading.RLock()


@contextlib.contextmanager
def quiet_stderr():
    """Keep what native libraries print on standard error from the user, unless the block fails: then it is shown.

    TensorFlow, its converters and LiteRT write start-up notes past Python's logging, so the file descriptor itself is redirected: by one
    thread at a time, since two would restore each other's. Nothing is redirected unless `stderr_is_ours`.

    Yields:
        A function that returns what was caught so far.
    """
    if not stderr_is_ours:
        yield str
        return
    with _redirecting, contextlib.ExitStack() as opened:
        sys.stderr.flush()
        saved = os.dup(2)
        opened.callback(os.close, saved)
        caught = _unnamed_file()
        opened.callback(os.close, caught)
        os.dup2(caught, 2)
        try:
            yield lambda: os.pread(caught, 1 << 20, 0).decode(errors="replace")
        except BaseException:
            os.dup2(saved, 2)
            os.write(2, os.pread(caught, 1 << 20, 0))
            raise
        finally:
            os.dup2(saved, 2)


def _unnamed_file() -> int:
    """Return the descriptor of an empty file without a name: in memory on Linux, since importing `tempfile` takes longer."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stderr")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def refuse_existing(path: Path, force: bool) -> None:
    """Raise OutputExistsError if `path` exists and `force` is false."""
    if not force and (path.exists() or path.is_symlink()):
        raise OutputExistsError(f"{path} exists.", advice="replace")


def cache_home() -> Path:
    """Return the folder for what can be made or downloaded again: $XDG_CACHE_HOME/edgecnn, or ~/.cache/edgecnn. It may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "edgecnn"


def data_folder(name: str) -> Path:
    """Find a folder that travels with the package: `targets` or `models`.

    A wheel carries it inside the package (`edgecnn/_data/NAME`); an sdist or an editable install has
    it next to the package.

    Args:
        name: the folder's name.

    Returns:
        The folder's path.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    package = Path(__file__).parent
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"this installation of edgecnn has no {name}/ folder: install it again")
