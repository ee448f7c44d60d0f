"""Time listing, hashing and decoding many photos, and the memory that they take: does it grow with their number?

The photos are made for it: a few drawn JPEGs, each with other numbers in its quantization table, so that no two have the same bytes or
the same pixels, and making 100,000 takes seconds. Listing and decoding are those of `edgecnn train`, in a process of its own; anonymous
memory (RssAnon of /proc) is read a hundred times a second.

    python tools/bench/photos.py --n 100000 --json-out photos.json
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

CLASSES = 4
DRAWN = 16
"""Different drawings, each of a class."""

SIZE = (320, 240)
EVERY_S = 0.01
"""Seconds between two readings of the memory."""


def main() -> None:
    """Measure, print a table and, with --json-out, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100_000, help="photos (default: 100000)")
    parser.add_argument(
        "--side", type=int, default=160, help="rows and columns that they are decoded to (default: 160)"
    )
    parser.add_argument("--folder", type=Path, help="where they are made (default: a temporary folder)")
    parser.add_argument("--json-out", type=Path, help="write the figures here (default: nowhere)")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(part(arguments.folder, arguments.side)))
        return
    from resume import about

    from edgecnn.files import canonical_json, write_atomic
    from edgecnn.report.table import text_table

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        start = time.perf_counter()
        write_photos(Path(name), arguments.n)
        making_s = time.perf_counter() - start
        command = [sys.executable, __file__, "--part", "--folder", name, "--side", str(arguments.side)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    report: dict[str, Any] = {
        **about("photos"),
        "n": arguments.n,
        "photo": f"JPEG, {SIZE[0]}x{SIZE[1]}",
        "input": f"{arguments.side}x{arguments.side}x3",
        "load_average": round(os.getloadavg()[0], 1),
        "making_s": round(making_s, 1),
        **found,
    }
    print(f"{report['machine']}, load {report['load_average']}")
    print(f"n = {arguments.n:,} photos ({report['photo']}), decoded to {report['input']}")
    rows = [
        (
            step,
            f"{found[f'{key}_s']:.1f}",
            f"{arguments.n / found[f'{key}_s']:,.0f}",
            f"{found[f'{key}_anon_mib']:,.0f}",
        )
        for step, key in (("listing and hashing", "listing"), ("decoding", "decoding"))
    ]
    print(text_table(("", "seconds", "images/s", "anonymous MiB at the peak"), rows))
    print(f"pixels: {found['pixels_mib']:,.0f} MiB, {'in a mapped file' if found['mapped'] else 'in memory'}")
    if arguments.json_out:
        write_atomic(arguments.json_out, canonical_json(report))


def write_photos(folder: Path, count: int, first: int = 0) -> None:
    """Write photos as folder/CLASS/*.jpg, the same number of each class, no two with the same pixels; `first` is the first one's index.

    Three numbers of the luminance's quantization table are those of the photo's index: what the constant and the two lowest frequencies are
    multiplied with. They change every pixel, and no photo is encoded again.
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
    """Return a drawing as a JPEG's bytes, and where the luminance's quantization table begins."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (8 + number % CLASSES, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=85)
    data = bytearray(buffer.getvalue())
    return data, data.index(b"\xff\xdb") + 5  # the marker, two bytes of length, one that says which table


class Watch:
    """Reads this process's anonymous memory while it is entered; `peak_mib` is the largest reading."""

    def __enter__(self) -> "Watch":
        self.peak_mib = anonymous_mib()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def _read(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.peak_mib = max(self.peak_mib, anonymous_mib())

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def anonymous_mib() -> float:
    """Return the anonymous memory that this process has in RAM, in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon: Linux 4.5 or later is needed")


def part(folder: Path, side: int) -> dict[str, Any]:
    """List, hash and decode the photos of a folder as training does, and return the figures."""
    from edgecnn.data import open_dataset
    from edgecnn.recipe import DataRecipe

    notes: list[str] = []
    before = anonymous_mib()
    start = time.perf_counter()
    with Watch() as listing:
        dataset = open_dataset(DataRecipe(source=str(folder)), note=notes.append)
    middle = time.perf_counter()
    with Watch() as decoding:
        splits = dataset.load(("train", "validation"), height=side, width=side, channels=3, stage="train")
    end = time.perf_counter()
    return {
        "listing_s": round(middle - start, 2),
        "decoding_s": round(end - middle, 2),
        "before_anon_mib": round(before, 1),
        "listing_anon_mib": round(listing.peak_mib, 1),
        "decoding_anon_mib": round(decoding.peak_mib, 1),
        "pixels_mib": round(sum(split.images.nbytes for split in splits.values()) / 2**20, 1),
        "mapped": any("temporary file" in note for note in notes),
        "duplicates": len(dataset.duplicates),
    }


if __name__ == "__main__":
    main()
