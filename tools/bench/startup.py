"""Time `edgecnn classify photo.jpg --json` from a cold process against a script written by hand for the one model.

Both run in the same interpreter, interleaved (A, B, A, B, …), after warm-up rounds; the figures are medians of wall time, and of the
largest resident memory in further rounds. The script imports numpy, Pillow and LiteRT, opens the model, decodes, resizes,
invokes and prints, and checks nothing. Bytecode is cached for both, as after any installation.

    python tools/bench/startup.py --python venv/bin/python --n 31
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from edgecnn.bundle.read import Bundle, read_bundle
from edgecnn.errors import BundleError
from edgecnn.files import canonical_json, write_atomic
from edgecnn.runtime.default import find_bundle
from edgecnn.versions import processor

SCRIPT = """\
import sys

import numpy as np
from PIL import Image
from ENGINE.interpreter import Interpreter

interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
read, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
image = Image.open(sys.argv[2]).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
interpreter.set_tensor(read["index"], (np.asarray(image) ^ 128).view(np.int8)[np.newaxis])
interpreter.invoke()
scale, zero_point = answer["quantization"]
logits = (interpreter.get_tensor(answer["index"])[0].astype(np.float32) - zero_point) * scale
scores = np.exp(logits - logits.max())
scores /= scores.sum()
for index in np.argsort(-scores)[:3]:
    print(index, scores[index])
"""

ENGINES = {"litert": "ai_edge_litert", "tflite_runtime": "tflite_runtime"}
VERSIONS = """\
import importlib.metadata, json, platform
names = ("numpy", "pillow", "typer", "ai-edge-litert", "tflite-runtime")
installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version()} | {name: installed[name] for name in names if name in installed}))
"""


PEAK = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Runs a command and prints its largest resident memory in KiB. A small process of its own: what the parent holds when it
starts a command counts as the command's."""


def main() -> None:
    """Measure, print a table and, with --json-out, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter to measure in (default: this one)")
    parser.add_argument("--model", type=Path, help="a bundle with an int8 .tflite model (default: as edgecnn chooses)")
    parser.add_argument("--engine", choices=tuple(ENGINES), default="litert", help="default: litert")
    parser.add_argument("--n", type=int, default=31, help="rounds that count, at least 15 (default: 31)")
    parser.add_argument("--warmup", type=int, default=5, help="rounds before (default: 5)")
    parser.add_argument("--json-out", type=Path, help="write the figures here (default: nowhere)")
    arguments = parser.parse_args()
    if arguments.n < 15:
        parser.error(f"--n must be at least 15, received {arguments.n}")
    bundle = read_bundle(find_bundle(arguments.model).path)
    with tempfile.TemporaryDirectory() as folder:
        calls = commands(Path(folder), bundle, arguments.python, arguments.engine)
        times = measure(calls, arguments.warmup, arguments.n)
        peaks = measure_peaks(calls, arguments.python, max(5, arguments.n // 5))
    figures = {name: summary(values) for name, values in times.items()}
    versions = subprocess.run([arguments.python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout
    report = {
        "bench": "startup",
        "n": arguments.n,
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "versions": json.loads(versions),
        "engine": arguments.engine,
        "bundle_sha256": bundle.sha256,
        "seconds": figures,
        "ratio": figures["edgecnn"]["median"] / figures["script"]["median"],
        "peak_mib": peaks,
        "peak_ratio": peaks["edgecnn"] / peaks["script"],
    }
    print(
        f"{report['machine']}; {' '.join(f'{name} {version}' for name, version in report['versions'].items())}; n = {arguments.n}"
    )
    print(f"{'':10} {'median s':>9} {'p10':>7} {'p90':>7} {'peak MiB':>9}")
    for name, figure in figures.items():
        print(f"{name:10} {figure['median']:9.3f} {figure['p10']:7.3f} {figure['p90']:7.3f} {peaks[name]:9.1f}")
    print(f"{'ratio':10} {report['ratio']:9.3f} {'':15} {report['peak_ratio']:9.3f}")
    if arguments.json_out:
        write_atomic(arguments.json_out, canonical_json(report))


def commands(folder: Path, bundle: Bundle, python: str, engine: str) -> dict[str, list[str]]:
    """Write the photo, the model and the script into a folder; return the two commands to compare."""
    fitting = [entry for entry in bundle.manifest.models if (entry.format, entry.precision) == ("tflite", "int8")]
    if not fitting:
        raise BundleError(f"{bundle.path} has no int8 .tflite model to write a script for")
    contract = bundle.manifest.input
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    photo, model, script = folder / "photo.jpg", folder / "model.tflite", folder / "script.py"
    Image.fromarray(small).resize((640, 480)).save(photo)
    model.write_bytes(bundle.files[fitting[0].file])
    text = (
        SCRIPT.replace("ENGINE", ENGINES[engine])
        .replace("WIDTH", str(contract.width))
        .replace("HEIGHT", str(contract.height))
    )
    script.write_text(
        text
        if contract.channels == 3
        else text.replace('"RGB"', '"L"').replace("[np.newaxis]", "[np.newaxis, ..., np.newaxis]")
    )
    command = Path(python).parent / "edgecnn"
    edgecnn = [str(command)] if command.exists() else [python, "-m", "edgecnn"]
    return {
        "script": [python, str(script), str(model), str(photo)],
        "edgecnn": [
            *edgecnn,
            "classify",
            str(photo),
            "--json",
            "--engine",
            engine,
            "--model",
            str(bundle.path.resolve()),
        ],
    }


def measure(calls: dict[str, list[str]], warmup: int, n: int) -> dict[str, list[float]]:
    """Run the commands interleaved and return each one's wall times in seconds, without the warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for turn in range(warmup + n):
        for name, command in calls.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def measure_peaks(calls: dict[str, list[str]], python: str, n: int) -> dict[str, float]:
    """Run the commands interleaved and return the median of each one's largest resident memory, in MiB."""
    peaks: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n):
        for name, command in calls.items():
            line = [python, "-I", "-S", "-c", PEAK, *command]
            printed = subprocess.run(line, check=True, capture_output=True, text=True).stdout
            peaks[name].append(int(printed) / 1024)
    return {name: statistics.median(values) for name, values in peaks.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Return the median, and the 10th and 90th percentiles."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": deciles[0], "p90": deciles[8]}


if __name__ == "__main__":
    main()
