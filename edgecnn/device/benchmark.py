"""Measure how fast a bundle is on this machine: every model, engine and thread count interleaved, and whether the speed holds."""

import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgecnn.bundle.file import Bundle
from edgecnn.bundle.manifest import PRECISIONS, Manifest
from edgecnn.device.probe import BenchImages
from edgecnn.device.system import SINCE_START, Sensors, System, read_sensors, throttle_words
from edgecnn.errors import EngineError, UnknownNameError, nearest
from edgecnn.labels import plural
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import ENGINES, first_installed, is_installed, known_engine, offering, open_engine
from edgecnn.runtime.model import bundle_model, interleave
from edgecnn.tables import to_json
from edgecnn.versions import library_versions, processors, read_cpu

THREADS = (1, 2, 4)
Progress = Callable[[str, int, int], object]  # called with a step's name, the amount done and the total


class Configuration(NamedTuple):
    """What to open: an engine, a model file of the bundle, the threads per inference and the requested provider."""

    engine: str
    file: str
    precision: str
    threads: int
    provider: str | None

    @property
    def name(self) -> str:
        provider = f" {self.provider}" if self.provider else ""
        return f"{self.engine}{provider} {self.precision}, {plural(self.threads, 'thread')}"


def configurations(
    manifest: Manifest,
    *,
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    threads: Sequence[int] = (),
    provider: str | None = None,
) -> list[Configuration]:
    """List each engine with each model and number of threads. UnknownNameError, EngineError if nothing is left, ProviderError."""
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
    cpus = processors()
    counts = sorted(set(threads)) or [count for count in THREADS if count <= cpus]
    result = [
        Configuration(name, model.file, model.precision, count, provider)
        for name in chosen
        for model in manifest.models
        if model.format == ENGINES[name].format and (not precisions or model.precision in precisions)
        for count in counts
    ]
    if not result:
        has = ", ".join(f"{model.precision} .{model.format}" for model in manifest.models)
        raise EngineError(
            f"the bundle has no model to measure on {', '.join(chosen)}; it has {has}. See --engine and --precision."
        )
    return result


Times = dict[Configuration, dict[str, list[float]]]  # milliseconds of each call, by configuration and part

Failed = dict[Configuration, str]
PARTS = ("decode", "preprocess", "infer", "whole")
TIE = 0.02
RULE = "smallest p50 of infer; within 2 % of it the smaller p90, then fewer threads"
ELIGIBLE = "only models that passed the bundle's gate and, here, its golden vectors"


@dataclass(frozen=True)
class Percentiles:
    """Wall time of `n` calls in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int


class Probed(NamedTuple):
    """The measurements of a configuration's own process; see `edgecnn.device.probe`."""

    version: str
    computes: str
    peak_mib: float
    golden: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One configuration's figures. `gate` is the bundle's own verdict on the model. None means unknown or not measured."""

    configuration: Configuration
    probed: Probed
    parts: Mapping[str, Percentiles]
    gate: bool | None

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen: the model passed the bundle's gate and the golden vectors here."""
        return bool(self.gate) and not self.probed.golden

    def to_json(self) -> dict[str, Any]:
        flat = self.configuration._asdict() | self.probed._asdict() | to_json(self.parts)
        return {**flat, "gate": self.gate, "eligible": self.eligible}


class Sweep(NamedTuple):
    """The measured configurations, fastest first; those that failed, and why; and the machine's load beforehand."""

    rows: tuple[BenchmarkRow, ...]
    failed: Failed
    interrupted: bool
    load_average: float


def percentiles(values: list[float]) -> Percentiles:
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return Percentiles(p50, p90, p99, len(values))


def winner(rows: Sequence[BenchmarkRow]) -> BenchmarkRow | None:
    """Return the best eligible row by RULE, or None."""
    return next(iter(ranked(row for row in rows if row.eligible)), None)


def ranked(rows: Iterable[BenchmarkRow]) -> tuple[BenchmarkRow, ...]:
    """Return rows in the order of RULE: those within TIE of the smallest p50 by p90 and threads, then the others by p50."""
    rows = tuple(rows)
    best = min((row.parts["infer"].p50_ms for row in rows), default=0.0)

    def key(row: BenchmarkRow) -> tuple[float, float, int]:
        infer = row.parts["infer"]
        tied = infer.p50_ms <= best * (1 + TIE)
        return (0.0 if tied else infer.p50_ms, infer.p90_ms, row.configuration.threads)

    return tuple(sorted(rows, key=key))


