"""Shared by all benches: machine and versions, interleaving, separate processes, results that survive an interruption, and output.

A bench imports this before anything from edgecnn, so that it runs in a checkout that is not installed.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgecnn.bundle.file import Bundle
from edgecnn.files import canonical_json, write_atomic
from edgecnn.labels import text_table
from edgecnn.versions import library_versions, processor

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tools" / "bench" / "results"
T = TypeVar("T")
Row = dict[str, Any]

CHILD = """\
import json, os, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[2:], stdout=open(sys.argv[1], "wb"), stderr=subprocess.PIPE)
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}))
sys.stderr.buffer.write(done.stderr)
sys.exit(done.returncode)
"""
"""Runs a command from its own small process: memory that a parent holds when it starts a command would count as the command's."""


BY_HAND = """\
import os
import sys

import numpy as np
from PIL import Image
from ENGINE.interpreter import Interpreter

interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
read, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
_, height, width, channels = read["shape"]
labels = open(sys.argv[2]).read().split("\\n")
scale, zero_point = answer["quantization"]
for name in sorted(os.listdir(sys.argv[3])):
    image = Image.open(os.path.join(sys.argv[3], name)).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    interpreter.set_tensor(read["index"], (np.asarray(image) ^ 128).view(np.int8).reshape(read["shape"]))
    interpreter.invoke()
    logits = (interpreter.get_tensor(answer["index"])[0].astype(np.float32) - zero_point) * scale
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    best = np.argsort(-scores)[:3]
    print(f"{name}: " + ", ".join(f"{labels[index]} {scores[index]:.2%}" for index in best))
"""
"""The script that one would write by hand for one model. It checks nothing."""


class Ran(NamedTuple):
    """A completed command: wall seconds, processor seconds, and peak resident memory."""

    seconds: float
    cpu_seconds: float
    peak_mib: float


def parser(doc: str | None, name: str) -> argparse.ArgumentParser:
    """Return a bench's argument parser, with --out for its figures."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the figures (default: results/)")
    return made


def about(bench: str, **settings: Any) -> Row:
    """Return everything that a bench's results depend on: its settings, the machine and the library versions."""
    return {
        "bench": bench,
        "machine": f"{processor()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "versions": library_versions(),
        **settings,
    }


class Results:
    """The cases of a long bench, written after each one, so that it resumes where it was interrupted.

    Results from other settings, libraries or machines are not reused.
    """

    def __init__(self, path: Path, context: Mapping[str, Any]) -> None:
        self.path, self.context = path.resolve(), dict(context)
        self.rows: list[Row] = []
        if self.path.exists():
            report = json.loads(self.path.read_text(encoding="utf-8"))
            rows = report.pop("results", [])
            self.rows = rows if report == self.context else []

    def missing(self, **axes: Iterable[Any]) -> Iterator[Row]:
        """Yield the combinations of settings that have no result yet, with the last setting varying fastest."""
        for values in itertools.product(*axes.values()):
            case = dict(zip(axes, values, strict=True))
            if not any(case.items() <= row.items() for row in self.rows):
                yield case

    def add(self, **row: Any) -> None:
        """Store a result, and print it on standard error."""
        self.rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write_atomic(self.path, canonical_json({**self.context, "results": self.rows}))


def finish(path: Path, report: Mapping[str, Any], headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a bench's machine and table, write its figures, and print their path."""
    print(f"{report['machine']}, load {os.getloadavg()[0]:.1f}")
    print(text_table(headings, [tuple(row) for row in rows]))
    write_atomic(path, canonical_json(dict(report)))
    print(path)


def interleaved(calls: Mapping[str, Callable[[], T]], n: int, warmup: int = 0) -> dict[str, list[T]]:
    """Make calls interleaved, A, B, A, B, …, and return the results of each without the warm-up rounds."""
    found: dict[str, list[T]] = {name: [] for name in calls}
    for turn in range(warmup + n):
        for name, call in calls.items():
            result = call()
            if turn >= warmup:
                found[name].append(result)
    return found


def environment() -> dict[str, str]:
    """Return the environment for a process that imports this checkout and may cache its bytecode."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT)}


def ran(command: Sequence[str | Path], out: Path = Path(os.devnull), cwd: Path | None = None) -> Ran:
    """Run a command to its end, with standard output in a file. On failure, exits with its error output."""
    line = [sys.executable, "-I", "-S", "-c", CHILD, str(out), *map(str, command)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment())
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: code {done.returncode}\n{done.stderr[-3000:]}")
    return Ran(**json.loads(done.stdout))


def edgecnn_command(python: str = sys.executable) -> list[str]:
    """Return the command that starts edgecnn: the one installed next to a Python, or the module."""
    installed = Path(python).parent / "edgecnn"
    return [str(installed)] if installed.exists() else [python, "-m", "edgecnn"]


def edgecnn(*arguments: str | Path, cwd: Path | None = None) -> bytes:
    """Run edgecnn in a separate process and return its standard output; its progress is shown."""
    line = [sys.executable, "-m", "edgecnn", *map(str, arguments)]
    return subprocess.run(line, stdout=subprocess.PIPE, check=True, cwd=cwd, env=environment()).stdout


def by_hand(folder: Path, bundle: Bundle, engine: str = "ai_edge_litert", python: str = sys.executable) -> list[str]:
    """Write the script with a bundle's int8 TFLite file and labels into a folder. Returns the command, without the photo folder."""
    entries = [item for item in bundle.manifest.models if (item.precision, item.format) == ("int8", "tflite")]
    if not entries:
        sys.exit(f"{bundle.path} has no int8 .tflite model to write a script for")
    script, model, labels = folder / "script.py", folder / "model.tflite", folder / "labels.txt"
    script.write_text(BY_HAND.replace("ENGINE", engine))
    model.write_bytes(bundle.files[entries[0].file])
    labels.write_text("\n".join(bundle.manifest.labels))
    return [python, str(script), str(model), str(labels)]
