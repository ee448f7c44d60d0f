"""Parity: models' answers to the test images, compared and checked against the gate, in one report."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np

from edgecnn.data import Progress, Split
from edgecnn.errors import RunError
from edgecnn.evaluate import statistics
from edgecnn.evaluate.answers import REPEATS, Answers, export_answers, in_chunks, milliseconds, timed
from edgecnn.evaluate.statistics import expected_calibration_error
from edgecnn.files import sha256
from edgecnn.labels import plural
from edgecnn.runs import PARITY, QAT_MODEL, Run
from edgecnn.tables import build
from edgecnn.verify.parity_report import (
    FEW_GROUPS,
    Chance,
    ClassDrop,
    Comparison,
    ComparisonFigures,
    ConfidenceDrift,
    Data,
    Gate,
    Int8Choice,
    Kind,
    LabelledFlip,
    ModelFigures,
    PairedFigures,
    QatAgainstPtq,
    Report,
    SplitName,
    Unit,
)
from edgecnn.versions import library_versions, processor

PRECISIONS = {"float": "float32", "fake-quantized": "fake-quantized"}


def reference_answers(run: Run, name: str, images: np.ndarray, progress: Progress) -> Answers:
    """Return a reference's answers. `name` is one of PRECISIONS."""
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import model_from_bytes, predictor

    if name == "float" and run.reference:
        path = run.file(run.reference)
        answers = export_answers(run, path, path.suffix[1:], PRECISIONS[name], images, progress)
        return timed([replace(answers, name=name)], images[:1])[0]
    data = run.read(run.float_model if name == "float" else QAT_MODEL, "train")
    predict = predictor(model_from_bytes(data), run.recipe.input_scale, run.recipe.input_zero_point)
    return Answers(
        name=name,
        format="keras",
        precision=PRECISIONS[name],
        engine=f"tensorflow {tf.__version__}",
        size_bytes=len(data),
        sha256=sha256(data),
        values=in_chunks(predict, images, name, progress),
        ms_per_image=milliseconds({name: predict}, images[:1])[name],
    )


def references(run: Run, split: Split, progress: Progress) -> list[Answers]:
    """Return the reference answers for the exports: the float model's, and the fake-quantized one's if int8 was made from it."""
    names = ["float"] if run.int8_method == "ptq" else ["float", "fake-quantized"]
    return [reference_answers(run, name, split.images, progress) for name in names]


def run_comparisons(
    float_: Answers,
    fakes: Sequence[Answers],
    candidates: Sequence[Answers],
    others: Sequence[Answers],
    hold: Callable[[Kind, Answers, Answers], Comparison],
    kind: Kind = "quantization",
) -> list[Comparison]:
    """Return a run's comparisons, made by `hold`. `others` are int8 answers by the method that does not ship.

    The `kind` "seen" is for the files of a model trained on all images, on some of these: then nothing is compared that does not ship.
    """
    comparisons = [hold("alternative", float_, fake) for fake in fakes if kind != "seen"]
    for candidate in candidates:
        comparisons.append(hold(kind, float_, candidate))
        if candidate.precision.startswith("int8"):
            comparisons += [hold("conversion", fake, candidate) for fake in fakes]
    return comparisons + [hold("alternative", float_, other) for other in others]


def parity_report(run: Run) -> Report:
    """Return a run's parity report. Raises RunError if the run was not verified or the report cannot be read."""
    data = run.read(PARITY, "verify")
    try:
        return build(Report, json.loads(data), ValueError)
    except ValueError as error:
        raise RunError(f"{run.file(PARITY)} is not a parity report: {error}. First: {run.command('verify')}") from None


def int8_choice(run: Run, answers: Sequence[Answers], split: Split) -> Int8Choice | None:
    """Return how the run's int8 models were made, and the test gain of quantization-aware training if both methods were measured."""
    recorded = run.info.int8
    if recorded is None or run.info.head_ships:
        return None
    choice = Int8Choice(**vars(recorded))
    named = {item.name: item for item in answers}
    names = {"qat": "tflite-int8-qat", "ptq": "tflite-int8-ptq"} | {choice.method: "tflite-int8"}
    if not all(name in named for name in names.values()):
        return choice
    reference, candidate = named[names["ptq"]], named[names["qat"]]
    figures = paired_figures(
        reference.name, candidate.name, reference.values.argmax(axis=1), candidate.values.argmax(axis=1), split.classes
    )
    worse = statistics.mcnemar_exact(figures.lost, figures.gained, "greater")
    return replace(choice, qat_against_ptq=QatAgainstPtq(**vars(figures), mcnemar_p_worse=worse))


