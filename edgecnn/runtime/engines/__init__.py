"""Inference engines, one file each. An engine is imported only when it is opened."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecnn.errors import EngineError, ProviderError, UnknownNameError, nearest
from edgecnn.files import quiet_stderr
from edgecnn.labels import printable

if TYPE_CHECKING:
    import numpy as np
FEATURES = "features"
"""The name of a second output: the input of the model's last layer. A model with any other second output is refused."""


class Tensor(NamedTuple):
    """A model's input or output. `shape` has -1 for a dimension that is not fixed; `scale` is 0 if the tensor is not quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: "np.dtype"
    scale: float
    zero_point: int


class Engine:
    """A model opened by an inference engine. `provider`, read back from the engine, is what computes, such as "XNNPACK" or "cpu"."""

    name: str
    version: str
    provider: str
    format: str
    input: Tensor
    output: Tensor
    features: Tensor | None

    def run(self, batch: "np.ndarray") -> "np.ndarray":
        """Run the model on a batch of the input's dtype, shape (n, height, width, channels); return the raw output, (n, num_classes)."""
        return self._run(batch, [self.output])[0]

    def run_both(self, batch: "np.ndarray") -> tuple["np.ndarray", "np.ndarray"]:
        """Run a model that has features; return the raw output as `run` does, and the raw features, shape (n, length)."""
        assert self.features is not None
        outputs, features = self._run(batch, [self.output, self.features])
        return outputs, features

    def _run(self, batch: "np.ndarray", tensors: Sequence[Tensor]) -> list["np.ndarray"]:
        """Run the model on each image of a batch; return the raw values of some outputs."""
        raise NotImplementedError


class EngineKind(NamedTuple):
    """What edgecnn knows about an engine before importing it. `providers` lists those that can be requested, the default first."""

    implementation: str
    module: str
    packages: str
    format: str
    providers: tuple[str, ...]

    @property
    def install(self) -> str:
        return f"pip install {self.packages}"


ENGINES = {
    "litert": EngineKind(
        "litert:LiteRT", "ai_edge_litert", "ai-edge-litert", "tflite", ("cpu", "reference", "builtin")
    ),
    "tflite_runtime": EngineKind(
        "tflite_runtime:TFLiteRuntime", "tflite_runtime", "tflite-runtime 'numpy<2'", "tflite", ("cpu",)
    ),
    "onnxruntime": EngineKind("onnxruntime:ONNXRuntime", "onnxruntime", "onnxruntime", "onnx", ("cpu", "cuda")),
}
"""The engines by name, in the order in which the automatic choice tries them."""

PROVIDERS = tuple(dict.fromkeys(provider for kind in ENGINES.values() for provider in kind.providers))
"""What computes: "cpu", an engine's fast kernels; "cuda", for ONNX Runtime; "reference" and "builtin", LiteRT's without XNNPACK."""


def engines_for(format_: str) -> list[str]:
    return [name for name, kind in ENGINES.items() if kind.format == format_]


def is_installed(name: str) -> bool:
    """Return whether an engine's package is installed, without importing it."""
    return importlib.util.find_spec(ENGINES[name].module) is not None


def known_engine(name: str) -> EngineKind:
    """Return an engine's entry; UnknownNameError if no engine has that name."""
    if name not in ENGINES:
        raise UnknownNameError(f"no engine {name!r}. {nearest(name, ENGINES)}")
    return ENGINES[name]


def offering(names: list[str], provider: str | None) -> list[str]:
    """Return the engines in `names` that offer a provider, or all if it is None. ProviderError if none does."""
    offers = [name for name in names if provider is None or provider in ENGINES[name].providers]
    if not offers:
        able = {name: kind.format for name, kind in ENGINES.items() if provider in kind.providers}
        others = "; or ".join(f"--engine {name}, with a .{format_} model" for name, format_ in able.items())
        hint = f"For {provider}: {others}." if able else nearest(str(provider), PROVIDERS)
        raise ProviderError(f"{' and '.join(names)} cannot run on {provider!r}. {hint}")
    return offers


