"""Measure a bundle on this machine: all engines, precisions and threads by turns."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from edgecnn.bundle.manifest import PRECISIONS, Manifest
from edgecnn.bundle.read import Bundle
from edgecnn.device.bench_images import BenchImages
from edgecnn.device.system import Finished, System
from edgecnn.errors import EngineError, UnknownNameError, nearest
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import ENGINES, first_installed, is_installed, known_engine, offering, open_engine
from edgecnn.runtime.model import bundle_model
from edgecnn.runtime.timing import interleave, percentile

BLOCK = 10
"""Calls of one turn. Before them come calls that do not count, until SETTLE_S has passed: for the caches, and for threads of
other turns that still spin."""

SETTLE_S = 0.005
THREADS = (1, 2, 4)
PARTS = ("decode", "preprocess", "infer", "whole")
TIE = 0.02
RULE = "smallest p50 of infer; within 2 % of it the smaller p90, then fewer threads"
ELIGIBLE = "only models that passed the bundle's gate and, here, its golden vectors"
PROBE_TIMEOUT_S = 300.0


class Configuration(NamedTuple):
    """What is opened: an engine, a model file of the bundle and its precision, threads of one inference, the provider asked for."""

    engine: str
    file: str
    precision: str
    threads: int
    provider: str | None

    @property
    def name(self) -> str:
        """The configuration for people."""
        provider = f" {self.provider}" if self.provider else ""
        return f"{self.engine}{provider} {self.precision}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Percentiles(NamedTuple):
    """Wall time of `n` calls in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int


class Opened(NamedTuple):
    """What a configuration's own process found: see `edgecnn.device.probe`."""

    version: str
    computes: str
    peak_mib: float
    golden: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration's figures. `gate` is the bundle's own verdict on the model, None where it has no report on it; `cold` as
    `cold_starts` measures, None where that was not done."""

    configuration: Configuration
    opened: Opened
    parts: Mapping[str, Percentiles]
    gate: bool | None
    cold: Percentiles | None

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen: right by the bundle's gate, and right here."""
        return bool(self.gate) and not self.opened.golden

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return {
            **self.configuration._asdict(),
            **self.opened._asdict(),
            **{part: figures._asdict() for part, figures in self.parts.items()},
            "gate": self.gate,
            "eligible": self.eligible,
            "cold_start": self.cold._asdict() if self.cold else None,
        }


class Sweep(NamedTuple):
    """What was measured, fastest first, what could not run and why, whether it was interrupted, and how busy the machine was before."""

    rows: tuple[Row, ...]
    failed: Mapping[Configuration, str]
    interrupted: bool
    load_average: float


def configurations(
    manifest: Manifest,
    *,
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    threads: Sequence[int] = (),
    provider: str | None = None,
) -> list[Configuration]:
    """List what there is to measure: each engine with each of the bundle's models and each number of threads.

    Args:
        manifest: of the bundle.
        engines: names, each of which must be installed; all that are installed by default.
        precisions: names; all that the bundle has by default.
        threads: by default those of THREADS for which this process has CPUs.
        provider: "cpu" or "cuda"; each engine's own by default.

    Raises:
        UnknownNameError: for an engine or precision that does not exist.
        EngineError: if nothing is left to measure, or an engine that was asked for is not installed.
        ProviderError: if no engine offers the provider.
    """
    for name in engines:
        known_engine(name)
        first_installed([name])
    for name in precisions:
        if name not in PRECISIONS:
            raise UnknownNameError(f"no precision {name!r}. {nearest(name, PRECISIONS)}")
    offered = offering(list(dict.fromkeys(engines)) or list(ENGINES), provider)
    chosen = [name for name in offered if is_installed(name)]
    if not chosen:
        first_installed(offered)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted(set(threads)) or [count for count in THREADS if count <= cpus]
    found = [
        Configuration(name, model.file, model.precision, count, provider)
        for name in chosen
        for model in manifest.models
        if model.format == ENGINES[name].format and (not precisions or model.precision in precisions)
        for count in counts
    ]
    if not found:
        has = ", ".join(f"{model.precision} .{model.format}" for model in manifest.models)
        raise EngineError(
            f"the bundle has nothing to measure on {', '.join(chosen)}: it has {has}. See --engine and --precision."
        )
    return found


