"""What an answer of each network costs at several inputs: bytes, multiplications, time and memory of its int8 file.

The weights are random: they change none of these. Milliseconds are of the processor, on one thread, so that other work on the machine
changes them little: on an idle machine, wall time is the same. Memory is the largest resident set of a process that opens the file and
answers once.

    python tools/bench/networks.py && python tools/readme.py
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from harness import Row, about, finish, interleaved, parser, ran

from edgecnn.runtime.engines import open_engine

CASES = {
    "resnet_25kb": (96,),
    "resnet_100kb": (96,),
    "efficientnet_lite0_150kb": (96, 160, 224),
    "efficientnet_lite0_270kb": (160,),
    "efficientnet_lite0_1200kb": (96, 160, 192, 224),
    "efficientnet_lite0_4000kb": (160, 192, 224),
    "efficientnet_lite2_1800kb": (160, 260),
    "efficientnet_lite2_5600kb": (160, 260),
}
"""Each network, and the sides of the inputs that it is measured at."""

CLASSES, CALIBRATION = 6, 8
HEADINGS = ("network", "input", "int8 bytes", "MACs", "ms, p50 / p90", "memory, MiB")
ANSWER = """\
import sys
import numpy as np
from edgecnn.runtime.engines import open_engine
engine = open_engine(None, open(sys.argv[1], "rb").read(), "tflite", num_threads=1)
engine.run(np.zeros((1, int(sys.argv[2]), int(sys.argv[2]), 3), np.int8))
"""


def main() -> None:
    """Convert, measure, print a table and write the figures."""
    made = parser(__doc__, "networks")
    made.add_argument("--n", type=int, default=100, help="calls of each file (default: %(default)s)")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [converted(name, side, Path(folder)) for name, sides in CASES.items() for side in sides]
        calls = {}
        for row in rows:
            path, side = Path(folder, f"{row['network']}-{row['side']}.tflite"), row["side"]
            engine = open_engine(None, path.read_bytes(), "tflite", num_threads=1)
            pixels = np.random.default_rng(1).integers(-128, 128, (1, side, side, 3), np.int8)
            calls[path.stem] = partial(milliseconds, engine.run, pixels)
            row["peak_mib"] = round(ran([sys.executable, "-c", ANSWER, path, str(side)]).peak_mib, 1)
        times = interleaved(calls, arguments.n, warmup=3)
    for row in rows:
        p50, p90 = np.percentile(times[f"{row['network']}-{row['side']}"], (50, 90))
        row |= {"p50_ms": round(p50, 3), "p90_ms": round(p90, 3)}
    report = about("networks", n=arguments.n, classes=CLASSES, load=round(os.getloadavg()[0], 1), results=rows)
    finish(arguments.out, report, HEADINGS, table(rows))


def converted(name: str, side: int, folder: Path) -> Row:
    """Write a network's int8 file into a folder and return what is known of it without running it."""
    from edgecnn.export import tflite
    from edgecnn.networks import build_network
    from edgecnn.networks.blocks import describe

    images = np.random.default_rng(1).integers(0, 256, (CALIBRATION, side, side, 3), np.uint8)
    model = build_network(name, side, side, 3, CLASSES)
    data = tflite.int8_post_training(model, tflite.RepresentativeDataset(images, 1 / 128, 0))
    (folder / f"{name}-{side}.tflite").write_bytes(data)
    return {"network": name, "side": side, "int8_bytes": len(data), "macs": describe(model).macs}


def milliseconds(run: Callable[[np.ndarray], object], pixels: np.ndarray) -> float:
    """Return the processor's milliseconds of one answer."""
    start = time.thread_time()
    run(pixels)
    return (time.thread_time() - start) * 1000


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the table's cells."""
    return [
        (
            f"`{row['network']}`",
            f"{row['side']}x{row['side']}",
            f"{row['int8_bytes']:,}",
            f"{row['macs'] / 1e6:,.0f} million",
            f"{row['p50_ms']:.2f} / {row['p90_ms']:.2f}",
            f"{row['peak_mib']:.0f}",
        )
        for row in rows
    ]


if __name__ == "__main__":
    main()
