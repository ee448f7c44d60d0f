"""The named datasets, the place of their local copies, and downloads that show progress, resume, retry, and are checked before anything
reads them.

digits: scikit-learn's handwritten digits, in its wheel. cifar10: its official archive in binary form (Krizhevsky 2009), read in memory.
fashion-mnist: its four IDX files, packed or not (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747).
"""

import contextlib
import functools
import gzip
import http.client
import importlib.util
import os
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from edgecnn.data.items import Item, LabelledImages, Meter, Progress, array_items
from edgecnn.errors import DatasetError, DownloadError, EdgeCNNError, OutputError
from edgecnn.files import cache_home, sha256, sha256_file

VARIABLE = "EDGECNN_DATA"


def data_home() -> Path | None:
    """Return the folder that $EDGECNN_DATA names, or None if it is unset; DatasetError if it is not a folder."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    if not os.path.isdir(text):
        raise DatasetError(f"{VARIABLE} is {text!r}, which is not a folder. Unset it, or name a folder of datasets.")
    return Path(text)


ATTEMPTS = 4

PAUSE_S = 1.0
"""Pause before the second attempt; it doubles with each attempt."""

TIMEOUT_S = 30.0
"""Longest wait for a silent server."""

BLOCK_BYTES = 256 * 1024

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP status codes that a later attempt may not get again."""


def download(
    url: str, target: Path, progress: Progress | None = None, *, check: Callable[[Path], object], offline: str
) -> None:
    """Download a file so that `target` holds the whole, checked file or nothing. An interrupted transfer continues from `target` + ".part".

    `check` raises DatasetError for any file but the expected one; `offline` says what to do without a network.
    DownloadError after ATTEMPTS failures or for another file, OutputError if the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    with _writing(part):
        target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, progress)
            break
        except EdgeCNNError:
            raise
        except (OSError, http.client.HTTPException) as error:
            passing = not isinstance(error, urllib.error.HTTPError) or error.code in PASSING
            if attempt == ATTEMPTS or not passing:
                raise DownloadError(f"cannot download {url}: {_reason(error)}.\n{offline}") from None
        time.sleep(PAUSE_S * 2 ** (attempt - 1))
    try:
        check(part)
    except DatasetError as error:
        with _writing(part):
            part.unlink()
        raise DownloadError(
            f"{url} did not send the expected file; what it sent was deleted: {error}\n"
            f"Run the same command to try again. {offline}"
        ) from None
    with _writing(target):
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Append the rest of the file at `url` to `part`."""
    with _writing(part):
        offset = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "edgecnn", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # nothing left to send: the check decides whether the part is right
            return
        raise
    with response:
        resumed = response.status == 206
        start = offset if resumed else 0
        total = 0 if response.length is None else start + response.length
        meter = Meter(progress, f"downloading {url.rpartition('/')[2]}", total)
        meter.advance(start)
        with _writing(part):
            file = part.open("ab" if resumed else "wb", buffering=0)
        with file:
            while block := response.read(BLOCK_BYTES):
                with _writing(part):
                    view = memoryview(block)
                    while view:
                        view = view[file.write(view) :]
                meter.advance(len(block))
    if meter.done < total:
        raise ConnectionError(f"the connection closed after {meter.done:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return getattr(error.reason, "strerror", None) or str(error.reason)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}.\n"
            "Free some space or set XDG_CACHE_HOME to another folder. An interrupted download continues where it stopped."
        ) from error