def gate(bundle: Bundle) -> dict[str, bool]:
    """Return, for each model file that the bundle's parity report speaks of, whether all of its comparisons passed the gate."""
    try:
        comparisons = json.loads(bundle.files["parity.json"])["comparisons"]
        passed: dict[str, list[bool]] = {}
        for item in comparisons:
            passed.setdefault(item["candidate"], []).append(bool(item["passed"]))
    except (KeyError, TypeError, ValueError):
        return {}
    names = {f"{model.format}-{model.precision}": model.file for model in bundle.manifest.models}
    return {names[name]: all(verdicts) for name, verdicts in passed.items() if name in names}


def probe(
    bundle: Bundle, configuration: Configuration, largest: str = "", system: System | None = None
) -> Opened | str:
    """Open a configuration in a process of its own.

    Args:
        bundle: as read.
        configuration: what to open.
        largest: path of the image to classify there; the bundle's own images by default.
        system: runs the process.

    Returns:
        What it found; or why it could not, such as "illegal instruction (SIGILL)".
    """
    command = [sys.executable, "-m", "edgecnn.device.probe", str(bundle.path), configuration.engine, configuration.file]
    command += [str(configuration.threads), configuration.provider or "", *([largest] if largest else [])]
    done = (system or System(packages={})).run(command, PROBE_TIMEOUT_S)
    return _reason(done) if done.code else Opened(**json.loads(done.out.splitlines()[-1]))


def _reason(done: Finished) -> str:
    return f"{done.how}: {done.said}" if done.said else done.how


def sweep(
    bundle: Bundle,
    images: BenchImages,
    wanted: Sequence[Configuration],
    *,
    n: int,
    warmup: int,
    cold: int,
    progress: Callable[[str, int, int], object],
) -> Sweep:
    """Measure configurations by turns. An interruption (Ctrl-C) ends it with what was measured so far.

    Args:
        bundle: as read, from a file.
        images: they come round in turn, the same for every configuration.
        wanted: from `configurations`.
        n: calls of each that count.
        warmup: calls of each before.
        cold: cold starts for the fastest configuration of each engine.
        progress: called with what is done, how much of it, and of how much.

    Raises:
        EngineError: if none of the configurations can run.
    """
    failed: dict[Configuration, str] = {}
    opened: dict[Configuration, Opened] = {}
    times: dict[Configuration, dict[str, list[float]]] = {}
    starts: dict[Configuration, Percentiles] = {}
    interrupted = False
    load = os.getloadavg()[0]
    try:
        for number, item in enumerate(wanted):
            progress("opening", number, len(wanted))
            found = probe(bundle, item, images.largest)
            if isinstance(found, str):
                failed[item] = found
            else:
                opened[item] = found
        if not opened:
            reasons = dict.fromkeys(f"{item.engine}: {reason}" for item, reason in failed.items())
            raise EngineError(f"nothing can be measured: {'; '.join(reasons)}. More: edgecnn doctor")
        measure(bundle, images, list(opened), n, warmup, times, progress)
        ranked = _ranked([_row(item, opened[item], times[item], None, None) for item in opened])
        fastest = {row.configuration.engine: row.configuration for row in reversed(ranked)}
        starts = cold_starts(bundle, images, list(fastest.values()), cold, failed, progress)
    except KeyboardInterrupt:
        interrupted = True
    verdicts = gate(bundle)
    rows = [
        _row(item, opened[item], parts, verdicts.get(item.file), starts.get(item))
        for item, parts in times.items()
        if parts["whole"]
    ]
    return Sweep(tuple(_ranked(rows)), failed, interrupted, load)


def measure(
    bundle: Bundle,
    images: BenchImages,
    wanted: Sequence[Configuration],
    n: int,
    warmup: int,
    times: dict[Configuration, dict[str, list[float]]],
    progress: Callable[[str, int, int], object],
) -> None:
    """Time configurations in this process, in blocks by turns, into `times`: milliseconds of each call by part."""
    classifiers = {item: classifier_of(bundle, item) for item in wanted}
    for number, classifier in enumerate(classifiers.values()):
        progress("warming up", number, len(wanted))
        for index in range(warmup):
            classifier.classify(images.at(index))
    by_name = {item.name: item for item in wanted}
    times.update({item: {part: [] for part in PARTS} for item in wanted})
    done = 0
    for name, calls in interleave(list(by_name), n, BLOCK):
        item = by_name[name]
        progress("measuring", done, n * len(wanted))
        settle(classifiers[item], images, calls[0])
        for index in calls:
            for part, value in time_call(classifiers[item], images.at(index)).items():
                times[item][part].append(value)
        done += len(calls)
    progress("measuring", done, done)


