"""Time listing, hashing and decoding of many photos, and measure the memory: does it grow with their number?

The photos are made for this: a few drawn JPEGs, each with different numbers in its quantization table, so that no two have the same bytes
or pixels, and making 100,000 takes seconds. Listing and decoding are those of `edgecnn train`, in a separate process. Anonymous memory
(RssAnon in /proc) is read a hundred times per second.

    python tools/bench/photos.py --n 100000
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import about, environment, finish, parser
from PIL import Image

CLASSES, DRAWN, SIZE = 4, 16, (320, 240)
"""The number of classes, the number of different drawings, each in one class, and their width and height."""


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "photos")
    made.add_argument("--n", type=int, default=100_000, help="photos (default: 100000)")
    made.add_argument("--side", type=int, default=160, help="rows and columns to decode them to (default: 160)")
    made.add_argument("--folder", type=Path, help="where to make them (default: a temporary folder)")
    made.add_argument(
        "--part", action="store_true", help="list and decode the photos of --folder, and print the figures"
    )
    arguments = made.parse_args()
    if arguments.part:
        print(json.dumps(part(arguments.folder, arguments.side)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_photos(Path(name), arguments.n)
        command = [sys.executable, __file__, "--part", "--folder", name, "--side", str(arguments.side)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment())
        found = json.loads(done.stdout.splitlines()[-1])
    size = f"{arguments.side}x{arguments.side}x3"
    report = about("photos", n=arguments.n, photo=f"JPEG, {SIZE[0]}x{SIZE[1]}", input=size) | found
    rows = [
        (
            step,
            f"{found[f'{key}_s']:.1f}",
            f"{arguments.n / found[f'{key}_s']:,.0f}",
            f"{found[f'{key}_anon_mib']:,.0f}",
        )
        for step, key in (("listing and hashing", "listing"), ("decoding", "decoding"))
    ]
    place = "in a mapped file" if found["mapped"] else "in memory"
    rows.append((f"pixels, {place}, MiB", "", "", f"{found['pixels_mib']:,.0f}"))
    finish(arguments.out, report, ("", "seconds", "images/s", "anonymous MiB at the peak"), rows)


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


@contextlib.contextmanager
def memory() -> Iterator[list[float]]:
    """Record this process's anonymous memory during the block; the list collects the readings."""
    readings, ended = [anonymous_mib()], threading.Event()

    def read() -> None:
        while not ended.wait(0.01):
            readings.append(anonymous_mib())

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield readings
    finally:
        ended.set()
        thread.join()


def anonymous_mib() -> float:
    """Return this process's anonymous memory in RAM, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def part(folder: Path, side: int) -> dict[str, Any]:
    """List, hash and decode a folder's photos like training, and return the figures."""
    from edgecnn.data import open_dataset
    from edgecnn.recipe import DataRecipe

    notes: list[str] = []
    start = time.perf_counter()
    with memory() as listing:
        dataset = open_dataset(DataRecipe(source=str(folder)), note=notes.append)
    middle = time.perf_counter()
    with memory() as decoding:
        splits = dataset.load(("train", "validation"), height=side, width=side, channels=3, stage="train")
    return {
        "listing_s": round(middle - start, 2),
        "decoding_s": round(time.perf_counter() - middle, 2),
        "listing_anon_mib": round(max(listing), 1),
        "decoding_anon_mib": round(max(decoding), 1),
        "pixels_mib": round(sum(split.images.nbytes for split in splits.values()) / 2**20, 1),
        "mapped": any("temporary file" in note for note in notes),
    }


if __name__ == "__main__":
    main()