def data_of(run: Run, split: SplitName, images: int, digest: str) -> Data:
    """Return a report's description of the images that tested a run: their split, count and hash."""
    recorded = run.info.data
    named = recorded.groups
    own = "train" if split == "folds" else "test"  # with folds, every image trains and tests
    return Data(
        name=recorded.name,
        title=recorded.title,
        split=split,
        test_images=images,
        test_sha256=digest,
        unseen=bool(run.recipe.data.unseen) if run.imported else None,
        divided_by="group" if named else "photo" if recorded.sides else None,
        groups=sum(named.splits.values()) if named else None,
        test_groups=named.splits[own] if named else None,
    )


class Basis(NamedTuple):
    """The images that tested, the classes' names, each image's group if a user named groups, and the images of each class in all data.

    `balanced` is whether every class counts the same in what is chosen. `worth` is the weight of an image in the intervals of accuracies,
    less than 1 if folds' models answered.
    """

    split: Split
    labels: Sequence[str]
    groups: Sequence[str] | None = None
    counts: Sequence[int] = ()
    balanced: bool = False
    worth: float = 1.0


SHARES_OFF = 0.1
"""Nothing is at chance level if a class has another share of the test images than of the data by more: they do not show what is usual."""


def judged(
    run: str | None,
    data: Data,
    gate: Gate,
    answers: Sequence[Answers],
    comparisons: Sequence[Comparison],
    tested: Basis,
) -> Report:
    """Return the common part of the reports of a run and of two models: models, comparisons, and whether the gate passes.

    A model is at chance level unless the 95 % interval of its accuracy lies wholly above the fraction of the most frequent class; or, if
    every class counts the same, its balanced accuracy above that of always answering one class. That is judged only if the images have
    the data's shares of the classes, and of FEW_GROUPS or more groups if a user named some.
    """
    classes, labels = tested.split.classes, tested.labels
    models = tuple(model_figures(item, tested) for item in answers)
    top, share = statistics.chance_level(classes)
    balanced = 1 / len(np.unique(classes)) if tested.balanced else None
    beaten = {
        item.name: figures.accuracy_interval[0] > share
        if balanced is None
        else balanced_interval(item, tested).low > balanced
        for item, figures in zip(answers, models, strict=True)
    }
    off = unjudged(tested)
    gated = {name for item in comparisons if item.kind != "alternative" for name in (item.reference, item.candidate)}
    below = tuple(name for name, better in beaten.items() if name in gated and not better)
    not_better = () if off else below
    return Report(
        schema="edgecnn.parity/1",
        run=run,
        data=data,
        **asdict(gate),
        passed=all(comparison.passed for comparison in comparisons) and not (gate.confident and not_better),
        chance=Chance(label=labels[top], accuracy=share, balanced=balanced, not_better=not_better),
        models=models,
        comparisons=tuple(comparisons),
        matrix=(),
        confidence=None,
        doubts=(off,) if off and below else (),
        timing=f"median of {REPEATS} calls with one image, one thread, interleaved; TensorFlow unmodified",
        machine=processor(),
        versions=library_versions(),
    )


def unjudged(tested: Basis) -> str:
    """Return why it is not judged whether a model is better than chance: few groups tested, or other shares of the classes; else ""."""
    if tested.groups and (count := len(set(tested.groups))) < FEW_GROUPS:
        return (
            f"only {plural(count, 'group')} tested, too few to judge whether the model is better than chance."
            + " With --folds, all groups test." * (tested.worth == 1)
        )
    if not sum(tested.counts):
        return ""
    counts = np.bincount(tested.split.classes, minlength=len(tested.labels))
    shares, usual = counts / counts.sum(), np.array(tested.counts) / sum(tested.counts)
    worst = int(np.abs(shares - usual).argmax())
    if abs(shares[worst] - usual[worst]) <= SHARES_OFF:
        return ""
    return (
        f"{shares[worst]:.0%} of the test images are {tested.labels[worst]!r}, and {usual[worst]:.0%} of all images: so it is not judged "
        "whether the model is better than chance. Name smaller groups, or divide the photos anew."
    )


def balanced_interval(answers: Answers, tested: Basis) -> statistics.Interval:
    """Return the 95 % interval of the balanced accuracy, over groups if a user named some."""
    right = np.argmax(answers.values, axis=1) == tested.split.classes
    of_classes = [tested.split.classes == one for one in np.unique(tested.split.classes)]
    intervals = [interval_of(right, of, tested) for of in of_classes]
    return statistics.mean_interval([float(right[of].mean()) for of in of_classes], intervals)


