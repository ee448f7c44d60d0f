"""Run a model over stored inputs: `python -m edgecnn.runtime.worker ENGINE MODEL.tflite INPUTS.npy OUTPUTS.npy`.

For an engine in a separate environment. Prints a JSON object that names the engine.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.runtime.child import run_program
from edgecnn.runtime.engines import engine_text, open_engine

CHUNK = 500


def main() -> dict[str, Any]:
    """Read inputs of the model's input type, write the raw outputs and return the engine's description."""
    name, model, inputs, outputs = sys.argv[1:]
    engine = open_engine(name, Path(model).read_bytes(), Path(model).suffix[1:])
    images = np.load(inputs, mmap_mode="r", allow_pickle=False)
    chunks = [engine.run(np.asarray(images[start : start + CHUNK])) for start in range(0, len(images), CHUNK)]
    np.save(outputs, np.concatenate(chunks))
    return {"engine": engine_text(engine)}


if __name__ == "__main__":
    run_program(main)
