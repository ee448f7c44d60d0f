"""`edgecnn classify` for files: a line on standard output for each image."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgecnn.cli.console import emit_line, note
from edgecnn.device.stream.files import classify_sources
from edgecnn.errors import PartialFailure
from edgecnn.labels import printable

if TYPE_CHECKING:
    from edgecnn.device.stream.files import Outcome
    from edgecnn.runtime.classifier import Classifier


def classify_files(classifier: "Classifier", sources: Sequence[str], *, json: bool, **decision: Any) -> None:
    """Classify image files and print each result.

    Args:
        classifier: the loaded bundle.
        sources: files, folders, globs, or - for the paths on standard input.
        json: whether to print JSON lines.
        **decision: `top_k`, `threshold`, `margin` and `fit` of `edgecnn.device.stream.files.classify_sources`.

    Raises:
        PartialFailure: if an image could not be classified, or standard input named none.
    """
    show = json_printer(classifier) if json else show_text
    count = failed = 0
    for outcome in classify_sources(classifier, sources, sys.stdin.buffer, note=note, **decision):
        count += 1
        failed += outcome.error is not None
        show(outcome)
    if failed:
        raise PartialFailure(f"{failed} of {count} images could not be classified; each is named above.")
    if not count:
        raise PartialFailure("standard input named no image.")


def json_printer(classifier: "Classifier") -> Callable[["Outcome"], None]:
    """Return what prints an outcome as a JSON line."""
    from edgecnn.device.stream.lines import error_line, file_line

    model, region = (classifier.name, classifier.model_sha256), classifier.region

    def show(outcome: "Outcome") -> None:
        if outcome.result is None:
            emit_line(error_line(outcome.source, str(outcome.error)))
        else:
            emit_line(file_line(outcome.source, outcome.result, model, region))

    return show


def show_text(outcome: "Outcome") -> None:
    """Print an outcome for people: the source, then the classes with their scores, or the decision where that is no label."""
    source = printable(outcome.source)
    if outcome.result is None:
        from edgecnn.cli.advice import with_advice

        assert outcome.error
        note(f"{source}: {with_advice(outcome.error)}")
    elif outcome.result.reason:
        emit_line(f"{source}: {outcome.result.decision}")
    else:
        emit_line(f"{source}: {', '.join(f'{printable(item.label)} {item.score:.2%}' for item in outcome.result.top)}")
