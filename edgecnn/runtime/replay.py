"""Run one of a bundle's models over stored pixels: `python -m edgecnn.runtime.replay BUNDLE MODEL ENGINE THREADS PIXELS.npy OUTPUTS.npy`.

It runs in another system's Python, such as an emulated board's, and prints a JSON object that names the engine.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.bundle.file import read_bundle
from edgecnn.runtime.child import run_program
from edgecnn.runtime.engines import engine_text, open_engine
from edgecnn.runtime.model import bundle_model


def main() -> dict[str, Any]:
    """Read uint8 pixels, shape (n, height, width, channels), write the raw outputs and return the engine's description."""
    bundle_path, file, name, threads, pixels, outputs = sys.argv[1:]
    bundle = read_bundle(Path(bundle_path))
    entry = bundle.manifest.model(file)
    engine = open_engine(name, bundle.files[file], entry.format, num_threads=int(threads))
    np.save(outputs, bundle_model(engine, bundle.manifest).outputs(np.load(pixels, allow_pickle=False)))
    return {"engine": engine_text(engine)}


if __name__ == "__main__":
    run_program(main)
