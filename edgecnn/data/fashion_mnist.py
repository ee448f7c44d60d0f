"""Fashion-MNIST from its four IDX files, packed or not. Source: Xiao, Rasul, Vollgraf 2017 (arXiv:1708.07747)."""

import functools
import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgecnn.data.download import fetch
from edgecnn.data.items import Item, LabelledImages, Meter, Progress, array_items
from edgecnn.data.places import VARIABLE, data_home
from edgecnn.errors import DatasetError
from edgecnn.files import cache_home, sha256

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

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

LABELS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

COPY = "Delete what is there, or replace it with a complete copy."

OFFLINE = (
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
            fetch(f"{URL}{name}.gz", cache / f"{name}.gz", progress, check=check, offline=OFFLINE)
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
            raise DatasetError(f"{folder} lacks {name}.gz, one of Fashion-MNIST's four files. {OFFLINE}")
        arrays[name] = _parse(_check(path, name), path)
        meter.advance()
    items: list[Item] = []
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = arrays[f"{prefix}-images-idx3-ubyte"]
        classes = arrays[f"{prefix}-labels-idx1-ubyte"]
        if pixels.shape[1:] != (28, 28) or classes.shape != pixels.shape[:1] or classes.max(initial=0) >= len(LABELS):
            raise DatasetError(
                f"{folder}: images {pixels.shape} and labels {classes.shape} do not match Fashion-MNIST. {COPY}"
            )
        items.extend(array_items(split, split, pixels[..., np.newaxis], classes.tolist()))
    return LabelledImages(
        name="fashion-mnist",
        title="Fashion-MNIST",
        labels=LABELS,
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


def _parse(data: bytes, path: Path) -> np.ndarray:
    dimensions = data[3] if data[:3] == b"\0\0\x08" and len(data) > 3 else 0
    header = 4 + 4 * dimensions
    if not dimensions or len(data) < header:
        raise DatasetError(f"{path} is not an IDX file of unsigned bytes. {COPY}")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    pixels = np.frombuffer(data, np.uint8, offset=header)
    if pixels.size != np.prod(shape, dtype=object):
        raise DatasetError(f"{path} contains {pixels.size:,} values, but its header says {shape}. {COPY}")
    return pixels.reshape(shape)