def classifier_of(bundle: Bundle, configuration: Configuration) -> Classifier:
    """Open a configuration in this process."""
    name, file, _, threads, provider = configuration
    entry = bundle.manifest.model(file)
    engine = open_engine(name, bundle.files[file], entry.format, num_threads=threads, provider=provider)
    return Classifier(bundle, bundle_model(engine, bundle.manifest))


def settle(classifier: Classifier, images: BenchImages, index: int) -> None:
    """Call at least once, and until SETTLE_S has passed, without counting."""
    start = time.perf_counter()
    while True:
        classifier.classify(images.at(index))
        if time.perf_counter() - start >= SETTLE_S:
            return


def time_call(classifier: Classifier, image: bytes | np.ndarray) -> dict[str, float]:
    """Classify one image and return the milliseconds of each of PARTS; the whole has the decision in it too."""
    start = time.perf_counter()
    result = classifier.classify(image)
    return {**result.latency_ms, "whole": (time.perf_counter() - start) * 1000}


def cold_starts(
    bundle: Bundle,
    images: BenchImages,
    wanted: Sequence[Configuration],
    n: int,
    failed: dict[Configuration, str],
    progress: Callable[[str, int, int], object],
) -> dict[Configuration, Percentiles]:
    """Time `edgecnn classify` on one image from a fresh process to its end, by turns. One round before does not count.

    The process is fresh, the files are not: they come from the page cache, as in all starts but the first. One that fails is told in
    `failed` and has no figures.
    """
    if not n:
        return {}
    times: dict[Configuration, list[float]] = {item: [] for item in wanted}
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo"
        first = images.at(0)
        if isinstance(first, bytes):
            photo.write_bytes(first)
        else:
            Image.fromarray(first[:, :, 0] if first.shape[2] == 1 else first).save(photo, "PNG")
        for turn in range(n + 1):
            progress("starting", turn, n + 1)
            for item in [item for item in wanted if item not in failed]:
                command = [sys.executable, "-m", "edgecnn", "classify", str(photo), "--json"]
                command += [
                    "--model",
                    str(bundle.path),
                    "--engine",
                    item.engine,
                    "--precision",
                    item.precision,
                    "--threads",
                    str(item.threads),
                ]
                command += ["--provider", item.provider] if item.provider else []
                start = time.perf_counter()
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
                elapsed = (time.perf_counter() - start) * 1000
                if done.returncode:
                    how = Finished(done.returncode, "", done.stderr.decode(errors="replace"))
                    failed[item] = f"edgecnn classify fails from a fresh process: {_reason(how)}"
                elif turn:
                    times[item].append(elapsed)
        progress("starting", n + 1, n + 1)
    return {item: percentiles(values) for item, values in times.items() if values}


def percentiles(values: list[float]) -> Percentiles:
    """Return the percentiles of at least one value."""
    return Percentiles(percentile(values, 50), percentile(values, 90), percentile(values, 99), len(values))


def winner(rows: Sequence[Row]) -> Row | None:
    """Return the row to use by RULE; None if none may be chosen."""
    return next(iter(_ranked([row for row in rows if row.eligible])), None)


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Return rows by RULE's order: those within TIE of the smallest p50 by p90 and threads, then the others by p50."""
    best = min((row.parts["infer"].p50_ms for row in rows), default=0.0)

    def key(row: Row) -> tuple[float, float, int]:
        infer = row.parts["infer"]
        tied = infer.p50_ms <= best * (1 + TIE)
        return (0.0 if tied else infer.p50_ms, infer.p90_ms, row.configuration.threads)

    return sorted(rows, key=key)


def _row(
    item: Configuration,
    opened: Opened,
    times: Mapping[str, list[float]],
    verdict: bool | None,
    cold: Percentiles | None,
) -> Row:
    parts = {part: percentiles(values) for part, values in times.items()}
    return Row(configuration=item, opened=opened, parts=parts, gate=verdict, cold=cold)
