"""The benefit of an NVIDIA GPU for edgecnn, and whether work really runs on it: training, inference, a folder of photos, the engine matrix.

Photos are drawn, and a network is trained on them, exported, verified and bundled, all with edgecnn's own commands. Then:

    training   images/s of both phases, and the GPU's utilization
    inference  int8, float32 and float16 ONNX files in the session that edgecnn opens, with one image and 64: with `run`, which copies both
               ways, and with input and output bound to device memory; interleaved, medians
    placement  operators that ONNX Runtime's own profile shows on another device, and their share of the time
    folder     `edgecnn classify DIR --provider …`: images/s of the whole process, and the GPU's utilization
    matrix     `edgecnn verify --matrix`: agreement of this device with every other engine

The bench fails if a session or TensorFlow silently runs on the CPU, if engines disagree, or if it takes over eight minutes.
docs/boards.md explains what to install.

    python tools/bench/gpu.py
    python tools/bench/gpu.py --provider cpu --network resnet_25kb --side 32 --photos 200 --out /tmp/cpu.json    # without a GPU
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import about, edgecnn, edgecnn_command, environment, finish, parser, ran
from photos import write_photos

from edgecnn.export import export_path
from edgecnn.runs import HISTORY, open_run
from edgecnn.runtime.engines import Engine, open_engine
from edgecnn.runtime.model import measure_interleaved

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
PRECISIONS = ("int8", "float32", "float16")
BATCHES = (1, 64)
TESTED = 64
"""Photos that verify measures. The matrix also runs reference kernels, which take a second per photo for a large network."""

LIMIT_S, AGREEMENT = 480, 0.95
"""The goals: seconds for the whole bench, and the minimum agreement of two engines."""

PLACE = (
    "import json, tensorflow as tf; print(json.dumps(tf.linalg.matmul(tf.ones((64, 64)), tf.ones((64, 64))).device))"
)
HEADINGS = ("precision", "batch", "images/s", "ms", "bound, ms", "binding", "on another device")
Figures = dict[str, Any]


def main() -> None:
    """Measure, print a table and write the figures; exit code 1 if a check fails."""
    arguments = options()
    report = measure(arguments)
    finish(arguments.out, report, HEADINGS, rows(report))
    for line in sentences(report):
        print(line)
    if failed := [name for name, passed in report["checks"].items() if not passed]:
        sys.exit(f"failed: {'; '.join(failed)}")


def options(line: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    made = parser(__doc__, "gpu")
    made.add_argument("--provider", choices=tuple(PROVIDERS), default="cuda", help="default: %(default)s")
    made.add_argument("--network", default="efficientnet_lite0_1200kb", help="default: %(default)s")
    made.add_argument("--side", type=int, default=160, help="rows and columns of its input (default: 160)")
    made.add_argument("--photos", type=int, default=4000, help="drawn photos, 320x240 (default: 4000)")
    made.add_argument("--epochs", type=int, default=2, help="per phase; the last one counts (default: 2)")
    made.add_argument("--n", type=int, default=200, help="timed calls of each kind (default: 200)")
    return made.parse_args(line)


def measure(arguments: argparse.Namespace) -> Figures:
    """Run every part and return the report."""
    started = time.monotonic()
    gpu = gpu_name() if arguments.provider == "cuda" else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos" / "train", arguments.photos)
        write_photos(folder / "photos" / "test", TESTED, first=arguments.photos)
        training = trained(folder, arguments)
        edgecnn("export", "run", "--format", "tflite", "--int8", cwd=folder)
        for precision in PRECISIONS:
            edgecnn("export", "run", "--format", "onnx", f"--{precision}", cwd=folder)
        matrix = agreements(folder, arguments.provider)
        edgecnn("bundle", "run", "--out", "photos.edgecnn", cwd=folder)
        files = {precision: export_path(open_run(folder / "run"), "onnx", precision) for precision in PRECISIONS}
        inference = [item for precision, path in files.items() for item in timed(path, arguments, precision)]
        classified = [classify(folder, arguments.provider, precision) for precision in PRECISIONS]
    seconds = time.monotonic() - started
    elsewhere = {operator for item in inference for operator in item["elsewhere"]}
    device = "GPU" if arguments.provider == "cuda" else "CPU"
    return {
        **about("gpu", provider=arguments.provider, gpu=gpu, network=arguments.network, side=arguments.side),
        "photos": arguments.photos,
        "training": training,
        "inference": inference,
        "folder": classified,
        "matrix": matrix,
        "seconds": round(seconds, 1),
        "checks": {
            f"TensorFlow computes on a {device}": f"device:{device}:" in training["device"],
            "no convolution runs on another device": not {"Conv", "FusedConv", "QLinearConv"} & elsewhere,
            f"engines agree on {AGREEMENT:.0%} of the photos": (matrix["least_agreement"] or 0.0) >= AGREEMENT,
            f"the bench takes at most {LIMIT_S} s": seconds <= LIMIT_S,
        },
    }


def gpu_name() -> str:
    """Return the GPU's name and driver version. Exits if there is no GPU."""
    if not shutil.which("nvidia-smi"):
        sys.exit("no NVIDIA GPU here: nvidia-smi was not found. To run without one: --provider cpu")
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def watched(call: Callable[[], Any]) -> tuple[Any, float | None]:
    """Return a call's result, and the mean utilization of the GPU meanwhile, 0 to 1; None without a GPU."""
    if not shutil.which("nvidia-smi"):
        return call(), None
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            result = call()
        finally:
            process.terminate()
            assert process.stdout
            shares = [int(line) / 100 for line in process.stdout.read().split() if line.isdigit()]
    return result, statistics.fmean(shares) if shares else None


