"""The configurations to measure: a bundle's models on the installed engines, with several thread counts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgecnn.bundle.manifest import PRECISIONS, Manifest
from edgecnn.cpu import processors
from edgecnn.errors import EngineError, UnknownNameError, nearest
from edgecnn.labels import plural
from edgecnn.runtime.engines import ENGINES, first_installed, is_installed, known_engine, offering

THREADS = (1, 2, 4)
Progress = Callable[[str, int, int], object]  # called with a step's name, the amount done and the total


class Configuration(NamedTuple):
    """What to open: an engine, a model file of the bundle, the threads per inference and the requested provider."""

    engine: str
    file: str
    precision: str
    threads: int
    provider: str | None

    @property
    def name(self) -> str:
        provider = f" {self.provider}" if self.provider else ""
        return f"{self.engine}{provider} {self.precision}, {plural(self.threads, 'thread')}"


def configurations(
    manifest: Manifest,
    *,
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    threads: Sequence[int] = (),
    provider: str | None = None,
) -> list[Configuration]:
    """List each engine with each model and number of threads. UnknownNameError, EngineError if nothing is left, ProviderError."""
    for name in engines:
        known_engine(name)
        first_installed([name])
    for name in precisions:
        if name not in PRECISIONS:
            raise UnknownNameError(f"no precision {name!r}. {nearest(name, PRECISIONS)}")
    offered = offering(list(dict.fromkeys(engines)) or list(ENGINES), provider)
    chosen = [name for name in offered if is_installed(name)]
    if not chosen:
        first_installed(offered)
    cpus = processors()
    counts = sorted(set(threads)) or [count for count in THREADS if count <= cpus]
    result = [
        Configuration(name, model.file, model.precision, count, provider)
        for name in chosen
        for model in manifest.models
        if model.format == ENGINES[name].format and (not precisions or model.precision in precisions)
        for count in counts
    ]
    if not result:
        has = ", ".join(f"{model.precision} .{model.format}" for model in manifest.models)
        raise EngineError(
            f"the bundle has no model to measure on {', '.join(chosen)}; it has {has}. See --engine and --precision."
        )
    return result
