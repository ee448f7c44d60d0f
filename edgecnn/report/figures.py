"""The figures of the report page, as its JSON has them, and how they are collected from a run folder or a bundle.

Two runs are compared on the photos that both have answers for: each run's own test photos cannot show which of them is better.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from edgecnn.bundle.evidence import AGAINST
from edgecnn.bundle.file import Bundle
from edgecnn.data.dataset import known_images
from edgecnn.errors import BundleError
from edgecnn.evaluate.answers import read_answers, read_held_out
from edgecnn.evaluate.statistics import BINS, bins_of, mcnemar_exact
from edgecnn.files import csv_rows
from edgecnn.recipe import to_toml
from edgecnn.report.sections import accuracy_line, gate_line, model_lines, parity_sections, warnings_of
from edgecnn.report.table import tuning_line
from edgecnn.run_info import NetworkChoice
from edgecnn.runs import CHOICE, HISTORY, LAYERS, PARITY, PREDICTIONS, RECIPE, Run
from edgecnn.stress.stress_report import StressReport, best_report
from edgecnn.tables import Fraction, Struct, build, described
from edgecnn.verify.against import Against, read_against
from edgecnn.verify.layers import LayerErrors
from edgecnn.verify.parity import paired_figures, parity_report
from edgecnn.verify.parity_report import ModelFigures, PairedFigures, Report
from edgecnn.verify.predictions import GALLERY, Predictions, gallery

NUMBERS = ("loss", "accuracy", "validation_accuracy", "learning_rate", "int8_accuracy", "int8_agreement")


class Epoch(Struct):
    """One training epoch. Accuracies are fractions, None if not measured."""

    phase: str
    epoch: int
    loss: float
    accuracy: float
    validation_accuracy: float
    learning_rate: float
    int8_accuracy: float | None
    int8_agreement: float | None


def epochs(run: Run) -> tuple[Epoch, ...]:
    """Return a run's epochs; an imported model has none."""
    if not run.file(HISTORY).exists():
        return ()
    return tuple(
        Epoch(
            phase=row["phase"],
            epoch=int(row["epoch"]),
            **{name: float(row[name]) if row[name] else None for name in NUMBERS},  # type: ignore[arg-type]
        )
        for row in csv_rows(run.read(HISTORY, "train"))
    )


CONFUSED = 20
"""Most pairs of confused classes that are listed."""

COVERAGE = tuple(index / 50 for index in range(50))


class Missing(Struct):
    """A part of the report for which the run has no figures."""

    part: str
    why: str
    command: str


class Confused(Struct):
    """How many images of class `true` were classified as `answer`."""

    true: str
    answer: str
    images: int


class Confusion(Struct):
    """One model's confusion matrix: (true class, answered class, images) for each non-empty cell, and the most frequent mistakes."""

    model: str
    cells: tuple[tuple[int, int, int], ...]
    most_confused: tuple[Confused, ...]


class Bin(Struct):
    """The images whose best score is in (low, high]: their number, mean score and accuracy."""

    low: float
    high: float
    images: int
    score: float
    accuracy: float


class Reliability(Struct):
    """How often scores are right: one model's non-empty bins. Its logits were divided by `temperature`."""

    model: str
    temperature: float
    bins: tuple[Bin, ...]


class Coverage(Struct):
    """The effect of a threshold: the fraction of images answered, and their error; None if none are answered."""

    threshold: float
    share_answered: float
    error: float | None


class Answered(Struct):
    """A test image with both models' answers and scores. `index` is its position in the test split."""

    index: int
    source: str
    true: str
    float_answer: str
    float_score: float
    int8_answer: str
    int8_score: float


class Origin(Struct):
    """What the model is and what it was made from."""

    network: str
    parameters: int | None
    input: str
    labels: tuple[str, ...]
    data: str
    fingerprint: str
    training_images: int | None
    validation_images: int | None
    seconds: float | None
    imported: str | None
    tuning: str | None = described("The verdict between head and fine-tuned model; null if there was none.")
    recipe: str


class AnswerFigures(Struct):
    """Figures drawn from `Predictions`."""

    confusion: tuple[Confusion, ...]
    reliability: tuple[Reliability, ...]
    coverage: tuple[Coverage, ...]
    flips: tuple[Answered, ...]
    flips_in_all: int | None
    mistakes: tuple[Answered, ...]
    mistakes_in_all: int | None