def first_installed(names: list[str]) -> str:
    """Return the first installed engine in `names`; EngineError, with the pip commands, if none is installed."""
    for name in names:
        if is_installed(name):
            return name
    what = f"the engine {names[0]} is not" if len(names) == 1 else f"none of the engines {', '.join(names)} is"
    if sys.maxsize < 2**32 and all(ENGINES[name].format == "tflite" for name in names):
        raise EngineError(
            f"{what} installed, and no package exists for a 32-bit system. Install a 64-bit operating system."
        )
    raise EngineError(f"{what} installed. Install it: {' or: '.join(ENGINES[name].install for name in names)}")


def split_outputs(inputs: Sequence[Any], outputs: Sequence[Any], names: Sequence[str]) -> tuple[Any, Any | None]:
    """Return a model's output, and its features or None; EngineError for any other set of inputs and outputs."""
    if len(inputs) == 1 and len(outputs) == 1:
        return outputs[0], None
    if len(inputs) == 1 and len(outputs) == 2 and names[1] == FEATURES:
        return outputs[0], outputs[1]
    raise EngineError(f"the model has {len(inputs)} inputs and {len(outputs)} outputs; expected one of each")


def joined_runs(runs: list[list["np.ndarray"]], tensors: Iterable[Tensor]) -> list["np.ndarray"]:
    if len(runs) == 1:
        return runs[0]
    import numpy as np  # here, since a single run does not need it

    outputs = [np.concatenate(parts) for parts in zip(*runs, strict=True)]
    return outputs or [np.empty((0, *tensor.shape[1:]), tensor.dtype) for tensor in tensors]


def engine_text(engine: Engine) -> str:
    return f"{engine.name} {engine.version} ({engine.provider})"


def refusal(engine: str, doing: str, error: Exception) -> EngineError:
    """Return an engine's failure to "open" or "run" a model as an EngineError of one printable line."""
    reason = " ".join(printable(line) for line in str(error).splitlines()[:3]).strip()
    if isinstance(error, UnicodeDecodeError):  # its own message cannot be read
        reason = "it is damaged: a name in it is not UTF-8"
    return EngineError(f"{engine} cannot {doing} the model: {reason[:300] or type(error).__name__}")


@contextlib.contextmanager
def opening(engine: str) -> Iterator[Callable[[], str]]:
    """Turn an engine's exception about a model into an EngineError; yields a function that returns its standard error so far."""
    failed: EngineError | None = None
    with quiet_stderr() as printed:
        try:
            yield printed
        except EngineError as error:
            failed = error
        except Exception as error:  # noqa: BLE001 - whatever it raises, it is about the model
            failed = refusal(engine, "open", error)
    if failed:
        raise failed


def open_engine(
    name: str | None, model: bytes, format_: str, *, num_threads: int = 1, provider: str | None = None
) -> Engine:
    """Open a "tflite" or "onnx" model on the named engine, or on the first installed one that runs the format.

    UnknownNameError for an unknown engine; EngineError if it is not installed, does not run the format or refuses the model;
    ProviderError if the provider is not available.
    """
    if num_threads < 1:
        raise EngineError(f"threads must be at least 1; received {num_threads}")
    names = engines_for(format_)
    if name is not None and known_engine(name).format != format_:
        others = " or ".join(names) or "none"
        raise EngineError(
            f"{name} runs .{known_engine(name).format} models; received a .{format_} model. Engines for that: {others}."
        )
    name = first_installed(offering([name] if name is not None else names, provider))
    kind = ENGINES[name]
    module, _, attribute = kind.implementation.partition(":")
    try:
        implementation = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    except EngineError:
        raise
    except ImportError as error:
        raise EngineError(
            f"{name} is installed but cannot be imported: {error}. Install it again: {kind.install}"
        ) from error
    opened: Engine = implementation(model, num_threads=num_threads, provider=provider or kind.providers[0])
    return opened
