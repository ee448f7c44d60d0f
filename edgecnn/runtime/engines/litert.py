"""LiteRT (ai-edge-litert).

Only its `Interpreter`: the CompiledModel API of 2.3.0 kills the process on Cortex-A53 and A72 (illegal instruction).
"""

import ai_edge_litert
from ai_edge_litert.interpreter import Interpreter

from edgecnn.runtime.engines.tflite import TFLiteEngine


class LiteRT(TFLiteEngine):
    """A TFLite model run by LiteRT."""

    name = "litert"
    version = ai_edge_litert.__version__

    def __init__(self, model: bytes, *, num_threads: int, provider: str = "cpu") -> None:
        super().__init__(Interpreter, model, num_threads)
