"""The versions and the machine that made a result."""

import contextlib
import importlib.metadata
import platform
import sys

from edgecnn import __version__
from edgecnn.cpu import read_cpu

LIBRARIES = (
    "numpy",
    "pillow",
    "ai-edge-litert",
    "tflite-runtime",
    "tensorflow",
    "tensorflow-cpu",
    "tf-keras",
    "tensorflow-model-optimization",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python-headless",
)


def library_versions() -> dict[str, str]:
    """Return the versions of edgecnn, Python and the installed LIBRARIES, by name."""
    versions = {"edgecnn": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def processor() -> str:
    """Return the processor's architecture and, if Linux gives it, its model name."""
    name = read_cpu().name
    return f"{platform.machine()}, {name}" if name else platform.machine()
