"""The cost of --keep for the camera loop: processor time, and the age of decisions, at 10 frames/s, with every frame unsure.

Runs without --keep, twice, and runs with it are interleaved. In "alike" all frames show the same picture, so one per second is compared.
In "a day's quota" and "each second" all frames differ, and the default quota is kept, or one frame per second. In "full disk" every attempt
fails. A run's processor time is that of the whole process, from the first import on.

    python tools/bench/keep.py
"""

import json
import shutil
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from harness import Row, about, edgecnn_command, finish, interleaved, parser, ran
from PIL import Image

FPS = 10

UNSURE = ("--keep-margin", "1")

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "without": ("bars", ()),
    "without again": ("bars", ()),
    "alike": ("frame.png", UNSURE),
    "a day's quota": ("bars", UNSURE),
    "each second": ("bars", (*UNSURE, "--keep-unsure", "10000")),
    "full disk": ("bars", (*UNSURE, "--keep-unsure", "10000")),
}

HEADINGS = ("", "CPU, s", "over without", "p50 ms", "p99 ms", "frames", "kept")


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "keep")
    made.add_argument("--rounds", type=int, default=5, help="default: 5")
    made.add_argument("--seconds", type=float, default=20.0, help="of each run (default: 20)")
    arguments = made.parse_args()
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        noise = Image.effect_noise((640, 480), 60).convert("RGB")
        noise.save(folder / "frame.png")
        calls = {case: partial(run, case, folder, arguments.seconds) for case in CASES}
        found = interleaved(calls, arguments.rounds, warmup=1)
    rows = [summary(case, runs, found["without"]) for case, runs in found.items()]
    finish(out, {**about("keep", fps=FPS, seconds=arguments.seconds), "results": rows}, HEADINGS, map(line, rows))


def run(case: str, folder: Path, seconds: float) -> Row:
    """Classify frames for some seconds. Returns the processor time, the ages of the decisions, and the number of pictures kept."""
    pattern, options = CASES[case]
    kept = folder / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    keeping: list[Any] = ["--keep", kept, *options] if options else []
    command = [
        *edgecnn_command(),
        "classify",
        f"synthetic:640x480?fps={FPS}&pattern={pattern}",
        "--json",
        "--duration",
        str(seconds),
    ]
    if case == "full disk":
        command = ["prlimit", "--fsize=100", *command]
    # through cat: otherwise the file size limit would also apply to the results
    done = ran(["sh", "-c", '"$@" | cat', "sh", *map(str, [*command, *keeping])], folder / "lines", folder)
    lines = [json.loads(line) for line in (folder / "lines").read_text().splitlines()]
    ages = [line["age_ms"] for line in lines if "seq" in line and "event" not in line]
    return {
        "cpu_seconds": done.cpu_seconds,
        "p50_ms": statistics.median(ages),
        "p99_ms": sorted(ages)[int(0.99 * len(ages))],
        "frames": len(ages),
        "kept": len(list(kept.glob("*/*.jpg"))),
        "failures": sum(line["count"] for line in lines if line.get("event") == "save_failed"),
    }


def summary(case: str, runs: list[Row], without: list[Row]) -> Row:
    """Return medians over the rounds. The difference is the median of the rounds' differences."""
    over = [one["cpu_seconds"] - other["cpu_seconds"] for one, other in zip(runs, without, strict=True)]
    return {
        "case": case,
        **{name: statistics.median(one[name] for one in runs) for name in runs[0]},
        "over": statistics.median(over),
    }


def line(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    kept = f"{row['failures']:.0f} failed" if row["failures"] else f"{row['kept']:.0f}"
    return (
        row["case"], f"{row['cpu_seconds']:.2f}", f"{row['over']:+.2f}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}",
        f"{row['frames']:.0f}", kept,
    )  # fmt: skip


if __name__ == "__main__":
    main()
