"""Parity: what models answer to the test images, compared and held to the gate, as one report."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from edgecnn.data import Dataset, Split
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import REPEATS, Answers, Progress
from edgecnn.evaluate.scores import expected_calibration_error
from edgecnn.evaluate.statistics import (
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
from edgecnn.runs import PARITY, Run
from edgecnn.tables import build
from edgecnn.verify.gate import Gate
from edgecnn.verify.parity_report import (
    Chance,
    ClassDrop,
    Comparison,
    ComparisonFigures,
    ConfidenceDrift,
    Data,
    Int8Choice,
    Kind,
    LabelledFlip,
    ModelFigures,
    PairedFigures,
    QatAgainstPtq,
    Report,
    Unit,
)
from edgecnn.verify.references import reference_answers
from edgecnn.versions import library_versions, processor


def references(run: Run, dataset: Dataset, test: Split, progress: Progress) -> list[Answers]:
    """Return the answers that exports are held to: the float model's, then the fake-quantized one's, unless int8 was made after training."""
    names = ["float"] if run.int8_method == "ptq" else ["float", "fake-quantized"]
    return [reference_answers(run, name, dataset.hashes["test"], test.images, progress) for name in names]


def run_comparisons(
    float_: Answers,
    fakes: Sequence[Answers],
    candidates: Sequence[Answers],
    others: Sequence[Answers],
    hold: Callable[[Kind, Answers, Answers], Comparison],
) -> list[Comparison]:
    """Return a run's comparisons, by `hold`: each model with the float one, and each int8 export with the fake-quantized one, if any.

    `others` are answers of int8 by the method that does not ship.
    """
    comparisons = [hold("quantization", float_, fake) for fake in fakes]
    for candidate in candidates:
        comparisons.append(hold("quantization", float_, candidate))
        if candidate.precision.startswith("int8"):
            comparisons += [hold("conversion", fake, candidate) for fake in fakes]
    return comparisons + [hold("alternative", float_, other) for other in others]


def parity_report(run: Run) -> Report:
    """Return a run's parity report; RunError if the run was not verified, or the report cannot be read."""
    data = run.read(PARITY, "verify")
    try:
        return build(Report, json.loads(data), ValueError)
    except ValueError as error:
        raise RunError(f"{run.file(PARITY)} is not a parity report: {error}. First: {run.command('verify')}") from None


def int8_choice(run: Run, answers: Sequence[Answers], split: Split) -> Int8Choice | None:
    """Return how the run's int8 models were made, and what quantization-aware training gained on the test split, if both were measured."""
    recorded = run.info.int8
    if recorded is None:
        return None
    choice = Int8Choice(**vars(recorded))
    named = {item.name: item for item in answers}
    names = {"qat": "tflite-int8-qat", "ptq": "tflite-int8-ptq"} | {choice.method: "tflite-int8"}
    if not all(name in named for name in names.values()):
        return choice
    reference, candidate = named[names["ptq"]], named[names["qat"]]
    figures = paired_figures(reference, candidate, reference.values, candidate.values, split.classes)
    worse = mcnemar_exact(figures.lost, figures.gained, "greater")
    return replace(choice, qat_against_ptq=QatAgainstPtq(**vars(figures), mcnemar_p_worse=worse))


def judged(
    run: str | None,
    data: Data,
    gate: Gate,
    answers: Sequence[Answers],
    comparisons: Sequence[Comparison],
    split: Split,
    labels: Sequence[str],
) -> Report:
    """Return what the reports of a run and of two models share: the models and comparisons, and whether the gate passes.

    A model is at chance level where the 95 % interval of its accuracy does not lie wholly above the share of the most frequent class.
    """
    models = tuple(model_figures(item, split.classes) for item in answers)
    top, share = chance_level(split.classes)
    gated = {name for item in comparisons if item.kind != "alternative" for name in (item.reference, item.candidate)}
    not_better = tuple(item.name for item in models if item.name in gated and item.accuracy_interval[0] <= share)
    return Report(
        schema="edgecnn.parity/1",
        run=run,
        data=data,
        **asdict(gate),
        passed=all(comparison.passed for comparison in comparisons) and not (gate.confident and not_better),
        chance=Chance(label=labels[top], accuracy=share, not_better=not_better),
        models=models,
        comparisons=tuple(comparisons),
        matrix=(),
        confidence=None,
        timing=f"median of {REPEATS} calls with one image, one thread, interleaved; TensorFlow unmodified",
        machine=processor(),
        versions=library_versions(),
    )


