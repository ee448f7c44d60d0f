"""Atomic writes, hashes and the folders that travel with the package."""

import contextlib
import errno
import io
import json
import os
import stat
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.errors import OutputError, OutputExistsError
from edgecnn.labels import utf8

if TYPE_CHECKING:
    import numpy as np

if sys.version_info >= (3, 12):
    from _sha2 import sha256 as _own_sha256
else:
    from _sha256 import sha256 as _own_sha256


def sha256(data: bytes | memoryview) -> str:
    """Return the SHA-256 of `data`, using Python's own code: `hashlib` loads OpenSSL, which takes 5 MB of a device's memory."""
    return _own_sha256(data).hexdigest()


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Open a file to read its bytes, without a buffer; OSError for a device, a socket or a pipe, which would wait for a writer."""
    try:
        file = io.FileIO(
            os.fspath(path), opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        )
    except ValueError as error:  # a null character in the path
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file")
    return file


def sha256_file(path: Path) -> str:
    import hashlib  # here, for the reason in `sha256`

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys: the same value gives the same text, and so the same hash."""
    return utf8(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1), r"\\") + "\n"


def is_own(path: Path) -> bool:
    """Return whether a path, and its target if it is a link, belong to this process's user."""
    owners = {path.lstat().st_uid}
    with contextlib.suppress(FileNotFoundError):
        owners.add(path.stat().st_uid)
    return owners == {os.geteuid()}


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def output_errors(path: Path):
    """Turn an OSError raised while writing `path` into an OutputError with the path, the system's reason and advice."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        advice = "Free some space." if error.errno in NO_SPACE else "Choose a folder that you can write to."
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Nothing was left half-written. {advice}"
        ) from error


def write_atomic(path: Path, data: bytes | str, mode: int = 0o666) -> None:
    """Write a file so that its path has the old content or the new, never a part; missing folders are made. OutputError if that fails.

    `mode` is its permissions, before the umask.
    """
    content = data.encode() if isinstance(data, str) else data
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.name}.{os.urandom(8).hex()}.tmp"
        # not with `tempfile`, whose files only the owner can read: to fix that takes the umask, which cannot be read without changing it
        with contextlib.ExitStack() as undo:
            with open(name, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
                undo.callback(name.unlink, missing_ok=True)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
            undo.pop_all()


def sync_folder(path: Path) -> None:
    """Make the names of a folder's files survive a power cut, including those from `write_atomic`. OutputError if that fails."""
    with output_errors(path):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


stderr_is_ours = False
"""Whether edgecnn may redirect this process's standard error. The command line sets this; a library leaves it to the program."""

_redirecting = threading.RLock()


@contextlib.contextmanager
def folder_lock(folder: Path, busy: Exception, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes out of a folder; raise `busy` if one stays longer than `wait_s` seconds. OSError if it cannot be opened.

    A lock ends with its process.
    """
    import fcntl  # here, since few commands need it

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise busy from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def quiet_stderr():
    """Hide what native libraries print on standard error, unless the block fails: then show it.

    They write start-up notes past Python's logging, so this redirects the file descriptor itself, in one thread at a time, since two would
    restore each other's. Yields a function that returns the text caught so far.
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
    """Return the descriptor of an empty, unnamed file: in memory on Linux, since importing `tempfile` takes longer."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stderr")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def refuse_existing(path: Path, force: bool) -> None:
    """Raise OutputExistsError if `path` exists and `force` is false."""
    if not force and (path.exists() or path.is_symlink()):
        raise OutputExistsError(f"{path} exists. Add --force to replace it.")


def cache_home() -> Path:
    """Return the folder for files that can be made or downloaded again: $XDG_CACHE_HOME/edgecnn, or ~/.cache/edgecnn."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "edgecnn")


def state_home() -> Path:
    """Return the folder for files that a program keeps: systemd's for a service, else edgecnn/ in $XDG_STATE_HOME or ~/.local/state."""
    of_service = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(of_service or os.path.join(state, "edgecnn"))


def data_folder(name: str) -> Path:
    """Return a folder that travels with the package, `targets` or `models`: in `edgecnn/_data/`, as in a wheel, or next to the package."""
    package = Path(__file__).parent
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"this installation of edgecnn has no {name}/ folder: install it again")


PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600  # such as for pictures of somebody's home


def private_folder(path: Path) -> None:
    """Make a folder that only its owner can read; leave an existing one unchanged. OutputError if that fails."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


def csv_text(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    import csv  # here, since the device's start does not need it

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((columns, *rows))
    return text.getvalue()


def csv_rows(data: bytes) -> list[dict[str, str]]:
    """Return the rows of CSV below a header line, by column; ValueError if they cannot be read."""
    import csv

    try:
        return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    except csv.Error as error:
        raise ValueError(str(error)) from None


def npy(array: "np.ndarray") -> bytes:
    import numpy as np  # here, since the start of a command does not need it

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz(arrays: "Mapping[str, np.ndarray]") -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_npz(path: Path) -> "dict[str, np.ndarray]":
    """Return the arrays of an .npz file by name; none if it is missing or damaged."""
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return {}
