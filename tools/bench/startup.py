"""Time `edgecnn classify photo.jpg --json` from a cold process against a hand-written script for one model.

Both run in the same interpreter, interleaved, after warm-up rounds, with cached bytecode. Figures are medians. The script checks nothing.

    python tools/bench/startup.py --python venv/bin/python --n 31
"""

import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from harness import about, by_hand, edgecnn_command, finish, interleaved, parser, ran
from PIL import Image

from edgecnn.bundle.file import Bundle, read_bundle
from edgecnn.runtime.default import find_bundle

ENGINES = {"litert": "ai_edge_litert", "tflite_runtime": "tflite_runtime"}
VERSIONS = """\
import importlib.metadata, json, platform
names = ("numpy", "pillow", "typer", "ai-edge-litert", "tflite-runtime")
installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version()} | {name: installed[name] for name in names if name in installed}))
"""


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "startup")
    made.add_argument("--python", default=sys.executable, help="the interpreter to measure in (default: this one)")
    made.add_argument("--model", type=Path, help="a bundle with an int8 .tflite model (default: edgecnn's own choice)")
    made.add_argument("--engine", choices=tuple(ENGINES), default="litert", help="default: litert")
    made.add_argument("--n", type=int, default=31, help="rounds that count (default: 31)")
    arguments = made.parse_args()
    bundle = read_bundle(find_bundle(arguments.model).path)
    with tempfile.TemporaryDirectory() as folder:
        lines = commands(Path(folder), bundle, arguments.python, arguments.engine)
        runs = interleaved({name: partial(ran, line) for name, line in lines.items()}, arguments.n, warmup=5)
    figures = {name: summary([run.seconds for run in items]) for name, items in runs.items()}
    peaks = {name: statistics.median(run.peak_mib for run in items) for name, items in runs.items()}
    versions = subprocess.run([arguments.python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout
    report = {
        **about("startup", engine=arguments.engine, bundle_sha256=bundle.sha256),
        "versions": json.loads(versions),
        "n": arguments.n,
        "seconds": figures,
        "ratio": figures["edgecnn"]["median"] / figures["script"]["median"],
        "peak_mib": peaks,
        "peak_ratio": peaks["edgecnn"] / peaks["script"],
    }
    rows = [(name, *(f"{value:.3f}" for value in figures[name].values()), f"{peaks[name]:.1f}") for name in figures]
    rows.append(("ratio", f"{report['ratio']:.3f}", "", "", f"{report['peak_ratio']:.3f}"))
    finish(arguments.out, report, ("", "median s", "p10", "p90", "peak MiB"), rows)


def commands(folder: Path, bundle: Bundle, python: str, engine: str) -> dict[str, list[str]]:
    """Write the photo, the model and the script into a folder. Returns the two commands to compare."""
    photo = folder / "photos" / "photo.jpg"
    photo.parent.mkdir()
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(small).resize((640, 480)).save(photo)
    settings = ["--json", "--engine", engine, "--model", str(bundle.path.resolve())]
    return {
        "script": [*by_hand(folder, bundle, ENGINES[engine], python), str(photo.parent)],
        "edgecnn": [*edgecnn_command(python), "classify", str(photo), *settings],
    }


def summary(values: list[float]) -> dict[str, float]:
    """Return the median, and the 10th and 90th percentiles."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": deciles[0], "p90": deciles[8]}


if __name__ == "__main__":
    main()