def trained(folder: Path, arguments: argparse.Namespace) -> Figures:
    """Train on the photos. Returns images/s of each phase's last epoch, the GPU's utilization, and TensorFlow's device."""
    command = [
        "train",
        *["--data", "photos", "--out", "run", "--set", "qat.method=qat"],
        "--network",
        arguments.network,
    ]
    command += f"--size {arguments.side} --epochs {arguments.epochs} --qat-epochs {arguments.epochs}".split()
    _, busy = watched(lambda: edgecnn(*command, cwd=folder))
    with (folder / "run" / HISTORY).open(encoding="utf-8") as file:
        phases = {row["phase"]: float(row["images_per_s"]) for row in csv.DictReader(file)}
    return {"images_per_s": phases, "busy": busy, "device": tensorflows_device()}


def tensorflows_device() -> str:
    """Return the device on which TensorFlow multiplies matrices, from a separate process, so that this one leaves the GPU alone."""
    placed = subprocess.run([sys.executable, "-c", PLACE], check=True, capture_output=True, env=environment())
    return str(json.loads(placed.stdout))


def agreements(folder: Path, provider: str) -> Figures:
    """Verify the run with the matrix. Returns the row of this provider's session, and its lowest agreement with another engine."""
    report = json.loads(edgecnn("verify", "run", "--matrix", "--max-drop", "100", "--json", cwd=folder))
    found = [
        row for row in report["matrix"] if row["name"].startswith("onnxruntime") and f"({provider})" in row["name"]
    ]
    row: Figures = found[0] if found else {"name": "", "note": f"no session on {provider}", "against": []}
    cells = {cell["name"]: cell["agreement"] for cell in row["against"]}
    return {
        "engine": row["name"],
        "note": row["note"],
        "against": cells,
        "least_agreement": min(cells.values(), default=None),
    }


