"""The stage that verifies a run's exports: it chooses on validation images, judges on test images or by folds, and writes the report.

With folds, accuracy, drop and scores are their estimate: each image was answered by a model that never saw it. The files that ship are
compared with their own float model by agreement and LSB only, on their training images, so no accuracy is claimed for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from edgecnn.calibrate.confidence import ChosenStrangers, cross_fitted_scores, cross_fitted_strangers
from edgecnn.data import Dataset, Split
from edgecnn.data.dataset import require_split
from edgecnn.data.decoding import some
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import (
    Answers,
    HeldOut,
    Progress,
    export_answers,
    groups_of,
    load_test,
    require_held_out,
    timed,
)
from edgecnn.evaluate.statistics import WORTH, found_by_class, score_figures
from edgecnn.export import EXPORTS, alternative, export_path
from edgecnn.runs import PARITY, Run, write_json
from edgecnn.runtime.decision import softmax
from edgecnn.stages.choose import Choosing
from edgecnn.verify.matrix import check_programs, file_answers, find_python, program_answers, program_comparisons
from edgecnn.verify.matrix import matrix as engine_matrix
from edgecnn.verify.parity import Basis, compared, data_of, int8_choice, judged, references, run_comparisons
from edgecnn.verify.parity_report import BoardRow, Gate, Report, StrangerFigures
from edgecnn.verify.predictions import stranger_figures, tested_confidence, tested_strangers, write_predictions

Boards = Callable[[Run, Sequence[tuple[str, str]], Split, Progress], Sequence[BoardRow]]
"""Maps a run, the format and precision of its exports, images and a progress callback to what boards answered."""


def existing_exports(run: Run) -> list[tuple[str, str]]:
    """Return format and precision of each export of a run, in the order of EXPORTS; RunError if the run has no export."""
    exports = [pair for pair in EXPORTS if export_path(run, *pair).exists()]
    if not exports:
        raise RunError(f"run {run.path} has no export to verify. First: {run.command('export')} --format tflite --int8")
    return exports


def run_exports(
    run: Run, exports: Sequence[tuple[str, str]], programs: Sequence[Answers], test: Split, progress: Progress
) -> tuple[list[Answers], list[Answers], list[Answers]]:
    """Run and time the exports on the test images; return their answers, the alternative's, and both with the programs'."""
    other = alternative(run)
    measured = [*exports, other] if other and export_path(run, *other).exists() else list(exports)
    ran = [export_answers(run, export_path(run, *pair), *pair, test.images, progress) for pair in measured]
    answers = timed([*ran, *programs], test.images[:1])
    return answers[: len(exports)], answers[len(exports) : len(measured)], answers


SEEN = 1_000  # maximum number of training images to compare the files that ship on, the same number per class


def verify_by_folds(
    run: Run,
    dataset: Dataset,
    gate: Gate,
    target_error: float | None = None,
    boards: Boards | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Write a run's `parity.json` as `edgecnn.stages.verify.verify` does; arguments and errors as there."""
    programs = check_programs(run)
    exports, held = existing_exports(run), require_held_out(run)
    choosing = Choosing(run, dataset, exports[0], progress)
    confidence = choosing.confidence(target_error)
    strangers = choosing.strangers(confidence.temperature)
    choosing.scores(confidence, strangers)

    require_split(run, dataset, "train")
    everything = dataset.load(("train",), **vars(run.info.input), stage="verify", progress=progress)["train"]
    seen = some(everything, SEEN, run.recipe.seed)
    float_, *fakes = references(run, seen, progress)
    candidates, _, _ = run_exports(run, exports, [], seen, progress)

    labels = run.info.data.labels
    models = [by_folds(item, held) for item in (float_, *fakes, *candidates)]
    tested = Split(images=np.empty(0), classes=held.classes, sources=tuple(held.sources.tolist()))
    estimated = partial(compared, split=tested, labels=labels, gate=gate)
    int8 = next((item for item in models if item.precision == "int8"), None)
    comparisons = [estimated("quantization", models[0], int8)] if int8 else []
    hold = partial(compared, split=seen, labels=labels, gate=gate)
    comparisons += run_comparisons(float_, fakes, candidates, [], hold, "seen")
    # to measure the cost of a program's own resize would take test images
    comparisons += [
        hold("conversion", candidates[0], file_answers(run, one, seen.images, progress)) for one in programs
    ]
    data = data_of(run, "folds", len(held.classes), dataset.hashes["train"])
    rows = boards(run, exports, seen, progress) if boards else ()
    shipped = next(item for item in models if item.name == candidates[0].name)
    scores = cross_fitted_scores(shipped.values, held.classes, held.fold, confidence.threshold, target_error)
    balanced = dataset.balances(run.recipe.train.class_weights)
    basis = Basis(tested, labels, groups_of(run, held.hashes.tolist()), balanced=balanced, worth=WORTH)
    report = judged(run.name, data, gate, models, comparisons, basis)
    report = replace(
        report,
        passed=report.passed and all(row.passed for row in rows),
        boards=tuple(replace(row, accuracy=None, accuracy_here=None) for row in rows),
        folds=run.info.folds,
        seen_images=len(seen.classes),
        found=found_by_class(shipped.values.argmax(axis=1), held.classes, labels),
        confidence=tested_confidence(confidence, scores, shipped.name),
        strangers=refused_strangers(run, held, strangers, shipped.name) if strangers else None,
    )
    shown = [item for item in models if item in (models[0], int8, shipped)]
    pixels = held_out_pixels(everything, held)
    write_predictions(run, tested, pixels, shown, int8, (shipped, confidence.temperature))
    write_json(run.file(PARITY), report)
    return report


