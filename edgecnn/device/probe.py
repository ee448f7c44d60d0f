"""Open one configuration of a benchmark in a separate process: `python -m edgecnn.device.probe BUNDLE ENGINE FILE THREADS PROVIDER
[IMAGE]`.

The memory measured is then this configuration's, and an engine that crashes does not stop the benchmark. Prints the fields of `Probed` as
JSON; `golden` describes any error in the outputs for the golden vectors.
"""

import math
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgecnn.bundle.file import Bundle, read_bundle
from edgecnn.device.stream.sources import expand
from edgecnn.errors import ImageError
from edgecnn.images import decode, probe, read_file
from edgecnn.labels import plural
from edgecnn.runtime.child import run_program
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import bundle_model
from edgecnn.runtime.selftest import check_model

MOST_BYTES = 64 * 2**20  # the most that encoded images may take in memory; the first one is always used


class BenchImages(NamedTuple):
    """Images in memory, encoded or as arrays. `names` are paths or bundle entries; `largest` is the path of the largest, or ""."""

    about: str
    items: tuple[bytes | np.ndarray, ...]
    names: tuple[str, ...]
    largest: str

    def at(self, index: int) -> bytes | np.ndarray:
        return self.items[index % len(self.items)]


def bench_images(
    bundle: Bundle, sources: Sequence[str] = (), most: int = 1000, note: Callable[[str], object] = lambda text: None
) -> BenchImages:
    """Read the images that SOURCE arguments stand for, or use the bundle's golden photos (its golden inputs, if it has none)."""
    if sources:
        return _given(bundle, sources, most, note)
    manifest = bundle.manifest
    if names := tuple(golden.file for golden in manifest.golden_images):
        items = tuple(bundle.files[name] for name in names)
        about = f"the bundle's golden photos, {_sizes([probe(data)[1::-1] for data in items])}"
        return BenchImages(about, items, names, "")
    inputs = bundle.golden_inputs()[:most]
    sizes = _sizes([(manifest.input.width, manifest.input.height)] * len(inputs))
    about = f"the bundle's golden inputs, {sizes}, which need no decoding or resizing"
    return BenchImages(about, tuple(inputs), (manifest.golden_inputs,), "")


def _given(bundle: Bundle, sources: Sequence[str], most: int, note: Callable[[str], object]) -> BenchImages:
    usable: list[tuple[str, bytes, tuple[int, int]]] = []
    total = 0
    for source, error in expand(sources, sys.stdin.buffer, note):
        if len(usable) == most or total > MOST_BYTES:
            first = "image" if len(usable) == 1 else f"{len(usable)} images"
            limits = f"the limits are {plural(most, 'image')} and 64 MiB"
            note(f"using only the first {first}, {total / 2**20:.1f} MiB; {limits}")
            break
        try:
            if error is not None:
                raise error
            data = read_file(source)
            usable.append((source, data, decode(data, bundle.manifest.input.channels).size))
            total += len(data)
        except ImageError as caught:
            note(f"{source}: {caught}")
    if not usable:
        raise ImageError(
            f"none of {', '.join(map(repr, sources))} is a readable image. Give other images, or none to use those in the bundle."
        )
    names, items, sizes = zip(*usable, strict=True)
    return BenchImages(f"given, {_sizes(sizes)}", items, names, max(usable, key=lambda image: math.prod(image[2]))[0])


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    ordered = sorted(sizes, key=math.prod)
    ends = dict.fromkeys(f"{width}x{height}" for width, height in (ordered[0], ordered[-1]))
    return f"{plural(len(ordered), 'image')} of {' to '.join(ends)} pixels"


CALLS = 3


def main() -> dict[str, Any]:
    """Open the model, classify, read the peak memory, then replay the golden vectors."""
    path, name, file, threads, provider, *image = sys.argv[1:]
    bundle = read_bundle(Path(path))
    entry = bundle.manifest.model(file)
    engine = open_engine(name, bundle.files[file], entry.format, num_threads=int(threads), provider=provider or None)
    classifier = Classifier(bundle, bundle_model(engine, bundle.manifest))
    for item in image or bench_images(bundle).items:
        for _ in range(CALLS):
            classifier.classify(item)
    peak = peak_mib()
    row = check_model(bundle, entry, name, int(threads), provider or None)
    wrong = row.note or f"it differs by {row.largest_difference:g} {row.unit}; {row.allowed:g} is allowed"
    golden = "" if row.passed else wrong
    return {"version": engine.version, "computes": engine.provider, "peak_mib": peak, "golden": golden}


def peak_mib() -> float:
    try:  # Linux's VmHWM, since ru_maxrss starts from the parent's size
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest / 2**20 if sys.platform == "darwin" else largest / 1024  # bytes on macOS


if __name__ == "__main__":
    run_program(main)