def model_figures(answers: Answers, classes: np.ndarray) -> ModelFigures:
    """Return one model's entry in the report."""
    right = int(np.sum(np.argmax(answers.values, axis=1) == classes))
    assert answers.ms_per_image is not None
    return ModelFigures(
        name=answers.name,
        format=answers.format,
        precision=answers.precision,
        engine=answers.engine,
        size_bytes=answers.size_bytes,
        sha256=answers.sha256,
        accuracy=right / len(classes),
        accuracy_interval=wilson(right, len(classes)),
        calibration_error=expected_calibration_error(answers.scores, classes),
        ms_per_image=answers.ms_per_image,
    )


def paired_figures(
    reference: Answers, candidate: Answers, one: np.ndarray, other: np.ndarray, classes: np.ndarray
) -> PairedFigures:
    """Return two models' paired figures; `one` and `other` are their logits or scores, shape (n, num_classes)."""
    lost, gained = discordant(one, other, classes)
    accuracies = compare(one, other, classes)
    return PairedFigures(
        reference=reference.name,
        candidate=candidate.name,
        n=accuracies.n,
        accuracy_reference=accuracies.accuracy_reference,
        accuracy_candidate=accuracies.accuracy_candidate,
        drop=accuracies.drop,
        drop_interval=paired_interval(lost, gained, accuracies.n),
        drop_upper=paired_interval(lost, gained, accuracies.n, 0.9).high,  # of two sides at 90 %, one is at 95 %
        lost=lost,
        gained=gained,
        agreement=accuracies.agreement,
    )


def compared(
    kind: Kind, reference: Answers, candidate: Answers, split: Split, labels: Sequence[str], gate: Gate
) -> Comparison:
    """Compare two models' answers and hold them to the limits of the comparison's kind.

    Outputs are compared as logits, or as scores where a model gives scores. Differences in LSB are on the candidate's grid, if it has one
    of that unit; logits count up to a constant for each image, but for a file's from the fake-quantized model that it was made of.
    """
    classes = split.classes
    unit: Unit = "score" if "score" in (reference.unit, candidate.unit) else "logit"
    one, other = (item.values if item.unit == unit else item.scores for item in (reference, candidate))
    paired = paired_figures(reference, candidate, one, other, classes)
    drift = confidence_drift(reference.scores, candidate.scores)
    flipped = flips(one, other, classes)
    lsb = None
    if candidate.codes is not None and candidate.unit == unit:
        free = unit == "logit" and kind != "conversion"
        lsb = lsb_difference(one, candidate.codes, candidate.scale, candidate.zero_point, up_to_constant=free)
    images = np.bincount(classes, minlength=len(labels)).tolist()
    drops = per_class_drop(one, other, classes)
    figures = ComparisonFigures(
        **vars(paired),
        kind=kind,
        agreement_upper=clopper_pearson(len(classes) - len(flipped), len(classes), side="upper").high,
        unit=unit,
        largest_difference=compare(one, other, classes).largest_difference,
        mcnemar_p=mcnemar_exact(paired.lost, paired.gained),
        per_class=tuple(
            ClassDrop(label=label, images=count, drop=drop)
            for label, count, drop in zip(labels, images, drops, strict=True)
        ),
        confidence_drift=ConfidenceDrift(**drift._asdict()),
        mean_lsb=lsb.mean if lsb else None,
        largest_lsb=lsb.largest if lsb else None,
        flips=tuple(
            LabelledFlip(
                source=split.sources[flip.image],
                true=labels[flip.true],
                reference=labels[flip.reference],
                candidate=labels[flip.candidate],
            )
            for flip in flipped
        ),
    )
    return gate.judge(figures)
