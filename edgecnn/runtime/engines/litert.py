"""LiteRT through its `Interpreter`: the CompiledModel API of 2.3.0 crashes on Cortex-A53 and A72 (illegal instruction)."""

from functools import partial

import ai_edge_litert
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecnn.runtime.engines.tflite import TFLiteEngine

KERNELS = {
    "cpu": OpResolverType.AUTO,
    "reference": OpResolverType.BUILTIN_REF,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
}
"""The reference kernels are slow and simple; the others are checked against them. The built-in ones are those of tflite-runtime 2.14.0."""


class LiteRT(TFLiteEngine):
    name = "litert"
    version = ai_edge_litert.__version__

    def __init__(self, model: bytes, *, num_threads: int, provider: str = "cpu") -> None:
        super().__init__(partial(Interpreter, experimental_op_resolver_type=KERNELS[provider]), model, num_threads)
        self._reference = provider == "reference"

    @property
    def provider(self) -> str:  # type: ignore[override]
        """What computes: "XNNPACK", "built-in kernels" or "reference kernels"."""
        computes = super().provider
        return "reference kernels" if self._reference and computes == "built-in kernels" else computes
