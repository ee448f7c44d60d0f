"""CIFAR-10 from its official archive in binary form (Krizhevsky 2009), read in memory."""

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from edgecnn.data.download import fetch
from edgecnn.data.items import Item, LabelledImages, Meter, Progress, array_items
from edgecnn.data.places import VARIABLE, data_home
from edgecnn.errors import DatasetError
from edgecnn.files import cache_home, sha256, sha256_file

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
FOLDER = "cifar-10-batches-bin"

BATCHES: Mapping[str, str] = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
"""SHA-256 of each file of the unpacked folder."""

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
"""An image in a batch: its class, then its red, green and blue planes."""

OFFLINE = f"Without a network: put {ARCHIVE} (or {FOLDER}/, unpacked) into a folder and set {VARIABLE} to that folder."


def open_cifar10(progress: Progress | None = None) -> LabelledImages:
    """CIFAR-10: 60,000 colour photographs of 32x32 pixels in 10 classes; a download of 162 MiB."""
    home, cache = data_home(), cache_home()
    for folder in (home, cache):
        for path in (folder / ARCHIVE, folder / FOLDER, folder) if folder else ():
            if is_cifar10(path):
                return read_cifar10(path, progress)
    fetch(URL, cache / ARCHIVE, progress, check=_check_archive, offline=OFFLINE)
    return read_cifar10(cache / ARCHIVE, progress)


def is_cifar10(path: Path) -> bool:
    """Return whether a path has the archive's name, or is a folder with its first batch."""
    return (path.name == ARCHIVE and path.is_file()) or (path / "data_batch_1.bin").is_file()


def read_cifar10(path: Path, progress: Progress | None = None) -> LabelledImages:
    """List CIFAR-10 from its archive or its unpacked folder; DatasetError if it is not CIFAR-10, or damaged."""
    meter = Meter(progress, "reading cifar10", len(BATCHES))
    batches: dict[str, list[Item]] = {}
    for name, data in _from_folder(path) if path.is_dir() else _from_archive(path):
        received = sha256(data)
        if received != BATCHES[name]:
            raise DatasetError(
                f"{path}: {name} is not CIFAR-10's: its SHA-256 is {received}, expected {BATCHES[name]}. "
                f"Replace it with a complete copy of {URL}."
            )
        pixels, classes = read_batch(data, f"{path}: {name}")
        source = name.removesuffix(".bin")
        batches[name] = list(array_items("test" if source == "test_batch" else "train", source, pixels, classes))
        meter.advance()
    missing = [name for name in BATCHES if name not in batches]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}. Replace it with a complete copy of {URL}.")
    return LabelledImages(
        name="cifar10",
        title="CIFAR-10",
        labels=LABELS,
        shape=(SIDE, SIDE, 3),
        mirror=True,
        items=tuple(item for name in BATCHES for item in batches[name]),
    )


def _check_archive(path: Path) -> None:
    try:
        received = sha256_file(path)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from None
    if received != ARCHIVE_SHA256:
        raise DatasetError(
            f"{path} is not {URL}: its SHA-256 is {received}, expected {ARCHIVE_SHA256}. "
            "Delete it, or replace it with a complete copy."
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
        raise DatasetError(f"{path} is damaged: {error}. Replace it with a complete copy of {URL}.") from None


def _from_folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for name in BATCHES:
        try:
            yield name, (path / name).read_bytes()
        except OSError as error:
            raise DatasetError(
                f"cannot read {path / name}: {error.strerror or error}. Replace it with a complete copy of {URL}."
            ) from None


def read_batch(data: bytes, where: str) -> tuple[np.ndarray, list[int]]:
    """Read n records of RECORD_BYTES: uint8 array, shape (n, 32, 32, 3), and the n class indices; DatasetError if the data are invalid."""
    count, rest = divmod(len(data), RECORD_BYTES)
    records = np.frombuffer(data, np.uint8, count * RECORD_BYTES).reshape(count, RECORD_BYTES)
    classes = records[:, 0].tolist()
    if rest or not count or max(classes) >= len(LABELS):
        raise DatasetError(
            f"{where} is not a batch of CIFAR-10: expected records of {RECORD_BYTES:,} bytes, each a class from 0 to "
            f"{len(LABELS) - 1} and 32x32 pixels; received {len(data):,} bytes. Replace it with a complete copy of {URL}."
        )
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), classes