NO_ANSWERS = AnswerFigures(
    confusion=(), reliability=(), coverage=(), flips=(), flips_in_all=None, mistakes=(), mistakes_in_all=None
)


class RunFigures(AnswerFigures):
    """One run or bundle in the report. Parts without figures are empty and listed in `missing`.

    `summary` says in sentences whether the model is good. `int8` names the int8 export whose answers the confusion matrix, galleries and
    coverage show: the first available. `choice` is how the network was chosen, None if it was given, and `against` is the
    comparison with the model it would replace.
    """

    name: str
    kind: str
    summary: tuple[str, ...]
    verdict: str
    passed: bool | None
    warnings: tuple[str, ...]
    origin: Origin
    choice: NetworkChoice | None
    parity: Report | None
    against: Against | None
    int8: str | None
    epochs: tuple[Epoch, ...]
    layers: LayerErrors | None
    stress: StressReport | None
    missing: tuple[Missing, ...]


class Pair(PairedFigures):
    """Two runs' int8 models on the photos that both have answers for, with the first as the reference."""

    mcnemar_p: Fraction = described("McNemar's exact test, two-sided.")


class PageFigures(Struct):
    """The report: one run, or several side by side, with the first compared with each other one, or warnings if that is impossible."""

    schema: Literal["edgecnn.report/1"]
    pairs: tuple[Pair, ...] = ()
    warnings: tuple[str, ...] = ()
    runs: tuple[RunFigures, ...]


def confusion(model: str, true: np.ndarray, answers: np.ndarray, labels: Sequence[str]) -> Confusion:
    """Return a model's confusion matrix from the true and the answered classes, int arrays (n,)."""
    pairs, counts = np.unique(np.stack([true, answers], axis=1), axis=0, return_counts=True)
    cells = tuple((int(a), int(b), int(count)) for (a, b), count in zip(pairs, counts, strict=True))
    mistakes = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[0], cell[1]))
    return Confusion(
        model=model,
        cells=cells,
        most_confused=tuple(
            Confused(true=labels[a], answer=labels[b], images=count) for a, b, count in mistakes[:CONFUSED]
        ),
    )


