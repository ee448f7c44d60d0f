"""The loop over images given as files."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from edgecnn.device.sources import expand
from edgecnn.errors import ImageError
from edgecnn.runtime.classifier import Classifier, Result
from edgecnn.runtime.decision import Verdict, judge


class Outcome(NamedTuple):
    """One image's result, at least two classes of it where there are two, and verdict; or the error that it met."""

    source: str
    result: Result | None
    verdict: Verdict | None
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
        sources: files, folders, globs, or `-`. See `edgecnn.device.sources.expand`.
        stdin: lines of paths for `-`.
        top_k: how many classes of a result are wanted, at least.
        threshold, margin: as in `edgecnn.runtime.decision.judge`; the bundle's threshold by default.
        fit: as in `Classifier.classify`.
        note: as in `expand`.
    """
    threshold = classifier.threshold if threshold is None else threshold
    top_k = max(top_k, 2)
    for source, error in expand(sources, stdin, note):
        result = verdict = None
        if error is None:
            try:
                result = classifier.classify(source, top_k, 0.0, fit)
                verdict = judge(result.top, threshold, margin)
            except ImageError as caught:
                error = caught
        yield Outcome(source, result, verdict, error)
