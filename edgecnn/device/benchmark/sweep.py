"""Measure a bundle on this machine, with engines, precisions and threads interleaved."""

import os
import sys
import time

import numpy as np

from edgecnn.bundle.read import Bundle
from edgecnn.device.benchmark.configurations import Configuration, Progress
from edgecnn.device.benchmark.figures import (
    PARTS,
    Failed,
    Probed,
    Row,
    Sweep,
    Times,
    gate,
    percentiles,
    ranked,
)
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.device.system import System
from edgecnn.errors import EngineError
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import bundle_model
from edgecnn.runtime.timing import interleave

BLOCK = 10
"""Calls in one block. Before each block, uncounted calls run for SETTLE_S, to warm caches and let the previous threads stop spinning."""

SETTLE_S = 0.005
PROBE_TIMEOUT_S = 300.0


def probe(bundle: Bundle, configuration: Configuration, largest: str = "") -> Probed | str:
    """Open a configuration in a separate process; return its measurements or the failure, such as "illegal instruction (SIGILL)"."""
    command = [sys.executable, "-m", "edgecnn.device.benchmark.probe", str(bundle.path), configuration.engine]
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

    def rows() -> tuple[Row, ...]:
        return ranked(
            Row(
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
            result = probe(bundle, item, images.largest)
            if isinstance(result, str):
                failed[item] = result
            else:
                probed[item] = result
        if not probed:
            reasons = dict.fromkeys(f"{item.engine}: {reason}" for item, reason in failed.items())
            raise EngineError(f"nothing can be measured: {'; '.join(reasons)}. For details, run: edgecnn doctor")
        times = {item: {part: [] for part in PARTS} for item in probed}
        measure(bundle, images, times, n, warmup, progress)
    except KeyboardInterrupt:
        interrupted = True
    return Sweep(rows(), failed, interrupted, load)


def measure(bundle: Bundle, images: BenchImages, times: Times, n: int, warmup: int, progress: Progress) -> None:
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
