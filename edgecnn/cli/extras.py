"""The error for a package that belongs to an extra and is not installed."""

import json
from importlib import metadata
from urllib.parse import unquote, urlsplit

from edgecnn.errors import MissingExtraError

TRAIN = (
    "tensorflow",
    "tf_keras",
    "tensorflow_model_optimization",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "h5py",
    "rich",
)
"""Modules of the packages of the extra `train`, in the order of pyproject.toml."""


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return the error for a missing module of the extra `train`; None for any other module, whose absence is a bug."""
    module = (error.name or "").partition(".")[0]
    if module not in TRAIN:
        return None
    return MissingExtraError(
        f"this command needs {module}, which the base installation leaves out. For training, exporting and verifying:\n"
        f"pip install {installed_from()}"
    )


def installed_from() -> str:
    """Return what pip should install: this installation's own folder or file with the extra `train`, or the name."""
    try:
        origin = json.loads(metadata.distribution("edgecnn").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = urlsplit(str(origin.get("url", "")))
    if url.scheme != "file":
        return "'edgecnn[train]'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"{editable}'{unquote(url.path)}[train]'"
