"""LiteRT (ai-edge-litert).

Only its `Interpreter`: the CompiledModel API of 2.3.0 kills the process on Cortex-A53 and A72 (illegal instruction).
"""

from functools import partial

import ai_edge_litert
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecnn.runtime.engines.tflite import TFLiteEngine

REFERENCE = partial(Interpreter, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
"""The interpreter with TensorFlow Lite's reference kernels: slow, simple, and what the others are held against."""


class LiteRT(TFLiteEngine):
    """A TFLite model run by LiteRT, by its fast kernels or (provider "reference") by the reference kernels."""

    name = "litert"
    version = ai_edge_litert.__version__

    def __init__(self, model: bytes, *, num_threads: int, provider: str = "cpu") -> None:
        super().__init__(REFERENCE if provider == "reference" else Interpreter, model, num_threads)
        self._reference = provider == "reference"

    @property
    def provider(self) -> str:
        """What computes: "XNNPACK", "built-in kernels" or "reference kernels"."""
        computes = super().provider
        return "reference kernels" if self._reference and computes == "built-in kernels" else computes
