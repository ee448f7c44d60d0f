"""LiteRT (ai-edge-litert).

Only its `Interpreter`: the CompiledModel API of 2.3.0 kills the process on Cortex-A53 and A72 (illegal instruction).
"""

from functools import partial

import ai_edge_litert
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgecnn.runtime.engines.tflite import TFLiteEngine

REFERENCE = partial(Interpreter, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
"""The interpreter with TensorFlow Lite's reference kernels: slow, simple, and what the others are held against."""

BUILTIN = partial(Interpreter, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
"""The interpreter without XNNPACK: TensorFlow Lite's own kernels, those of tflite-runtime 2.14.0, with the same codes."""

INTERPRETERS = {"cpu": Interpreter, "reference": REFERENCE, "builtin": BUILTIN}


class LiteRT(TFLiteEngine):
    """A TFLite model run by LiteRT: by its fast kernels, by TensorFlow Lite's own ("builtin") or by its reference kernels ("reference")."""

    name = "litert"
    version = ai_edge_litert.__version__

    def __init__(self, model: bytes, *, num_threads: int, provider: str = "cpu") -> None:
        super().__init__(INTERPRETERS[provider], model, num_threads)
        self._reference = provider == "reference"

    @property
    def provider(self) -> str:
        """What computes: "XNNPACK", "built-in kernels" or "reference kernels"."""
        computes = super().provider
        return "reference kernels" if self._reference and computes == "built-in kernels" else computes
