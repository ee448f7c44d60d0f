"""Parity: a run's exports beside its float and fake-quantized models on the test split, as one report."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.boards.qemu import find_qemu
from edgecnn.data import Dataset, Split
from edgecnn.errors import RunError
from edgecnn.export import EXPORTS, beside, export_path
from edgecnn.files import canonical_json, write_atomic
from edgecnn.runs import PARITY, Run
from edgecnn.verify.answers import REPEATS, Answers, Progress, export_answers, load_test, timed
from edgecnn.verify.boards import OnBoards
from edgecnn.verify.bundles import run_on_boards
from edgecnn.verify.calibration import expected_calibration_error
from edgecnn.verify.confidence import choose_confidence, confidence_figures
from edgecnn.verify.gate import Gate
from edgecnn.verify.matrix import find_python
from edgecnn.verify.matrix import matrix as engine_matrix
from edgecnn.verify.references import reference_answers
from edgecnn.verify.statistics import (
    chance_level,
    clopper_pearson,
    compare,
    confidence_drift,
    discordant,
    flips,
    lsb_difference,
    mcnemar_exact,
    paired_interval,
    per_class_drop,
    wilson,
)
from edgecnn.versions import library_versions, processor

SCHEMA = "edgecnn.parity/1"


def verify(
    run: Run,
    dataset: Dataset,
    *,
    gate: Gate = Gate(),
    target_error: float | None = None,
    matrix: bool = False,
    tflite_python: Path | None = None,
    boards: OnBoards | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Compare a run's exports with its float and fake-quantized models and write `parity.json`, and `confidence.json` before it.

    float against each export is what quantization cost, held to the gate; fake-quantized against each int8 export is whether
    the conversion is right, held to its own fixed limit. int8 by the method that does not ship is measured beside, and held to nothing.
    Temperature and threshold are chosen on validation images by the export that most devices will run, the first of EXPORTS that
    there is, and measured on the test split.

    Args:
        run: a trained run with at least one export.
        dataset: the run's data.
        gate: the limits.
        target_error: largest error among answered images, in (0, 1), which chooses the threshold; None for no threshold.
        matrix: whether every engine that can run the int8 models is compared with every other.
        tflite_python: the Python of an environment with tflite-runtime, for the matrix.
        boards: emulated boards that the exports are run on.
        progress: called with the model's name, images done and images in all.

    Returns:
        The report, as written; its form is `parity.schema.json` beside this module.

    Raises:
        RunError: if nothing was exported, or the validation or test split has changed.
        ThresholdError: if no threshold keeps the target error; the test split is not read then.
        EmulatorError: if boards were asked for and cannot be emulated here.
        EngineError: if there is no such Python as `tflite_python`, or the model does not run there.
    """
    exports = [(format_, precision) for format_, precision in EXPORTS if export_path(run, format_, precision).exists()]
    if not exports:
        raise RunError(f"run {run.path} has no export to verify. First: edgecnn export --format tflite --int8")
    # what may be missing is looked for before what takes minutes
    if boards:
        find_qemu()
    if tflite_python:
        tflite_python = find_python(tflite_python)
    chosen = choose_confidence(run, dataset, *exports[0], target_error, progress)
    test = load_test(run, dataset, progress)
    # int8 files that were quantized after training have no fake-quantized form: they are held to the float model alone
    names = ["float"] if run.int8_method == "ptq" else ["float", "fake-quantized"]
    float_, *fakes = (reference_answers(run, name, dataset.hashes["test"], test.images, progress) for name in names)
    other = beside(run)
    measured = exports + [other] if other and export_path(run, *other).exists() else exports
    answers = timed(
        [export_answers(run, export_path(run, *pair), *pair, test.images, progress) for pair in measured],
        test.images[:1],
    )
    candidates, others = answers[: len(exports)], answers[len(exports) :]
    labels = run.info["data"]["labels"]
    comparisons = [compared("quantization", float_, fake, test, labels, gate) for fake in fakes]
    for candidate in candidates:
        comparisons.append(compared("quantization", float_, candidate, test, labels, gate))
        if candidate.precision.startswith("int8"):
            comparisons += [compared("conversion", fake, candidate, test, labels, gate) for fake in fakes]
    comparisons += [compared("beside", float_, candidate, test, labels, gate) for candidate in others]
    rows = engine_matrix(run, fakes, candidates, test, tflite_python, progress) if matrix else []
    on_boards = run_on_boards(run, exports, test, boards, progress) if boards else []
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "run": run.name,
        "data": {
            "name": run.info["data"]["name"],
            "title": run.info["data"]["title"],
            "split": "test",
            "test_images": len(test.classes),
            "test_sha256": dataset.hashes["test"],
        },
        **judged(gate, (float_, *fakes, *answers), comparisons, test, labels),
        "int8": int8_methods(run, answers, test),
        "matrix": rows,
        "boards": on_boards,
        "confidence": {
            "model": candidates[0].name,
            **{key: chosen[key] for key in ("temperature", "not_fitted", "choice")},
            **confidence_figures(candidates[0].values, test.classes, chosen["temperature"], chosen["threshold"]),
        },
    }
    report["passed"] = report["passed"] and all(row["passed"] for row in on_boards)
    write_atomic(run.file(PARITY), canonical_json(report))
    return report


