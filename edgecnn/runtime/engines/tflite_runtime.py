"""tflite-runtime, for systems that lack LiteRT."""

import numpy as np

from edgecnn.errors import EngineError
from edgecnn.runtime.engines.tflite import TFLiteEngine

if int(np.__version__.partition(".")[0]) >= 2:
    # All releases, up to 2.14.0, are built for numpy 1. With numpy 2 the import works, but the interpreter fails.
    raise EngineError(
        f"tflite-runtime needs numpy below 2, but numpy {np.__version__} is installed. Run: pip install 'numpy<2'"
    )

import tflite_runtime
from tflite_runtime.interpreter import Interpreter


class TFLiteRuntime(TFLiteEngine):
    name = "tflite_runtime"
    version = tflite_runtime.__version__

    def __init__(self, model: bytes, *, num_threads: int, provider: str = "cpu") -> None:
        super().__init__(Interpreter, model, num_threads)
