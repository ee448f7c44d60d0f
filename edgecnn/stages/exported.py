"""The exports of a run and their answers, for the stages that verify them."""

from collections.abc import Sequence

from edgecnn.data import Split
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import Answers, Progress, export_answers, timed
from edgecnn.export import EXPORTS, alternative, export_path
from edgecnn.runs import Run


def existing_exports(run: Run) -> list[tuple[str, str]]:
    """Return format and precision of each export of a run, in the order of EXPORTS; RunError if the run has no export."""
    exports = [pair for pair in EXPORTS if export_path(run, *pair).exists()]
    if not exports:
        raise RunError(f"run {run.path} has no export to verify. First: {run.command('export')} --format tflite --int8")
    return exports


def answered(
    run: Run, exports: Sequence[tuple[str, str]], programs: Sequence[Answers], test: Split, progress: Progress
) -> tuple[list[Answers], list[Answers], list[Answers]]:
    """Run and time the exports on the test images; return their answers, the alternative's, and both with the programs'."""
    other = alternative(run)
    measured = [*exports, other] if other and export_path(run, *other).exists() else list(exports)
    ran = [export_answers(run, export_path(run, *pair), *pair, test.images, progress) for pair in measured]
    answers = timed([*ran, *programs], test.images[:1])
    return answers[: len(exports)], answers[len(exports) : len(measured)], answers
