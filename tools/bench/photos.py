"""Many photos, made in seconds: a few drawn JPEGs, each with different numbers in its quantization table.

No two have the same bytes or pixels.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES, DRAWN, SIZE = 4, 16, (320, 240)
"""The number of classes, the number of different drawings, each in one class, and their width and height."""


def write_photos(folder: Path, count: int, first: int = 0) -> None:
    """Write photos as folder/CLASS/*.jpg, equally many per class, no two with the same pixels; `first` is the index of the first one.

    The photo's index determines three numbers of the luminance's quantization table: the factors of the constant and of the two lowest
    frequencies. They change every pixel without encoding any photo again.
    """
    drawings = [drawn(number) for number in range(DRAWN)]
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        data, place = drawings[index % DRAWN]
        number = index // DRAWN
        for digit in range(3):
            data[place + digit] = 12 + number % 32
            number //= 32
        (folder / f"class{index % DRAWN % CLASSES}" / f"{index}.jpg").write_bytes(data)


def drawn(number: int) -> tuple[bytearray, int]:
    """Return a drawing as a JPEG's bytes, and the offset of the luminance's quantization table."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (8 + number % CLASSES, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=85)
    data = bytearray(buffer.getvalue())
    return data, data.index(b"\xff\xdb") + 5  # the marker, two bytes of length, one that identifies the table
