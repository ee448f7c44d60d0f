"""Rejects Python code in Keras files before Keras executes it. Keras's own "safe mode" covers neither HDF5 nor all of Keras 2."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgecnn.errors import NetworkError

TRUSTED = ("keras", "tf_keras", "tensorflow_model_optimization", "builtins")
"""Packages from which a model's parts may come."""

COMPUTING = ("math", "nn", "image", "linalg", "signal", "bitwise", "quantization", "__operators__", "keras")
"""Modules of TensorFlow whose functions only compute. Of the functions in `tf` itself, all but CALLING only compute."""

OLD = ("compat.v1.transpose", "compat.v1.gather")
"""Keras's names of tf.transpose and tf.gather."""

CALLING = ("function", "numpy_function", "py_function", "load_library", "load_op_library")


def refuse_code(file: Path | bytes, name: str) -> None:
    """Check that a .keras or HDF5 file contains only data: no Lambda, foreign package or function that touches files.

    Raises NetworkError, starting with `name` and naming the layer, if the file holds code.
    """
    for part in _parts(json.loads(_config(file) or "null")):
        if found := _code(part):
            raise NetworkError(
                f"{name} holds Python code ({found}), which would run on this machine with your rights. edgecnn does not load it.\n"
                "Build the model without it. If you trust the file, export it with the program that made it, to ONNX, or to a SavedModel: "
                "model.export('saved_model')"
            )


def _config(file: Path | bytes) -> str | bytes | None:
    import h5py

    opened: Any = io.BytesIO(file) if isinstance(file, bytes) else file
    if zipfile.is_zipfile(opened):
        with zipfile.ZipFile(opened) as archive:
            return archive.read("config.json") if "config.json" in archive.namelist() else None
    if isinstance(file, Path) and not h5py.is_hdf5(file):
        return None
    with h5py.File(opened, "r") as content:
        return content.attrs.get("model_config")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    for item in waiting:
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _code(part: dict[str, Any]) -> str | None:
    """Return a description of the code in one object of a model's config; None if it holds no code."""
    kind, config = str(part.get("class_name", "")).rpartition(">")[2], part.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    if kind in ("Lambda", "__lambda__"):
        return f"the layer {name!r}, a Lambda" if name else "a lambda"
    module = part.get("module")
    if kind and module is not None and str(module).partition(".")[0] not in TRUSTED:
        return f"{kind} of the module {module}"
    if kind in ("TFOpLambda", "SlicingOpLambda") and isinstance(config, dict):
        function = str(config.get("function"))
        package = "" if function in OLD else function.rpartition(".")[0]
        if package.partition(".")[0] not in COMPUTING if package else function in CALLING:
            return f"the layer {name!r}, which calls tf.{function}"
    return None