def timed(path: Path, arguments: argparse.Namespace, precision: str) -> list[Figures]:
    """Time an ONNX file at each batch size, `run` against bound memory. Raises an error if its session is not on the provider."""
    engine = open_engine("onnxruntime", path.read_bytes(), "onnx", provider=arguments.provider)
    elsewhere, share = placement(path, engine, arguments.provider)
    about_file = {"precision": precision, "elsewhere": elsewhere, "elsewhere_share": share}
    found = []
    for batch in BATCHES:
        images = drawn(engine, batch)
        calls: dict[str, Callable[[], Any]] = {"run": partial(engine.run, images)}
        if engine.input.shape[0] in (-1, batch):
            calls["bound"] = bound(engine, images, arguments.provider)
        times = measure_interleaved(calls, warmup=10, repeats=max(10, arguments.n // batch))
        ms = {name: item.p50_ms for name, item in times.items()}
        found.append({**about_file, "batch": batch, "ms": ms, "images_per_s": 1000 * batch / min(ms.values())})
    return found


def drawn(engine: Engine, batch: int) -> np.ndarray:
    """Draw a random batch for the engine's input; speed does not depend on the content."""
    shape, random = (batch, *engine.input.shape[1:]), np.random.default_rng(0)
    if engine.input.dtype == np.float32:
        return random.uniform(-1, 1, shape).astype(np.float32)
    limits = np.iinfo(engine.input.dtype)
    return random.integers(limits.min, limits.max, shape, engine.input.dtype, endpoint=True)


def bound(engine: Engine, images: np.ndarray, provider: str) -> Callable[[], None]:
    """Return a call of the session whose input and output stay in device memory."""
    import onnxruntime

    session = engine._session  # type: ignore[attr-defined] # times the very session that edgecnn opened
    binding = session.io_binding()
    binding.bind_ortvalue_input(engine.input.name, onnxruntime.OrtValue.ortvalue_from_numpy(images, provider, 0))
    binding.bind_output(engine.output.name, provider)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def placement(path: Path, engine: Engine, provider: str) -> tuple[dict[str, int], float]:
    """Return the operators that run on another device than requested, by type, and their share of the operators' time."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        settings = onnxruntime.SessionOptions()
        settings.enable_profiling, settings.profile_file_prefix = True, f"{folder}/profile"
        settings.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(path), settings, providers=[PROVIDERS[provider]])
        for _ in range(3):  # the first call is not typical
            session.run(None, {engine.input.name: drawn(engine, 1)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    times: Counter[bool] = Counter()
    others: dict[str, set[str]] = {}
    for event in events:
        where = event.get("args", {}).get("provider")
        if event.get("cat") != "Node" or not where:
            continue
        times[where == PROVIDERS[provider]] += event["dur"]
        if where != PROVIDERS[provider]:
            others.setdefault(event["args"]["op_name"], set()).add(event["name"])
    if not times[True]:
        sys.exit(f"{path.name}: {PROVIDERS[provider]} ran no operators")
    return {name: len(nodes) for name, nodes in sorted(others.items())}, times[False] / times.total()


def classify(folder: Path, provider: str, precision: str) -> Figures:
    """Classify one class's photos with the command, in a separate process. The time includes its start."""
    photos = folder / "photos" / "train" / "class0"
    count = sum(1 for _ in photos.iterdir())
    command = [*edgecnn_command(), "classify", str(photos), "--model", str(folder / "photos.edgecnn"), "--json"]
    command += ["--engine", "onnxruntime", "--provider", provider, "--precision", precision]
    out = folder / "answers.jsonl"
    done, busy = watched(lambda: ran(command, out))
    assert len(out.read_text(encoding="utf-8").splitlines()) == count
    return {
        "precision": precision,
        "photos": count,
        "seconds": done.seconds,
        "images_per_s": count / done.seconds,
        "busy": busy,
    }


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the inference figures as text, under HEADINGS."""
    found: list[tuple[str, ...]] = []
    for item in report["inference"]:
        run, binding = item["ms"]["run"], item["ms"].get("bound")
        pays = "-" if binding is None else "pays" if binding < 0.95 * run else "no gain"
        other = ", ".join(f"{count} {name}" for name, count in item["elsewhere"].items()) or "nothing"
        cells = (
            f"{item['images_per_s']:,.0f}",
            f"{run:.3f}",
            "-" if binding is None else f"{binding:.3f}",
            pays,
            other,
        )
        found.append((item["precision"], str(item["batch"]), *cells))
    return found


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Return the other figures as sentences."""

    def busy(share: float | None) -> str:
        return "" if share is None else f", the GPU {share:.0%} busy"

    training, matrix = report["training"], report["matrix"]
    speeds = ", ".join(f"{name} {value:,.0f}" for name, value in training["images_per_s"].items())
    folder = ", ".join(
        f"{item['precision']} {item['images_per_s']:,.0f}{busy(item['busy'])}" for item in report["folder"]
    )
    least = (
        "did not run" if matrix["least_agreement"] is None else f"agrees on at least {matrix['least_agreement']:.2%}"
    )
    return [
        f"Training, images/s: {speeds}{busy(training['busy'])}; TensorFlow runs on {training['device'].rpartition('/')[2]}.",
        f"A folder of {report['folder'][0]['photos']:,} photos, images/s: {folder}.",
        f"The matrix: {matrix['engine'] or matrix['note']} {least} with the other engines.",
        f"The whole bench took {report['seconds']:.0f} s.",
    ]


if __name__ == "__main__":
    main()