def interval_of(right: np.ndarray, of: np.ndarray, tested: Basis) -> statistics.Interval:
    """Return the 95 % interval of the accuracy on some images, from the `right` answers; both are bool (n,)."""
    if tested.groups:
        return statistics.grouped_interval(right[of], np.array(tested.groups)[of].tolist(), tested.worth)
    return statistics.wilson(tested.worth * int(right[of].sum()), tested.worth * int(of.sum()))


def model_figures(answers: Answers, tested: Basis) -> ModelFigures:
    classes = tested.split.classes
    right = np.argmax(answers.values, axis=1) == classes
    names = ("name", "format", "precision", "engine", "size_bytes", "sha256", "ms_per_image")
    return ModelFigures(
        **{name: getattr(answers, name) for name in names},
        accuracy=int(right.sum()) / len(classes),
        accuracy_interval=interval_of(right, np.ones(len(classes), bool), tested),
        calibration_error=expected_calibration_error(answers.scores, classes),
    )


def paired_figures(
    reference: str, candidate: str, one: np.ndarray, other: np.ndarray, classes: np.ndarray, worth: float = 1.0
) -> PairedFigures:
    """Return the paired figures of two named models; `one` and `other` are the classes that they answer, int (n,).

    `worth` is the weight of a photo in the intervals: less than 1 if folds' models answered.
    """
    figures = statistics.compare(one, other, classes)
    lost, gained, n = worth * figures.lost, worth * figures.gained, worth * figures.n
    return PairedFigures(
        **vars(figures),
        reference=reference,
        candidate=candidate,
        drop_interval=statistics.paired_interval(lost, gained, n),
        drop_upper=statistics.paired_interval(lost, gained, n, 0.9).high,  # one end of a 90 % interval is a 95 % bound
    )


def class_drops(one: np.ndarray, other: np.ndarray, classes: np.ndarray, labels: Sequence[str]) -> list[ClassDrop]:
    """Return the images and the drop of each class; arguments as in `paired_figures`."""
    images = np.bincount(classes, minlength=len(labels)).tolist()
    rows = zip(labels, images, statistics.per_class_drop(one, other, classes, len(labels)), strict=True)
    return [ClassDrop(label=label, images=count, drop=drop) for label, count, drop in rows]


def compared(
    kind: Kind, reference: Answers, candidate: Answers, split: Split, labels: Sequence[str], gate: Gate
) -> Comparison:
    """Compare two models' answers and check them against the limits of the comparison's kind.

    Outputs are compared as logits, or as scores if a model outputs scores. Differences in LSB use the candidate's grid, if it has one in
    that unit. Logits are compared up to a constant per image, except between a file and the fake-quantized model that it was made from.
    """
    classes = split.classes
    unit: Unit = "score" if "score" in (reference.unit, candidate.unit) else "logit"
    one, other = (item.values if item.unit == unit else item.scores for item in (reference, candidate))
    tops = np.argmax(one, axis=1), np.argmax(other, axis=1)
    paired = paired_figures(reference.name, candidate.name, *tops, classes)
    mean_drift, p95 = statistics.confidence_drift(reference.scores, candidate.scores)
    flipped = np.flatnonzero(tops[0] != tops[1])
    mean_lsb = largest_lsb = None
    if candidate.codes is not None and candidate.unit == unit:
        free = unit == "logit" and kind != "conversion"
        grid = candidate.codes, candidate.scale, candidate.zero_point
        mean_lsb, largest_lsb = statistics.lsb_difference(one, *grid, up_to_constant=free)
    figures = ComparisonFigures(
        **vars(paired),
        kind=kind,
        agreement_upper=statistics.clopper_pearson(len(classes) - len(flipped), len(classes), side="upper").high,
        unit=unit,
        largest_difference=float(np.max(np.abs(one - other))),
        mcnemar_p=statistics.mcnemar_exact(paired.lost, paired.gained),
        per_class=tuple(class_drops(*tops, classes, labels)),
        confidence_drift=ConfidenceDrift(mean=mean_drift, p95=p95),
        mean_lsb=mean_lsb,
        largest_lsb=largest_lsb,
        flips=tuple(
            LabelledFlip(
                source=split.sources[index],
                true=labels[classes[index]],
                reference=labels[tops[0][index]],
                candidate=labels[tops[1][index]],
            )
            for index in flipped
        ),
    )
    return gate.judge(figures)
