"""The stage that verifies a run's exports: choose on validation images, then judge on test images, and write the report."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from edgecnn.data import Dataset
from edgecnn.emulate.machine import find_qemu
from edgecnn.emulate.on_boards import OnBoards, run_on_boards
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import Progress, load_test
from edgecnn.evaluate.recall import found_by_class
from edgecnn.runs import PARITY, Run, write_json
from edgecnn.stages.choose import Choosing
from edgecnn.stages.exported import answered, existing_exports
from edgecnn.stages.verify_folds import verify_by_folds
from edgecnn.tables import Struct
from edgecnn.verify.confidence import tested_confidence
from edgecnn.verify.gate import Gate
from edgecnn.verify.matrix import find_python
from edgecnn.verify.matrix import matrix as engine_matrix
from edgecnn.verify.other_programs import check_programs, program_answers, program_comparisons
from edgecnn.verify.parity import (
    Basis,
    compared,
    data_of,
    groups_of,
    int8_choice,
    judged,
    references,
    run_comparisons,
)
from edgecnn.verify.parity_report import Report
from edgecnn.verify.predictions import write_predictions
from edgecnn.verify.strangers import tested_strangers


class Matrix(Struct):
    """Compare all engines that can run the int8 models; `tflite_python` is the Python of an environment with tflite-runtime."""

    tflite_python: Path | None = None


def verify(
    run: Run,
    dataset: Dataset,
    *,
    gate: Gate = Gate(),
    target_error: float | None = None,
    matrix: Matrix | None = None,
    boards: OnBoards | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Compare a run's exports with its float and fake-quantized models and write `parity.json`, after making the choices.

    float against each export measures what quantization cost, limited by the gate; fake-quantized against each int8 export measures whether
    the conversion is right, with its own fixed limit. Two models that do not ship are compared with float too, without a limit: the
    fake-quantized one, and int8 by the other method. Files for other programs are judged by the program's own steps. Temperature, threshold
    and the strangers' limit are chosen on validation images with the first of EXPORTS that exists, before the test split is loaded.
    `predictions.npz` stores each model's answer to each image.
    `target_error` is the largest error rate among answered images, in (0, 1).

    Raises:
        RunError: if nothing was exported, or the validation or test split has changed.
        ThresholdError: if no threshold meets the target error; the test split is then not read.
        EmulatorError: if boards were requested and cannot be emulated here.
        EngineError: if `matrix.tflite_python` does not exist, or cannot run the model.
        ModuleNotFoundError: if there are files for other programs and OpenCV is missing.
    """
    if run.info.folds:
        if matrix:
            raise RunError("--matrix compares engines on test images, and training by folds leaves none.")
        return verify_by_folds(run, dataset, gate, target_error, boards, progress)
    # check for what may be missing before the work that takes minutes
    exports = existing_exports(run)
    programs = check_programs(run)
    if boards:
        find_qemu()
    tflite_python = find_python(matrix.tflite_python) if matrix and matrix.tflite_python else None

    choosing = Choosing(run, dataset, exports[0], progress)
    confidence = choosing.confidence(target_error)
    strangers = choosing.strangers(confidence.temperature)
    choosing.scores(confidence, strangers)

    test = load_test(run, dataset, progress)
    float_, *fakes = references(run, test, progress)
    by_programs = [program_answers(run, program, dataset, test, progress) for program in programs]
    candidates, others, answers = answered(run, exports, [own for own, _ in by_programs], test, progress)
    shipped = candidates[0]

    hold = partial(compared, split=test, labels=run.info.data.labels, gate=gate)
    comparisons = run_comparisons(float_, fakes, candidates, others, hold)
    if by_programs:  # then `exports` begins with the int8 TFLite file: `check_programs`
        comparisons += program_comparisons(by_programs, float_, shipped, hold)
    models, recorded = (float_, *fakes, *answers), run.info.data
    data = data_of(run, "test", len(test.classes), dataset.hashes["test"])
    rows = run_on_boards(run, exports, test, boards, progress) if boards else ()
    hashes = {item.source: item.hash for item in dataset.items["test"]}
    groups = groups_of(run, [hashes[source] for source in test.sources])
    tested = Basis(test, recorded.labels, groups, dataset.class_counts())
    report = judged(run.name, data, gate, models, comparisons, tested)
    report = replace(
        report,
        passed=report.passed and all(row.passed for row in rows),
        int8=int8_choice(run, answers, test),
        matrix=tuple(engine_matrix(run, fakes, candidates, test, tflite_python, progress)) if matrix else (),
        boards=tuple(rows),
        found=found_by_class(shipped.values.argmax(axis=1), test.classes, recorded.labels),
        confidence=tested_confidence(confidence, shipped, test.classes),
        strangers=tested_strangers(run, strangers, shipped.name, *exports[0], test, progress) if strangers else None,
    )
    int8 = next((item for item in candidates if item.precision == "int8"), None)
    write_predictions(run, test, models, int8, (shipped, confidence.temperature))
    write_json(run.file(PARITY), report)
    return report
