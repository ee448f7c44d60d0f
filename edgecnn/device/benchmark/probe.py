"""Open one configuration in a separate process: `python -m edgecnn.device.benchmark.probe BUNDLE ENGINE FILE THREADS PROVIDER [IMAGE]`.

The memory measured is then this configuration's, and an engine that crashes does not stop the benchmark. Prints the fields of `Probed` as
JSON; `golden` describes any error in the outputs for the golden vectors.
"""

import resource
import sys
from pathlib import Path
from typing import Any

from edgecnn.bundle.read import read_bundle
from edgecnn.device.benchmark.images import bench_images
from edgecnn.runtime.child import run_program
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import bundle_model
from edgecnn.runtime.selftest import check_model

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
