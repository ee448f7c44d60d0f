"""Measure the default model for the speed table in docs/figures.md: `edgecnn benchmark` on one drawn photo, in all installed engines.

The photo is drawn with detail at every scale, like a real one, so its file is about as large as a camera's. Run this on an idle machine:

    python tools/bench/benchmark.py --n 1000 && python tools/readme.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from harness import ROOT, edgecnn, parser
from PIL import Image

from edgecnn.files import canonical_json, write_atomic
from edgecnn.runtime.default import SHIPPED

SIZE, QUALITY = (640, 480), 90


def main() -> None:
    """Draw the photo, measure, and write the figures."""
    made = parser(__doc__, "benchmark")
    made.add_argument("--n", type=int, default=1000, help="calls of each configuration (default: 1000)")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        draw().save(photo, quality=QUALITY)
        size = photo.stat().st_size
        command = ["benchmark", str(photo), "--model", f"models/{SHIPPED}/{SHIPPED}.edgecnn", "--json"]
        report = json.loads(edgecnn(*command, "--n", f"{arguments.n}", cwd=ROOT))
    about = f"one drawn photo of {SIZE[0]}x{SIZE[1]} pixels, JPEG quality {QUALITY}, {size:,} bytes"
    report["images"] = {"about": about, "count": 1, "names": ["photo.jpg"]}
    write_atomic(arguments.out, canonical_json(report))
    print(arguments.out)


def draw() -> Image.Image:
    """Draw a photo from noise at every scale, each 0.7 times as strong as the next coarser one."""
    random = np.random.default_rng(0)
    width, height = SIZE
    total = np.zeros((height, width, 3), np.float32)
    strength, cells = 100.0, 2
    while cells < width:
        coarse = Image.fromarray(random.integers(0, 256, (cells * 3 // 4 + 1, cells, 3), np.uint8))
        total += strength * (np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.float32) / 255 - 0.5)
        strength, cells = strength * 0.7, cells * 2
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