def open_digits(progress: Progress | None = None) -> LabelledImages:
    """Handwritten digits: 1,797 grey images of 8x8 pixels in 10 classes, from scikit-learn; no download."""
    package = importlib.util.find_spec("sklearn")  # to import it, as its load_digits requires, takes a second
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.int64, delimiter=",")
    pixels = np.rint(rows[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return LabelledImages(
        name="digits",
        title="Handwritten digits (scikit-learn)",
        labels=tuple("0123456789"),
        shape=(8, 8, 1),
        mirror=False,
        items=tuple(array_items("train", "digits", pixels, rows[:, 64].tolist())),
    )


CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
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

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD_BYTES = 1 + 3 * SIDE * SIDE
"""An image in a batch: its class, then its red, green and blue planes."""

CIFAR10_OFFLINE = (
    f"Without a network: put {ARCHIVE} (or {FOLDER}/, unpacked) into a folder and set {VARIABLE} to that folder."
)


def open_cifar10(progress: Progress | None = None) -> LabelledImages:
    """CIFAR-10: 60,000 colour photographs of 32x32 pixels in 10 classes; a download of 162 MiB."""
    home, cache = data_home(), cache_home()
    for folder in (home, cache):
        for path in (folder / ARCHIVE, folder / FOLDER, folder) if folder else ():
            if is_cifar10(path):
                return read_cifar10(path, progress)
    download(CIFAR10_URL, cache / ARCHIVE, progress, check=_check_archive, offline=CIFAR10_OFFLINE)
    return read_cifar10(cache / ARCHIVE, progress)


def is_cifar10(path: Path) -> bool:
    return (path.name == ARCHIVE and path.is_file()) or (path / "data_batch_1.bin").is_file()


def read_cifar10(path: Path, progress: Progress | None = None) -> LabelledImages:
    """List CIFAR-10 from its archive or its unpacked folder; DatasetError if it is not CIFAR-10, or damaged."""
    meter = Meter(progress, "reading cifar10", len(BATCHES))
    batches: dict[str, list[Item]] = {}
    for name, data in _batches(path):
        received = sha256(data)
        if received != BATCHES[name]:
            raise DatasetError(
                f"{path}: {name} is not CIFAR-10's: its SHA-256 is {received}, expected {BATCHES[name]}. "
                f"Replace it with a complete copy of {CIFAR10_URL}."
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
        pixels = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        split, source = "test" if name == "test_batch.bin" else "train", name.removesuffix(".bin")
        batches[name] = list(array_items(split, source, pixels, records[:, 0].tolist()))
        meter.advance()
    missing = [name for name in BATCHES if name not in batches]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}. Replace it with a complete copy of {CIFAR10_URL}.")
    return LabelledImages(
        name="cifar10",
        title="CIFAR-10",
        labels=CIFAR10_LABELS,
        shape=(SIDE, SIDE, 3),
        mirror=True,
        items=tuple(item for name in BATCHES for item in batches[name]),
    )


def _check_archive(path: Path) -> None:
    received = sha256_file(path)
    if received != ARCHIVE_SHA256:
        raise DatasetError(
            f"{path} is not {CIFAR10_URL}: its SHA-256 is {received}, expected {ARCHIVE_SHA256}. "
            "Delete it, or replace it with a complete copy."
        )


def _batches(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            yield from ((name, (path / name).read_bytes()) for name in BATCHES)
            return
        _check_archive(path)
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                file = archive.extractfile(member) if member.isfile() and str(name.parent) == FOLDER else None
                if file is not None and name.name in BATCHES:
                    yield name.name, file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is damaged: {error}. Replace it with a complete copy of {CIFAR10_URL}.") from None


FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

FILES: Mapping[str, str] = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of each file's unpacked bytes, since copies are packed differently."""

MAX_BYTES = 64 * 1024 * 1024
"""More bytes than any of the unpacked files has: a packed file is not unpacked beyond this."""

FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

COPY = "Delete what is there, or replace it with a complete copy."

FASHION_OFFLINE = (
    "Without a network: install Debian's package dataset-fashion-mnist, or put the four files "
    f"({', '.join(f'{name}.gz' for name in FILES)}) into a folder and set {VARIABLE} to it."
)


def open_fashion_mnist(progress: Progress | None = None) -> LabelledImages:
    """Fashion-MNIST: 70,000 grey images of clothes, 28x28 pixels in 10 classes; a download of 30 MiB."""
    home = data_home()
    cache = cache_home() / "fashion-mnist"
    for folder in (*((home, home / "fashion-mnist") if home else ()), SYSTEM):
        if is_fashion_mnist(folder):
            return read_fashion_mnist(folder, progress)
    for name in FILES:
        if not (cache / f"{name}.gz").is_file():
            check = functools.partial(_check, name=name)
            download(f"{FASHION_URL}{name}.gz", cache / f"{name}.gz", progress, check=check, offline=FASHION_OFFLINE)
    return read_fashion_mnist(cache, progress)


def is_fashion_mnist(folder: Path) -> bool:
    """Return whether a folder has the file of Fashion-MNIST's training images, by name."""
    return _find(folder, "train-images-idx3-ubyte") is not None


def read_fashion_mnist(folder: Path, progress: Progress | None = None) -> LabelledImages:
    """List Fashion-MNIST from a folder with its four files; DatasetError if one is missing, damaged or not Fashion-MNIST's."""
    meter = Meter(progress, "reading fashion-mnist", len(FILES))
    arrays = {}
    for name in FILES:
        path = _find(folder, name)
        if path is None:
            raise DatasetError(f"{folder} lacks {name}.gz, one of Fashion-MNIST's four files. {FASHION_OFFLINE}")
        arrays[name] = np.frombuffer(_check(path, name), np.uint8)
        meter.advance()
    items: list[Item] = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = arrays[f"{prefix}-images-idx3-ubyte"][16:].reshape(-1, 28, 28, 1)  # after the header of an IDX file
        classes = arrays[f"{prefix}-labels-idx1-ubyte"][8:].tolist()
        items.extend(array_items(split, split, pixels, classes))
    return LabelledImages(
        name="fashion-mnist",
        title="Fashion-MNIST",
        labels=FASHION_LABELS,
        shape=(28, 28, 1),
        mirror=True,
        items=tuple(items),
    )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _check(path: Path, name: str) -> bytes:
    """Return a file's unpacked bytes if they are those of `name`; the first two bytes show whether it is packed."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}. {COPY}") from None
    received = sha256(data)
    if received != FILES[name]:
        raise DatasetError(
            f"{path} is not Fashion-MNIST's {name}: the SHA-256 of its unpacked bytes is {received}, expected "
            f"{FILES[name]}. {COPY}"
        )
    return data
