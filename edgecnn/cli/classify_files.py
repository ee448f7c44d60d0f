"""`edgecnn classify` for files: a line on standard output for each image."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from edgecnn.cli.options import emit_line, note
from edgecnn.device.stream.sources import ImageOutcome, for_each_image
from edgecnn.errors import PartialFailure
from edgecnn.labels import printable

if TYPE_CHECKING:
    from edgecnn.device.stream.settings import Decision
    from edgecnn.runtime.classifier import Classifier, Result

T = TypeVar("T")


def classify_files(
    classifier: "Classifier", sources: Sequence[str], decision: "Decision", json: bool, processes: int
) -> None:
    """Classify image files and print each result; `sources` and the error are as in `show_each`.

    Up to `processes` forks take part, which the classifier's engine must allow. Paths on standard input may come one by one, and each
    gets its answer at once, so these are classified one by one too.
    """

    def work(source: str) -> str:
        return line(source, classifier.classify(source, **vars(decision)))

    line = functools.partial(json_line, classifier) if json else text_line
    single = "-" in sources or (len(sources) == 1 and os.path.isfile(sources[0]))
    show_each(work, sources, show_json if json else show_text, "classified", 1 if single else processes)


def show_each(
    work: Callable[[str], T],
    sources: Sequence[str],
    show: Callable[[ImageOutcome[T]], None],
    done: str,
    processes: int = 1,
) -> None:
    """Do `work` on each image of the SOURCE arguments, and show the outcome; PartialFailure if one could not be `done`."""
    count = failed = 0
    with contextlib.closing(for_each_image(work, sources, sys.stdin.buffer, note, processes)) as outcomes:
        for outcome in outcomes:
            count += 1
            failed += outcome.error is not None
            show(outcome)
    if failed:
        raise PartialFailure(f"{failed} of {count} images could not be {done}; each is named above.")
    if not count:
        raise PartialFailure("standard input did not name an image.")


def json_line(classifier: "Classifier", source: str, result: "Result") -> str:
    from edgecnn.device.stream.events import file_line

    return file_line(source, result, (classifier.name, classifier.model_sha256), classifier.region)


def text_line(source: str, result: "Result") -> str:
    if result.reason:
        return f"{printable(source)}: {result.decision}"
    return f"{printable(source)}: {', '.join(f'{printable(item.label)} {item.score:.2%}' for item in result.top)}"


def show_json(outcome: ImageOutcome[str]) -> None:
    from edgecnn.device.stream.events import error_line

    emit_line(error_line(outcome.source, str(outcome.error)) if outcome.result is None else outcome.result)


def show_text(outcome: ImageOutcome[str]) -> None:
    if outcome.result is None:
        note(f"{printable(outcome.source)}: {outcome.error}")
    else:
        emit_line(outcome.result)