def reliability(model: str, temperature: float, scores: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Return how often the best scores, float32 (n,), are right, in the bins of `scores.expected_calibration_error`."""
    index = bins_of(scores, bins)
    return Reliability(
        model=model,
        temperature=temperature,
        bins=tuple(
            Bin(
                low=number / bins,
                high=(number + 1) / bins,
                images=int(inside.sum()),
                score=float(scores[inside].mean(dtype=np.float64)),
                accuracy=float(right[inside].mean()),
            )
            for number in range(bins)
            if (inside := index == number).any()
        ),
    )


def coverage(scores: np.ndarray, right: np.ndarray) -> tuple[Coverage, ...]:
    """Return the effect of each threshold of COVERAGE. `scores` and `right` are as in `reliability`."""
    points = []
    exact = scores.astype(np.float64)  # compared like in `runtime.decision.decide`
    for threshold in COVERAGE:
        answered = exact >= threshold
        error = float(1 - right[answered].mean()) if answered.any() else None
        points.append(Coverage(threshold=threshold, share_answered=float(answered.mean()), error=error))
    return tuple(points)


def answer_figures(
    predictions: Predictions, int8: str, temperature: float | None, labels: Sequence[str]
) -> AnswerFigures:
    """Return the figures of a run's float model and an int8 export from its predictions; `temperature` is the bundle's, or None."""
    true = predictions.true
    one, other = predictions.answers["float"], predictions.answers[int8]
    right = other == true

    def pictured(index: int) -> Answered:
        return Answered(
            index=index,
            source=predictions.sources[index],
            true=labels[true[index]],
            float_answer=labels[one[index]],
            float_score=round(float(predictions.scores["float"][index]), 4),
            int8_answer=labels[other[index]],
            int8_score=round(float(predictions.scores[int8][index]), 4),
        )

    flips, mistakes = gallery(true, one, other, predictions.scores[int8])
    scores = predictions.scores[int8]
    reliabilities = [
        reliability("float", 1.0, predictions.scores["float"], one == true),
        reliability(int8, 1.0, scores, right),
    ]
    if temperature is not None and len(predictions.tempered):
        scores = predictions.tempered
        if temperature != 1:
            reliabilities.append(reliability(int8, temperature, scores, right))
    return AnswerFigures(
        confusion=(confusion("float", true, one, labels), confusion(int8, true, other, labels)),
        reliability=tuple(reliabilities),
        coverage=coverage(scores, right),
        flips=tuple(pictured(int(index)) for index in flips[:GALLERY]),
        flips_in_all=len(flips),
        mistakes=tuple(pictured(int(index)) for index in mistakes[:GALLERY]),
        mistakes_in_all=len(mistakes),
    )


def summary(report: Report, model: ModelFigures) -> tuple[str, ...]:
    """Return how good a model is: its accuracy, on which images, its weakest classes, and what a device does if it is not sure."""
    measured, scores, *_ = parity_sections(report)
    return accuracy_line(report, model), *measured.lines, *scores.lines


AnswersByPhoto = Mapping[str, tuple[str, str]]
"""Maps a photo's hash, or a named dataset's name for it, to the true class and int8's answer."""


def run_answers(run: Run, predictions: Predictions | None, int8: str | None) -> AnswersByPhoto:
    """Return the answers to a run's test photos, or to all photos if it has folds; empty if it was not verified."""
    labels, data = run.info.data.labels, run.info.data
    if run.info.folds and (held := read_held_out(run)):
        names, true, answers = held.hashes.tolist(), held.classes, held.int8.argmax(axis=1)
    elif predictions is None or int8 is None or int8 not in predictions.answers:
        return {}
    else:
        listed = known_images(run).files.items()
        hashes = {file: digest for (split, _, digest), files in listed if split == "test" for file in files}
        names = [hashes.get(source, f"{data.name}: {source}") for source in predictions.sources]
        true, answers = predictions.true, predictions.answers[int8]
    return {name: (labels[one], labels[two]) for name, one, two in zip(names, true, answers, strict=True)}


def bundle_answers(bundle: Bundle) -> AnswersByPhoto:
    """Return the answers of a bundle's folds; empty if it was made without folds."""
    return {digest: (row["class"], row["int8"]) for digest, row in read_answers(bundle).items()}


def pairs(runs: Sequence[tuple[str, AnswersByPhoto]]) -> Iterator[Pair | str]:
    """Yield the first run paired with each other one on their common photos with the same true class, or why that is impossible."""
    (first, one), *others = runs or [("", {})]
    for name, other in others:
        both = [key for key in one if key in other and one[key][0] == other[key][0]]
        if both:
            rows = np.array([(one[key][0], one[key][1], other[key][1]) for key in both])
            numbers = np.unique(rows, return_inverse=True)[1].reshape(rows.shape)
            figures = paired_figures(first, name, numbers[:, 1], numbers[:, 2], numbers[:, 0])
            yield Pair(**vars(figures), mcnemar_p=mcnemar_exact(figures.lost, figures.gained))
            continue
        lacking = [run for run, answers in ((first, one), (name, other)) if not answers]
        why = f"there are no per-photo answers for {' and '.join(lacking)}" if lacking else "no photo tested both"
        yield (
            f"{first} and {name} cannot be compared: {why}, and their own photos may differ in how hard they are. "
            "To compare two bundles on the same photos: edgecnn compare OLD.edgecnn NEW.edgecnn --data DATA"
        )


def int8_name(report: Report) -> str | None:
    """Return the name of the int8 export whose answers the report shows: the one used for confidence, else the first."""
    names = [model.name for model in report.models if model.precision == "int8"]
    if report.confidence and report.confidence.model in names:
        return report.confidence.model
    return names[0] if names else None


def verdict(report: Report | None) -> str:
    if report is None:
        return "Not verified: it is not known whether the exports answer like the float model."
    name = int8_name(report) or report.models[-1].name
    return " ".join([gate_line(report), *(line for line in model_lines(report) if line.startswith(f"{name}: "))])


def common_figures(report: Report | None, answers: AnswerFigures) -> dict[str, Any]:
    """Return the common part of a run's and a bundle's report, from the parity report and answers, as arguments of `RunFigures`."""
    said: tuple[str, ...] = ()
    int8 = int8_name(report) if report else None
    if report:
        model = next(item for item in report.models if item.name == (int8 or report.models[-1].name))
        said = summary(report, model)
    return {
        **vars(answers),
        "summary": said,
        "verdict": verdict(report),
        "passed": report.passed if report else None,
        "warnings": tuple(warnings_of(report)) if report else (),
        "parity": report,
        "int8": int8,
    }


def run_figures(run: Run, predictions: Predictions | None) -> RunFigures:
    """Collect a run's figures from its files, without running a model. Raises RunError if the run or its parity report is unreadable."""
    labels = run.info.data.labels
    report = parity_report(run) if run.file(PARITY).exists() else None
    name = int8_name(report) if report else None
    missing: list[Missing] = []
    answers = NO_ANSWERS

    def lacks(part: str, why: str, command: str) -> None:
        missing.append(Missing(part=part, why=why, command=command))

    parts = "confusion, reliability, coverage and galleries"
    if report is None:
        every = "verdict, confusion, reliability, coverage, galleries, sizes and times"
        lacks(every, "the run was not verified", run.command("verify"))
    elif name is None:
        lacks(parts, "the run has no int8 export", f"{run.command('export')} --int8")
    elif predictions is None or not {"float", name} <= set(predictions.answers):
        lacks(parts, f"the run lacks answers to its test images ({PREDICTIONS})", run.command("verify"))
    else:
        temperature = report.confidence.temperature if report.confidence and report.confidence.model == name else None
        answers = answer_figures(predictions, name, temperature, labels)
    layers, stressed = run.stored(LAYERS, LayerErrors), best_report(run)
    if layers is None and not (run.frozen or run.finished):
        lacks("noise by layer", "it was not measured", run.command("layers"))
    if stressed is None and name is not None:
        lacks("stress", "it was not measured", run.command("stress"))
    if report and not report.boards:
        lacks("boards", "the exports were not run on a board", f"{run.command('verify')} --on rpi4")
    return RunFigures(
        name=run.recipe.name or run.name,
        kind="run",
        origin=run_origin(run),
        choice=run.stored(CHOICE, NetworkChoice),
        against=run.stored(AGAINST, Against),
        epochs=epochs(run),
        layers=layers,
        stress=stressed,
        missing=tuple(missing),
        **common_figures(report, answers),
    )


def bundle_figures(bundle: Bundle) -> RunFigures:
    """Collect a bundle's figures from its parity report, without answers to single images. Raises BundleError if it is unreadable."""
    manifest = bundle.manifest
    provenance = manifest.provenance
    report = None
    if PARITY in bundle.files:
        try:
            report = build(Report, json.loads(bundle.files[PARITY]), ValueError)
        except ValueError as error:
            raise BundleError(f"{bundle.path}: {PARITY} is not a parity report: {error}.") from None
    contract, sizes = manifest.input, provenance["data"]["split_sizes"]
    missing = Missing(
        part="confusion, reliability, coverage, learning curves, noise by layer, stress and galleries",
        why="a bundle contains only its parity report",
        command="edgecnn run recipe.toml, with the recipe below, then edgecnn report",
    )
    return RunFigures(
        name=manifest.name,
        kind="bundle",
        origin=Origin(
            network=str(provenance["recipe"]["network"]["name"]),
            parameters=None,
            input=f"{contract.height}x{contract.width}x{contract.channels}",
            labels=manifest.labels,
            data=str(provenance["data"]["title"]),
            fingerprint=str(provenance["data"]["fingerprint"]),
            training_images=sizes.get("train"),
            validation_images=sizes.get("validation"),
            seconds=None,
            imported=None,
            tuning=None,
            recipe=bundle.files.get(RECIPE, b"").decode("utf-8", "replace"),
        ),
        choice=None,
        against=read_against(bundle),
        epochs=(),
        layers=None,
        stress=None,
        missing=(missing,),
        **common_figures(report, NO_ANSWERS),
    )


def run_origin(run: Run) -> Origin:
    info = run.info
    data, shape = info.data, info.input
    return Origin(
        network=run.public_recipe.network.name,
        parameters=info.parameters,
        input=f"{shape.height}x{shape.width}x{shape.channels}",
        labels=data.labels,
        data=data.title,
        fingerprint=data.fingerprint,
        training_images=data.used.get("train"),
        validation_images=data.used.get("validation"),
        seconds=info.seconds,
        imported=info.imported.format if info.imported else None,
        tuning=tuning_line(info.tuning) if info.tuning else None,
        recipe=to_toml(run.public_recipe),
    )
