"""The stage that verifies a run whose model learnt from all images: accuracy by its folds, and its files on images that they saw.

Accuracy, drop and scores are the folds' estimate: each image was answered by a model that never saw it. The files that ship are compared
with their own float model by agreement and LSB only, on their training images, so no accuracy is claimed for them.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from edgecnn.calibrate.confidence import ChosenStrangers, cross_fitted_scores, cross_fitted_strangers
from edgecnn.data import Dataset, Split
from edgecnn.data.dataset import require_split
from edgecnn.data.decoding import some
from edgecnn.emulate.on_boards import OnBoards, run_on_boards
from edgecnn.evaluate.answers import Answers, Progress
from edgecnn.evaluate.held_out import HeldOut, require_held_out
from edgecnn.evaluate.recall import found_by_class
from edgecnn.evaluate.statistics import WORTH, Interval, folds_interval, grouped_interval, wilson
from edgecnn.runs import PARITY, Run, write_json
from edgecnn.runtime.decision import softmax
from edgecnn.stages.choose import Choosing
from edgecnn.stages.exported import answered, existing_exports
from edgecnn.verify.gate import Gate
from edgecnn.verify.other_programs import check_programs, file_answers
from edgecnn.verify.parity import Basis, compared, data_of, groups_of, judged, references
from edgecnn.verify.parity_report import Comparison, Confidence, Report, StrangerFigures
from edgecnn.verify.predictions import write_predictions

SEEN = 1_000  # maximum number of training images to compare the files that ship on, the same number per class


def verify_by_folds(
    run: Run,
    dataset: Dataset,
    gate: Gate,
    target_error: float | None = None,
    boards: OnBoards | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Write a run's `parity.json` as `edgecnn.stages.verify.verify` does; arguments and errors as there."""
    programs = check_programs(run)
    exports, held = existing_exports(run), require_held_out(run)
    choosing = Choosing(run, dataset, exports[0], progress)
    confidence = choosing.confidence(target_error)
    strangers = choosing.strangers(confidence.temperature)
    choosing.scores(confidence, strangers)

    everything = load_seen(run, dataset, progress)
    seen = some(everything, SEEN, run.recipe.seed)
    float_, *fakes = references(run, seen, progress)
    candidates, _, _ = answered(run, exports, [], seen, progress)

    labels = run.info.data.labels
    models = [by_folds(item, held) for item in (float_, *fakes, *candidates)]
    tested = Split(images=np.empty(0), classes=held.classes, sources=tuple(held.sources.tolist()))
    estimated = partial(compared, split=tested, labels=labels, gate=gate)
    int8 = next((item for item in models if item.precision == "int8"), None)
    comparisons = [estimated("quantization", models[0], int8)] if int8 else []
    hold = partial(compared, split=seen, labels=labels, gate=gate)
    comparisons += own_parity(float_, fakes, candidates, hold)
    # to measure the cost of a program's own resize would take test images
    comparisons += [
        hold("conversion", candidates[0], file_answers(run, one, seen.images, progress)) for one in programs
    ]
    data = data_of(run, "folds", len(held.classes), dataset.hashes["train"])
    rows = run_on_boards(run, exports, seen, boards, progress) if boards else ()
    shipped = next(item for item in models if item.name == candidates[0].name)
    scores = cross_fitted_scores(shipped.values, held.classes, held.fold, confidence.threshold, target_error)
    made = {name: getattr(confidence, name) for name in ("temperature", "not_fitted", "choice")}
    report = judged(run.name, data, gate, models, comparisons, Basis(tested, labels))
    groups = groups_of(run, held.hashes.tolist())
    report = replace(
        report,
        models=tuple(
            replace(figures, accuracy_interval=of_folds(item.values.argmax(axis=1) == held.classes, groups))
            for figures, item in zip(report.models, models, strict=True)
        ),
        passed=report.passed and all(row.passed for row in rows),
        boards=tuple(replace(row, accuracy=None, accuracy_here=None) for row in rows),
        folds=run.info.folds,
        seen_images=len(seen.classes),
        found=found_by_class(shipped.values.argmax(axis=1), held.classes, labels),
        confidence=Confidence(**vars(scores), **made, model=shipped.name),
        strangers=refused_strangers(run, held, strangers, shipped.name) if strangers else None,
    )
    shown = [item for item in models if item in (models[0], int8, shipped)]
    pictured = replace(tested, images=ordered(everything, held))
    write_predictions(run, pictured, shown, int8, (shipped, confidence.temperature))
    write_json(run.file(PARITY), report)
    return report


def of_folds(right: np.ndarray, groups: Sequence[str] | None = None) -> Interval:
    """Return the interval of a shipped model's accuracy on photos that it did not see, from the folds' `right` answers, bool (n,)."""
    return grouped_interval(right, groups, WORTH) if groups else folds_interval(int(right.sum()), len(right))


def load_seen(run: Run, dataset: Dataset, progress: Progress) -> Split:
    require_split(run, dataset, "train")
    return dataset.load(("train",), **vars(run.info.input), stage="verify", progress=progress)["train"]


def ordered(split: Split, held: HeldOut) -> np.ndarray:
    """Return the pixels of the held-out images, in their order."""
    rows = {source: row for row, source in enumerate(split.sources)}
    pixels: np.ndarray = split.images[[rows[source] for source in held.sources.tolist()]]
    return pixels


def by_folds(own: Answers, held: HeldOut) -> Answers:
    """Return a shipped model with the folds' answers as its own: int8's if it answers in int8, else the float model's."""
    int8 = own.precision.startswith(("int8", "fake"))
    return replace(own, values=held.int8 if int8 else held.float, unit="logit", codes=None)


def own_parity(float_: Answers, fakes: Sequence[Answers], candidates: Sequence[Answers], hold) -> list[Comparison]:
    """Compare the files that ship with the float model, and int8 ones with the fake-quantized model, on their training images."""
    comparisons = []
    for candidate in candidates:
        comparisons.append(hold("seen", float_, candidate))
        if candidate.precision.startswith("int8"):
            comparisons += [hold("conversion", fake, candidate) for fake in fakes]
    return comparisons


def refused_strangers(run: Run, held: HeldOut, chosen: ChosenStrangers, model: str) -> StrangerFigures:
    """Return the decision on each image, with the limit that the other folds set."""
    scores = softmax(held.int8 / np.float32(chosen.temperature)).max(axis=1)
    found = cross_fitted_strangers(scores, held.similarity, held.fold, chosen.rate)
    refused = int(found.images.sum())
    made = {key: getattr(chosen, key) for key in ("rate", "not_fitted", "known_images", "validation_images")}
    return StrangerFigures(
        **made,
        model=model,
        n=len(held.classes),
        refused=refused,
        refused_wrong=int(np.sum(found.images & (held.int8.argmax(axis=1) != held.classes))),
        refused_interval=wilson(refused, len(held.classes)) if found.limited else None,
        decide=bool(run.recipe.stranger.decide),
    )
