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
from edgecnn.versions import processors

if TYPE_CHECKING:
    from edgecnn.device.stream.settings import Decision
    from edgecnn.runtime.classifier import Classifier, Result

T = TypeVar("T")


def classify_files(classifier: "Classifier", sources: Sequence[str], decision: "Decision", json: bool) -> None:
    """Classify image files and print each result; `sources` and the error are as in `show_each`. May use all processors.

    Paths on standard input may come one by one, and each gets its answer at once, so they are classified one by one too.
    """
    show = functools.partial(show_json, classifier) if json else show_text
    single = "-" in sources or (len(sources) == 1 and os.path.isfile(sources[0]))
    threads = 1 if single else processors()
    show_each(functools.partial(classifier.classify, **vars(decision)), sources, show, "classified", threads)


def show_each(
    work: Callable[[str], T],
    sources: Sequence[str],
    show: Callable[[ImageOutcome[T]], None],
    done: str,
    threads: int = 1,
) -> None:
    """Do `work` on each image of the SOURCE arguments, and show the outcome; PartialFailure if one could not be `done`."""
    count = failed = 0
    with contextlib.closing(for_each_image(work, sources, sys.stdin.buffer, note, threads)) as outcomes:
        for outcome in outcomes:
            count += 1
            failed += outcome.error is not None
            show(outcome)
    if failed:
        raise PartialFailure(f"{failed} of {count} images could not be {done}; each is named above.")
    if not count:
        raise PartialFailure("standard input did not name an image.")


def show_json(classifier: "Classifier", outcome: ImageOutcome["Result"]) -> None:
    from edgecnn.device.stream.events import error_line, file_line

    if outcome.result is None:
        emit_line(error_line(outcome.source, str(outcome.error)))
    else:
        model = (classifier.name, classifier.model_sha256)
        emit_line(file_line(outcome.source, outcome.result, model, classifier.region))


def show_text(outcome: ImageOutcome["Result"]) -> None:
    source, result = printable(outcome.source), outcome.result
    if result is None:
        note(f"{source}: {outcome.error}")
    elif result.reason:
        emit_line(f"{source}: {result.decision}")
    else:
        emit_line(f"{source}: {', '.join(f'{printable(item.label)} {item.score:.2%}' for item in result.top)}")