def held_out_pixels(split: Split, held: HeldOut) -> Callable[[int], np.ndarray]:
    """Return a function from the index of a held-out image to its pixels, so that not all are copied."""
    rows = {source: row for row, source in enumerate(split.sources)}
    return lambda index: split.images[rows[str(held.sources[index])]]


def by_folds(own: Answers, held: HeldOut) -> Answers:
    """Return a shipped model with the folds' answers as its own: int8's if it answers in int8, else the float model's."""
    int8 = own.precision.startswith(("int8", "fake"))
    return replace(own, values=held.int8 if int8 else held.float, unit="logit", codes=None)


def refused_strangers(run: Run, held: HeldOut, chosen: ChosenStrangers, model: str) -> StrangerFigures:
    """Return the decision on each image, with the limit that the other folds set."""
    scores = softmax(held.int8 / np.float32(chosen.temperature)).max(axis=1)
    refused, limited = cross_fitted_strangers(scores, held.similarity, held.fold, chosen.rate)
    wrong = refused & (held.int8.argmax(axis=1) != held.classes)
    return stranger_figures(run, chosen, model, refused, wrong, limited)


def verify(
    run: Run,
    dataset: Dataset,
    *,
    gate: Gate = Gate(),
    target_error: float | None = None,
    matrix: bool = False,
    tflite_python: Path | None = None,
    boards: Boards | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Compare a run's exports with its float and fake-quantized models and write `parity.json`, after making the choices.

    float against each export measures what quantization cost, limited by the gate; fake-quantized against each int8 export measures whether
    the conversion is right, with its own fixed limit. Two models that do not ship are compared with float too, without a limit: the
    fake-quantized one, and int8 by the other method. Files for other programs are judged by the program's own steps. Temperature, threshold
    and the strangers' limit are chosen on validation images with the first of EXPORTS that exists, before the test split is loaded.
    `predictions.npz` stores each model's answer to each image.
    `boards` runs the exports on emulated boards: `edgecnn.emulate.on_boards.run_on_boards` with its first arguments given.
    `target_error` is the largest error rate among answered images, in (0, 1).
    Raises RunError if nothing was exported, or the validation or test split has changed; ThresholdError if no threshold meets the target
    error; the test split is then not read; EmulatorError from `boards`; EngineError if `tflite_python`, the Python of an environment with
    tflite-runtime, does not exist or cannot run the model; ModuleNotFoundError if there are files for other programs and OpenCV is missing.
    """
    if run.info.folds:
        if matrix:
            raise RunError("--matrix compares engines on test images, and training by folds leaves none.")
        return verify_by_folds(run, dataset, gate, target_error, boards, progress)
    # check for what may be missing before the work that takes minutes
    exports = existing_exports(run)
    programs = check_programs(run)
    tflite_python = find_python(tflite_python) if tflite_python else None

    choosing = Choosing(run, dataset, exports[0], progress)
    confidence = choosing.confidence(target_error)
    strangers = choosing.strangers(confidence.temperature)
    choosing.scores(confidence, strangers)

    test = load_test(run, dataset, progress)
    float_, *fakes = references(run, test, progress)
    by_programs = [program_answers(run, program, dataset, test, progress) for program in programs]
    candidates, others, answers = run_exports(run, exports, [own for own, _ in by_programs], test, progress)
    shipped = candidates[0]

    hold = partial(compared, split=test, labels=run.info.data.labels, gate=gate)
    comparisons = run_comparisons(float_, fakes, candidates, others, hold)
    if by_programs:  # then `exports` begins with the int8 TFLite file: `check_programs`
        comparisons += program_comparisons(by_programs, float_, shipped, hold)
    models, recorded = (float_, *fakes, *answers), run.info.data
    data = data_of(run, "test", len(test.classes), dataset.hashes["test"])
    rows = boards(run, exports, test, progress) if boards else ()
    hashes = {item.source: item.hash for item in dataset.items["test"]}
    groups = groups_of(run, [hashes[source] for source in test.sources])
    balanced = dataset.balances(run.recipe.train.class_weights)
    tested = Basis(test, recorded.labels, groups, dataset.class_counts(), balanced)
    report = judged(run.name, data, gate, models, comparisons, tested)
    scores = score_figures(shipped.values, test.classes, confidence.temperature, confidence.threshold)
    report = replace(
        report,
        passed=report.passed and all(row.passed for row in rows),
        int8=int8_choice(run, answers, test),
        matrix=tuple(engine_matrix(run, fakes, candidates, test, tflite_python, progress)) if matrix else (),
        boards=tuple(rows),
        found=found_by_class(shipped.values.argmax(axis=1), test.classes, recorded.labels),
        confidence=tested_confidence(confidence, scores, shipped.name),
        strangers=tested_strangers(run, strangers, shipped.name, *exports[0], test, progress) if strangers else None,
    )
    int8 = next((item for item in candidates if item.precision == "int8"), None)
    write_predictions(run, test, test.images.__getitem__, models, int8, (shipped, confidence.temperature))
    write_json(run.file(PARITY), report)
    return report