def int8_methods(run: Run, answers: Sequence[Answers], split: Split) -> dict[str, Any] | None:
    """Return how the run's int8 models were made, and what quantization-aware training bought on the test split.

    Args:
        run: a run; None is returned where training did not choose.
        answers: the exports', and those of int8 by the other method.
        split: the test split.

    Returns:
        `int8` of `run.json`, and `qat_against_ptq`: null unless both TFLite files were measured.
    """
    chosen = run.info.get("int8")
    if chosen is None:
        return None
    named = {item.name: item for item in answers}
    names = {"qat": "tflite-int8-qat", "ptq": "tflite-int8-ptq"} | {chosen["method"]: "tflite-int8"}
    if not all(name in named for name in names.values()):
        return {**chosen, "qat_against_ptq": None}
    reference, candidate = named[names["ptq"]], named[names["qat"]]
    lost, gained = discordant(reference.values, candidate.values, split.classes)
    found = compare(reference.values, candidate.values, split.classes)
    return {
        **chosen,
        "qat_against_ptq": {
            "reference": reference.name,
            "candidate": candidate.name,
            "n": found.n,
            "accuracy_reference": found.accuracy_reference,
            "accuracy_candidate": found.accuracy_candidate,
            "drop": found.drop,
            "drop_interval": list(paired_interval(lost, gained, found.n)),
            "lost": lost,
            "gained": gained,
            "agreement": found.agreement,
            "mcnemar_p_worse": mcnemar_exact(lost, gained, "greater"),
        },
    }


def judged(
    gate: Gate,
    answers: Sequence[Answers],
    comparisons: Sequence[dict[str, Any]],
    split: Split,
    labels: Sequence[str],
) -> dict[str, Any]:
    """Return the part of a report that all kinds of comparison share.

    A model is at chance level where the 95 % interval of its accuracy does not lie wholly above the share of the most frequent class.
    """
    models = [model_figures(item, split.classes) for item in answers]
    top, share = chance_level(split.classes)
    gated = {item[side] for item in comparisons if item["kind"] != "beside" for side in ("reference", "candidate")}
    not_better = [item["name"] for item in models if item["name"] in gated and item["accuracy_interval"][0] <= share]
    return {
        **asdict(gate),
        "passed": all(comparison["passed"] for comparison in comparisons) and not (gate.confident and not_better),
        "chance": {"label": labels[top], "accuracy": share, "not_better": not_better},
        "models": models,
        "comparisons": list(comparisons),
        "timing": f"median of {REPEATS} calls with one image, one thread, interleaved; tensorflow as it comes",
        "machine": processor(),
        "versions": library_versions(),
    }


def model_figures(answers: Answers, classes: np.ndarray) -> dict[str, Any]:
    """Return one model's entry in the report."""
    right = int(np.sum(np.argmax(answers.values, axis=1) == classes))
    return {
        "name": answers.name,
        "format": answers.format,
        "precision": answers.precision,
        "engine": answers.engine,
        "size_bytes": answers.size_bytes,
        "sha256": answers.sha256,
        "accuracy": right / len(classes),
        "accuracy_interval": list(wilson(right, len(classes))),
        "calibration_error": expected_calibration_error(answers.scores, classes),
        "ms_per_image": answers.ms_per_image,
    }


def compared(
    kind: str, reference: Answers, candidate: Answers, split: Split, labels: Sequence[str], gate: Gate
) -> dict[str, Any]:
    """Compare two models' answers and hold them to the limits of the comparison's kind.

    Outputs are compared as logits, or as scores where one of the models gives scores. Differences in LSB are on the grid of
    the candidate's quantized output, where it has one of that unit; logits count up to a constant for each image, but for a file's from the
    fake-quantized model that it was made of.
    """
    classes = split.classes
    unit = "score" if "score" in (reference.unit, candidate.unit) else "logit"
    one, other = (item.values if item.unit == unit else item.scores for item in (reference, candidate))
    lost, gained = discordant(one, other, classes)
    drift = confidence_drift(reference.scores, candidate.scores)
    flipped = flips(one, other, classes)
    lsb = None
    if candidate.codes is not None and candidate.unit == unit:
        free = unit == "logit" and kind != "conversion"
        lsb = lsb_difference(one, candidate.codes, candidate.scale, candidate.zero_point, up_to_constant=free)
    images = np.bincount(classes, minlength=len(labels)).tolist()
    result = {
        "kind": kind,
        "reference": reference.name,
        "candidate": candidate.name,
        **asdict(compare(one, other, classes)),
        "agreement_upper": clopper_pearson(len(classes) - len(flipped), len(classes), side="upper").high,
        "unit": unit,
        "drop_interval": list(paired_interval(lost, gained, len(classes))),
        "lost": lost,
        "gained": gained,
        "mcnemar_p": mcnemar_exact(lost, gained),
        "per_class": [
            {"label": label, "images": count, "drop": drop}
            for label, count, drop in zip(labels, images, per_class_drop(one, other, classes), strict=True)
        ],
        "confidence_drift": drift._asdict(),
        "mean_lsb": lsb.mean if lsb else None,
        "largest_lsb": lsb.largest if lsb else None,
        "flips": [
            {
                "source": split.sources[flip.image],
                "true": labels[flip.true],
                "reference": labels[flip.reference],
                "candidate": labels[flip.candidate],
            }
            for flip in flipped
        ],
    }
    failed = gate.failed(result)
    accepted = bool(failed) and gate.accepts(kind)
    verdict = {"failed": failed, "accepted": accepted, "passed": accepted or not failed}
    return result | {"limit": gate.limit(kind), **verdict}