MAX_REPORT_BYTES = 8 * 1024 * 1024  # largest parity report that is parsed; shipped ones have at most 70 kB


def gate(bundle: Bundle) -> dict[str, bool]:
    """Return whether all comparisons passed the gate, for each model file in the bundle's parity report."""
    report = bundle.files.get("parity.json", b"")
    names = {f"{model.format}-{model.precision}": model.file for model in bundle.manifest.models}
    passed: dict[str, bool] = {}
    try:
        for item in json.loads(report)["comparisons"] if len(report) <= MAX_REPORT_BYTES else ():
            if file := names.get(item["candidate"]):
                passed[file] = passed.get(file, True) and bool(item["passed"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return passed


BLOCK = 10
"""Calls in one block. Before each block, uncounted calls run for SETTLE_S, to warm caches and let the previous threads stop spinning."""

SETTLE_S = 0.005
PROBE_TIMEOUT_S = 300.0


def run_probe(bundle: Bundle, configuration: Configuration, largest: str = "") -> Probed | str:
    """Open a configuration in a separate process; return its measurements or the failure, such as "illegal instruction (SIGILL)"."""
    command = [sys.executable, "-m", "edgecnn.device.probe", str(bundle.path), configuration.engine]
    command += [configuration.file, str(configuration.threads), configuration.provider or ""]
    command += [largest] if largest else []
    done = System(packages={}).run(command, PROBE_TIMEOUT_S)
    return Probed(**done.table) if done.code == 0 else done.failure


def sweep(
    bundle: Bundle,
    images: BenchImages,
    items: list[Configuration],
    *,
    n: int,
    warmup: int,
    progress: Progress,
) -> Sweep:
    """Measure configurations, interleaved. Ctrl-C keeps the results so far. EngineError if none runs."""
    failed: Failed = {}
    probed: dict[Configuration, Probed] = {}
    times: Times = {}
    interrupted = False
    load, verdicts = os.getloadavg()[0], gate(bundle)

    def rows() -> tuple[BenchmarkRow, ...]:
        return ranked(
            BenchmarkRow(
                configuration=item,
                probed=probed[item],
                parts={part: percentiles(values) for part, values in parts.items()},
                gate=verdicts.get(item.file),
            )
            for item, parts in times.items()
            if parts["whole"]
        )

    try:
        for number, item in enumerate(items):
            progress("opening", number, len(items))
            result = run_probe(bundle, item, images.largest)
            if isinstance(result, str):
                failed[item] = result
            else:
                probed[item] = result
        if not probed:
            reasons = dict.fromkeys(f"{item.engine}: {reason}" for item, reason in failed.items())
            raise EngineError(f"nothing can be measured: {'; '.join(reasons)}. For details, run: edgecnn doctor")
        times = {item: {part: [] for part in PARTS} for item in probed}
        time_configurations(bundle, images, times, n, warmup, progress)
    except KeyboardInterrupt:
        interrupted = True
    return Sweep(rows(), failed, interrupted, load)


def time_configurations(
    bundle: Bundle, images: BenchImages, times: Times, n: int, warmup: int, progress: Progress
) -> None:
    """Time configurations in this process, in interleaved blocks; add to `times`."""
    classifiers = {}
    for item in times:
        entry = bundle.manifest.model(item.file)
        data = bundle.files[item.file]
        engine = open_engine(item.engine, data, entry.format, num_threads=item.threads, provider=item.provider)
        classifiers[item] = Classifier(bundle, bundle_model(engine, bundle.manifest))
    for number, classifier in enumerate(classifiers.values()):
        progress("warming up", number, len(times))
        for index in range(warmup):
            classifier.classify(images.at(index))
    by_name = {item.name: item for item in times}
    done = 0
    for name, calls in interleave(list(by_name), n, BLOCK):
        item = by_name[name]
        progress("measuring", done, n * len(times))
        settled = time.perf_counter() + SETTLE_S
        classifiers[item].classify(images.at(calls[0]))
        while time.perf_counter() < settled:
            classifiers[item].classify(images.at(calls[0]))
        for index in calls:
            for part, value in time_call(classifiers[item], images.at(index)).items():
                times[item][part].append(value)
        done += len(calls)
    progress("measuring", done, done)


def time_call(classifier: Classifier, image: bytes | np.ndarray) -> dict[str, float]:
    start = time.perf_counter()
    result = classifier.classify(image)
    return {**result.latency_ms, "whole": (time.perf_counter() - start) * 1000}


WINDOW_S = 60.0  # a window's length, or half of the whole run if that is shorter


@dataclass(frozen=True)
class Window:
    """A minute or less: the times of whole calls and of inference, and the sensors at the end."""

    start_s: float
    seconds: float
    whole: Percentiles
    infer: Percentiles
    sensors: Sensors


@dataclass(frozen=True)
class Sustained:
    """All windows in order. `before` has the sensor readings at the start."""

    before: Sensors
    windows: tuple[Window, ...]
    interrupted: bool

    @property
    def drift(self) -> float | None:
        """The last window's p50 of the whole call over the first's, minus 1; None with fewer than two windows."""
        return self.windows[-1].whole.p50_ms / self.windows[0].whole.p50_ms - 1 if len(self.windows) > 1 else None

    @property
    def throttled(self) -> list[str] | None:
        """What slowed the machine: flags set at the end of a window or since the start; None without such a sensor."""
        slowed_by: list[str] = []
        known = False
        for sensors in (self.before, *(window.sensors for window in self.windows)):
            if sensors.throttled is not None and self.before.throttled is not None:
                known = True
                now, since = throttle_words(sensors.throttled & ~(self.before.throttled >> SINCE_START << SINCE_START))
                slowed_by += now + since
            if sensors.throttle_count is not None and self.before.throttle_count is not None:
                known = True
                slowed_by += ["throttled"] if sensors.throttle_count > self.before.throttle_count else []
        return list(dict.fromkeys(slowed_by)) if known else None


def sustain(
    classifier: Classifier,
    images: BenchImages,
    *,
    minutes: float,
    warmup: int,
    system: System,
    report: Callable[[Window], object],
    clock: Callable[[], float] = time.monotonic,
) -> Sustained:
    """Classify without a pause for some minutes, and `report` each window. Ctrl-C ends the run and keeps the measurements so far."""
    for index in range(warmup):
        classifier.classify(images.at(index))
    before = read_sensors(system)
    length = min(WINDOW_S, minutes * 30)
    count = max(2, round(minutes * 60 / length))
    windows: list[Window] = []
    times: list[dict[str, float]] = []
    start = began = clock()
    interrupted = False

    def end_window() -> None:
        whole, infer = (percentiles([call[part] for call in times]) for part in ("whole", "infer"))
        windows.append(Window(start - began, clock() - start, whole, infer, read_sensors(system)))

    try:
        for index in itertools.count():
            times.append(time_call(classifier, images.at(index)))
            if clock() - start >= length:
                end_window()
                report(windows[-1])
                if len(windows) == count:
                    break
                times, start = [], clock()
    except KeyboardInterrupt:
        interrupted = True
        if times:
            end_window()
    return Sustained(before, tuple(windows), interrupted)


MOST_NAMES = 20


def sweep_document(bundle: Bundle, images: BenchImages, measured: Sweep, warmup: int) -> dict[str, Any]:
    best = winner(measured.rows)
    return {
        "schema": "edgecnn.benchmark/1",
        **_circumstances(bundle, images),
        "load_average": measured.load_average,
        "warmup": warmup,
        "configurations": [row.to_json() for row in measured.rows],
        "failed": [{**item._asdict(), "reason": reason} for item, reason in measured.failed.items()],
        "rule": f"{RULE}; {ELIGIBLE}",
        "winner": best.configuration._asdict() if best else None,
        "interrupted": measured.interrupted,
    }


def sustained_document(bundle: Bundle, images: BenchImages, about: str, done: Sustained) -> dict[str, Any]:
    """Return a sustained run of one configuration, which `about` describes, as one JSON document."""
    outcome = {**to_json(done), "drift": done.drift, "throttled": done.throttled}
    return {"schema": "edgecnn.sustained/1", **_circumstances(bundle, images), "about": about, **outcome}


def _circumstances(bundle: Bundle, images: BenchImages) -> dict[str, Any]:
    return {
        "bundle": {"path": str(bundle.path), "name": bundle.manifest.name, "sha256": bundle.sha256},
        "hardware": hardware(),
        "system": platform.platform(),
        "versions": library_versions(),
        "images": {"about": images.about, "count": len(images.items), "names": list(images.names[:MOST_NAMES])},
    }


def hardware() -> str:
    return f"{System(packages={}).board or read_cpu().name or platform.machine()}, {os.cpu_count()} CPUs"
