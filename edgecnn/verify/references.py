"""The Keras models' logits on the test split, computed once and stored in the run, so that verifying again needs no TensorFlow."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.evaluate.answers import Answers, Progress, in_chunks, input_contract, milliseconds
from edgecnn.files import canonical_json, sha256, write_atomic
from edgecnn.runs import QAT_MODEL, Run
from edgecnn.tables import to_json

PRECISIONS = {"float": "float32", "fake-quantized": "fake-quantized"}


def reference_answers(run: Run, name: str, test_sha256: str, images: np.ndarray, progress: Progress) -> Answers:
    """Return a reference's logits on the test split, from the run's store if possible. `name` is one of PRECISIONS.

    The store is `logits-MODEL-SPLIT.npz` in the run, keyed by the SHA-256 of the model and of the split and by the input contract. A
    damaged store, or one with another key, is recomputed.
    """
    data = run.read(run.float_model if name == "float" else QAT_MODEL, "train")
    key: dict[str, Any] = {
        "model": sha256(data),
        "test": test_sha256,
        "input": to_json(input_contract(run)),
        "n": len(images),
    }
    path = run.file(f"logits-{key['model'][:16]}-{test_sha256[:16]}.npz")
    stored = read_store(path, key) or write_store(path, key, compute(run, name, data, images, progress))
    return Answers(
        name=name,
        format="keras",
        precision=PRECISIONS[name],
        engine=str(stored["engine"]),
        size_bytes=len(data),
        sha256=key["model"],
        values=stored["logits"],
        ms_per_image=float(stored["ms_per_image"]),
    )


def compute(run: Run, name: str, data: bytes, images: np.ndarray, progress: Progress) -> dict[str, Any]:
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import model_from_bytes, predictor

    predict = predictor(model_from_bytes(data), run.recipe.input_scale, run.recipe.input_zero_point)
    logits = in_chunks(predict, images, name, progress)
    ms = milliseconds({name: predict}, images[:1])[name]
    return {"logits": logits, "engine": f"tensorflow {tf.__version__}", "ms_per_image": ms}


def write_store(path: Path, key: dict[str, Any], logits: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    np.savez(buffer, key=canonical_json(key), **logits)
    write_atomic(path, buffer.getvalue())
    return logits


def read_store(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """Read the logits stored under a key; None if they are missing or unusable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in ("key", "logits", "engine", "ms_per_image")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return stored if str(stored["key"]) == canonical_json(key) and len(stored["logits"]) == key["n"] else None
