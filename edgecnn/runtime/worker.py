"""Run a model over stored inputs in another Python, and print a JSON object that names the engine.

`python -m edgecnn.runtime.worker ENGINE MODEL.tflite INPUTS.npy OUTPUTS.npy` runs a model file, for an engine in a separate environment.
`python -m edgecnn.runtime.worker BUNDLE MODEL ENGINE THREADS PIXELS.npy OUTPUTS.npy` runs a bundle's, as on an emulated board.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.bundle.file import read_bundle
from edgecnn.runtime.child import run_program
from edgecnn.runtime.engines import engine_text, open_engine
from edgecnn.runtime.model import bundle_model

CHUNK = 500


def run_file(name: str, model: str, inputs: str, outputs: str) -> dict[str, Any]:
    """Read inputs of the model's input type, write the raw outputs and return the engine's description."""
    engine = open_engine(name, Path(model).read_bytes(), Path(model).suffix[1:])
    images = np.load(inputs, mmap_mode="r", allow_pickle=False)
    chunks = [engine.run(np.asarray(images[start : start + CHUNK])) for start in range(0, len(images), CHUNK)]
    np.save(outputs, np.concatenate(chunks))
    return {"engine": engine_text(engine)}


def replay(path: str, file: str, name: str, threads: str, pixels: str, outputs: str) -> dict[str, Any]:
    """Read uint8 pixels, shape (n, height, width, channels), write the raw outputs and return the engine's description."""
    bundle = read_bundle(Path(path))
    entry = bundle.manifest.model(file)
    engine = open_engine(name, bundle.files[file], entry.format, num_threads=int(threads))
    np.save(outputs, bundle_model(engine, bundle.manifest).outputs(np.load(pixels, allow_pickle=False)))
    return {"engine": engine_text(engine)}


if __name__ == "__main__":
    given = sys.argv[1:]
    run_program(lambda: replay(*given) if len(given) == 6 else run_file(*given))
