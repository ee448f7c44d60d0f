"""CIFAR-10 from its official Python archive, read in memory and without executing what a pickle may hold.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import hashlib
import io
import pickle
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edgecnn.data.download import Remote, fetch
from edgecnn.data.listing import Item, Listing, Meter, Progress, array_items, held
from edgecnn.data.places import VARIABLE, data_home
from edgecnn.errors import DatasetError
from edgecnn.files import cache_home, sha256_file

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
FOLDER = "cifar-10-batches-py"

BATCHES: Mapping[str, str] = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""MD5 of each file of the unpacked folder, as published; it tells a damaged copy, and safety does not rest on it."""

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
VALUES = SIDE * SIDE * 3

OFFLINE = f"Without a network: put {ARCHIVE} (or {FOLDER}/, unpacked) into a folder and set {VARIABLE} to that folder."


def open_cifar10(progress: Progress | None = None) -> Listing:
    """CIFAR-10: 60,000 colour photographs of 32x32 pixels in 10 classes; a download of 163 MiB.

    The archive or its unpacked folder is looked for in $EDGECNN_DATA and the cache, and downloaded otherwise.

    Raises:
        DatasetError: if the copy found is not CIFAR-10.
        DownloadError, OutputError: as `download.fetch` does.
    """
    home, cache = data_home(), cache_home()
    for folder in (home, cache):
        for path in (folder / ARCHIVE, folder / FOLDER, folder) if folder else ():
            if is_cifar10(path):
                return read_cifar10(path, progress)
    fetch(Remote(url=URL, check=_check_archive, offline=OFFLINE), cache / ARCHIVE, progress)
    return read_cifar10(cache / ARCHIVE, progress)


def is_cifar10(path: Path) -> bool:
    """Tell whether a path is named as the archive is, or is a folder with its first batch."""
    return (path.name == ARCHIVE and path.is_file()) or (path / "data_batch_1").is_file()


def read_cifar10(path: Path, progress: Progress | None = None) -> Listing:
    """List CIFAR-10 from its archive or its unpacked folder.

    Raises:
        DatasetError: if it is not CIFAR-10, damaged, or holds a pickle that asks for more than numbers and strings.
    """
    meter = Meter(progress, "reading cifar10", len(BATCHES))
    batches: dict[str, list[Item]] = {}
    for name, data in _from_folder(path) if path.is_dir() else _from_archive(path):
        received = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if received != BATCHES[name]:
            raise DatasetError(
                f"{path}: {name} is not CIFAR-10's: its MD5 is {received}, expected {BATCHES[name]}. "
                f"Replace it with a whole copy of {URL}."
            )
        pixels, classes = read_batch(data, f"{path}: {name}")
        split = "test" if name == "test_batch" else "train"
        batches[name] = list(array_items(split, name, pixels, classes))
        meter.advance()
    missing = [name for name in BATCHES if name not in batches]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}. Replace it with a whole copy of {URL}.")
    return Listing(
        name="cifar10",
        title="CIFAR-10",
        labels=LABELS,
        shape=(SIDE, SIDE, 3),
        mirror=True,
        items=tuple(item for name in BATCHES for item in batches[name]),
        read=held,
    )


def _check_archive(path: Path) -> None:
    try:
        received = sha256_file(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from None
    if received != ARCHIVE_SHA256:
        raise DatasetError(
            f"{path} is not {URL}: its SHA-256 is {received}, expected {ARCHIVE_SHA256}. "
            "Delete it, or replace it with a whole copy."
        )


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    _check_archive(path)
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                file = archive.extractfile(member) if member.isfile() and str(name.parent) == FOLDER else None
                if file is not None and name.name in BATCHES:
                    yield name.name, file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is damaged: {error}. Replace it with a whole copy of {URL}.") from None


def _from_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for name in BATCHES:
        try:
            yield name, (path / name).read_bytes()
        except OSError as error:
            raise DatasetError(
                f"cannot read {path / name}: {error.strerror or error}. Replace it with a whole copy of {URL}."
            ) from None


class _Record:
    """Stands for every class and function that a pickle may name: it keeps what it is given and does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Opcodes(dict[int, Any]):
    """What each opcode of a pickle does; one that is not in it is refused."""

    NAMES = (
        "PROTO STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINSTRING "
        "BINSTRING BINUNICODE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT "
        "SETITEM SETITEMS BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD"
    )

    def __missing__(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"it holds the opcode 0x{code:02x}, which no array of numbers needs")


class _Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python: the one in C gives gigabytes to a pickle of a few bytes that asks."""

    ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    dispatch = _Opcodes(
        {code: pickle._Unpickler.dispatch[code] for (code,) in (getattr(pickle, n) for n in _Opcodes.NAMES.split())}
    )

    def find_class(self, module: str, name: str) -> type[_Record]:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Record


def read_batch(data: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    """Read one pickled batch; nothing that the pickle names is imported or called.

    Args:
        data: a pickled dict whose b"data" is a uint8 array (n, 3072), planes of red, green and blue, and whose
            b"labels" is a list of n class indices.
        where: what messages call the batch.

    Returns:
        uint8 array, shape (n, 32, 32, 3), and the n class indices.

    Raises:
        DatasetError: for anything else.
    """
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        array, classes = batch[b"data"], batch[b"labels"]
        _, shape, kind, fortran, raw = array.state
        if kind.arguments[0] not in (b"u1", "u1") or len(shape) != 2 or shape != (len(classes), VALUES):
            raise ValueError(f"it holds {shape} values of {kind.arguments[0]!r} for {len(classes)} labels")
        if not all(type(label) is int and 0 <= label < len(LABELS) for label in classes):
            raise ValueError(f"a label is not one of 0 to {len(LABELS) - 1}")
        planes = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
    except (pickle.UnpicklingError, LookupError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise DatasetError(f"{where} is not a batch of CIFAR-10: {error}. Replace it with a whole copy.") from None
    except (EOFError, ArithmeticError, MemoryError, RecursionError, struct.error) as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"{where} is damaged: {reason}. Replace it with a whole copy.") from None
    return np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), classes
