"""The loop over image files."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from edgecnn.device.stream.sources import expand
from edgecnn.errors import ImageError
from edgecnn.runtime.classifier import Classifier, Result


class Outcome(NamedTuple):
    """One image's result, or the error that kept it from being classified."""

    source: str
    result: Result | None
    error: ImageError | None


def classify_sources(
    classifier: Classifier,
    sources: Iterable[str],
    stdin: Iterable[bytes],
    *,
    top_k: int = 3,
    threshold: float | None = None,
    margin: float = 0.0,
    fit: str | None = None,
    note: Callable[[str], object] = lambda text: None,
) -> Iterator[Outcome]:
    """Classify the images that SOURCE arguments stand for, one at a time. A broken image is an outcome, and the loop goes on.

    Args:
        classifier: as loaded.
        sources: files, folders, globs, or `-`. See `edgecnn.device.stream.sources.expand`.
        stdin: lines of paths for `-`.
        top_k, threshold, margin, fit: as in `Classifier.classify`.
        note: as in `expand`.
    """
    for source, error in expand(sources, stdin, note):
        result = None
        if error is None:
            try:
                result = classifier.classify(source, top_k, threshold, margin, fit)
            except ImageError as caught:
                error = caught
        yield Outcome(source, result, error)
