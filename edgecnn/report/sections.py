"""The parity report as sections: its sentences and tables. Each fact is worded here, once; terminal, card and page show the same."""

from collections.abc import Collection, Sequence

from edgecnn.calibrate.confidence import Choice, ChosenConfidence
from edgecnn.calibrate.input_range import line
from edgecnn.data.decoding import is_unbalanced
from edgecnn.evaluate.statistics import ScoreFigures, class_line
from edgecnn.labels import plural, printable
from edgecnn.report.table import FigureText, Section, Table, share
from edgecnn.run_info import RunInfo
from edgecnn.verify import parity_report

WIDE = 0.1
"""Width of an accuracy's 95 % interval, as a fraction, from which there are too few images."""


def parity_sections(report: parity_report.Report) -> list[Section]:
    """Return the whole report. The first two sections say how good the model is, the others how like the float model it is."""
    times = f"Times: {report.timing}; {report.machine}."
    against = f"Drop (percentage points) and agreement are against {report.comparisons[0].reference}."
    images = [images_line(report.data), *range_lines(report), *taught_lines(report), *fold_lines(report)]
    compared = [*int8_lines(report), *conversion_lines(report), *program_lines(report), *flip_lines(report)]
    return [
        Section("Measured", [*images, *class_lines(report)]),
        Section("Scores", score_lines(report)),
        Section("Models", [against, times], models_table(report)),
        Section("Comparisons", [*compared, gate_line(report)], comparisons_table(report)),
        *elsewhere_sections(report),
    ]


def elsewhere_sections(report: parity_report.Report) -> list[Section]:
    """Return the results on other engines and on boards, if there are any."""
    engines = [matrix_section(report.matrix)] if report.matrix else []
    return [*engines, boards_section(report.boards)] if report.boards else engines


def images_line(data: parity_report.Data) -> str:
    count = f"{data.test_images:,}"
    if data.split == "folds":
        return (
            f"{data.title}, all {count} images, each answered by a model that was not trained on it{how_divided(data)}"
        )
    if data.split == "all":
        return f"{data.title}, all {count} images"
    if data.images is None:
        return f"{data.title}, {count} test images{how_divided(data)}"
    whose = "its own test split" if data.own_test else "a test split, chosen by content; --split all uses all images"
    return f"{data.title}, {count} of {data.images:,} images ({whose})"


def how_divided(data: parity_report.Data) -> str:
    """Return how a user's photos were divided, and so what an accuracy holds for; "" for other images."""
    if data.divided_by == "photo":
        return ", photos like these, divided by photo: photos of other things, places or days may be harder"
    if data.divided_by is None or data.test_groups is None:
        return ""
    few = ", which are few, so intervals are wide" if data.test_groups < parity_report.FEW_GROUPS else ""
    return f", photos like these, divided by group: of {data.groups:,} groups, {data.test_groups:,} tested{few}. Intervals are over groups"


def accuracy_line(report: parity_report.Report, model: parity_report.ModelFigures) -> str:
    low, high = model.accuracy_interval
    count = report.data.test_images
    known = (
        f"{count:,} images are too few to tell {low:.0%} from {high:.0%}"
        if high - low >= WIDE
        else f"{count:,} images determine it to within {100 * max(model.accuracy - low, high - model.accuracy):.1f} points"
    )
    chance = report.chance
    return (
        f"{model.name} is right on {model.accuracy:.2%} of the {images_of(report)} (95 % interval {low:.2%} to {high:.2%}): "
        f"{known}. Always answering {chance.label} would be right on {chance.accuracy:.2%}."
    )


def images_of(report: parity_report.Report) -> str:
    return "held-out images" if report.data.split == "folds" else "test images"


def fold_lines(report: parity_report.Report) -> list[str]:
    """Describe how folds estimate the figures of a model trained on all images; empty for one with a test split."""
    if not report.folds:
        return []
    shares = ", ".join(f"{one.int8_accuracy:.1%}" for one in report.folds)
    networks = {f"{one.network} at {one.width}x{one.height}" for one in report.folds}
    chose = f" Their network: {', '.join(sorted(networks))}."
    return [
        f"The model that ships was trained on all {report.data.test_images:,} images. Its accuracies, drop and scores are estimated by "
        f"cross-validation: {len(report.folds)} models were each tested on a part of the images that they were not trained on (int8: "
        f"{shares}).{chose} The files that ship are compared on {report.seen_images:,} training images, by agreement and LSB only."
    ]


def class_lines(report: parity_report.Report, always: bool = True) -> list[str]:
    """Return a line on how much of each class is found; unless `always`, only if the classes are unbalanced."""
    shown = report.found and (always or is_unbalanced([one.images for one in report.found]))
    return [class_line(report.found, images_of(report))] if shown else []


def range_lines(report: parity_report.Report) -> list[str]:
    return [line(item.model, item) for item in report.input_ranges]


def against_float(report: parity_report.Report) -> dict[str, parity_report.Comparison]:
    """Return each candidate's comparison with the float model, or with the reference of two models, by name."""
    compared: dict[str, parity_report.Comparison] = {}
    for item in report.comparisons:
        if item.kind not in ("conversion", "seen"):
            compared.setdefault(item.candidate, item)  # a program's first; its second is against the int8 file
    return compared


def models_table(report: parity_report.Report) -> Table:
    """Return the models, each with its drop (points) and agreement from `against_float`."""
    compared = against_float(report)
    rows: list[tuple[str, ...]] = []
    for model in report.models:
        comparison = compared.get(model.name)
        drop, agreement = (
            (FigureText("{:.2f}", comparison.drop), share(comparison.agreement)) if comparison else ("-", "-")
        )
        rows.append(
            (
                model.name,
                share(model.accuracy),
                FigureText("{:.2%} to {:.2%}", *model.accuracy_interval),
                share(model.calibration_error),
                drop,
                agreement,
                FigureText("{:,}", model.size_bytes),
                FigureText("{:.3f}", model.ms_per_image),
                model.engine,
            )
        )
    headings = (
        "model", "accuracy", "95 % interval", "calibration error", "drop", "agreement", "bytes", "ms/image", "engine"
    )  # fmt: skip
    return Table(headings, rows)


def model_lines(report: parity_report.Report, only: Collection[str] | None = None) -> list[str]:
    """Return a line for each model that the gate judges, or only those of some precisions: its cost in accuracy, bytes and time."""
    models = {item.name: item for item in report.models if not only or item.precision in only}
    lines = []
    for name, item in against_float(report).items():
        if item.kind != "alternative" and name in models:
            low, high = item.drop_interval
            lines.append(
                f"{name}: {item.accuracy_candidate:.2%} right, {item.reference} {item.accuracy_reference:.2%}: drop {item.drop:.2f} points "
                f"(95 % interval {low:.2f} to {high:.2f}); {item.agreement:.2%} same answers; {models[name].size_bytes:,} bytes, "
                f"{models[name].ms_per_image:.2f} ms/image"
            )
    return lines


def taught_lines(report: parity_report.Report) -> list[str]:
    unseen = report.data.unseen
    return [] if unseen is None else [taught_line(unseen, report.data.test_images)]


def taught_line(unseen: bool | str | None, images: int) -> str:
    """Return a sentence on whether test images may have taught an imported model; `unseen`: its importer says that they did not."""
    if unseen:
        return f"By the importer's word, the {images:,} test images did not train the model (--unseen)."
    return (
        f"edgecnn cannot know which images trained an imported model: if the {images:,} test images did, it is less accurate on new ones "
        "than measured. To judge it on others: edgecnn import … --unseen FOLDER"
    )


def conversion_lines(report: parity_report.Report, only_failed: bool = False) -> list[str]:
    accepted = "beyond its limit, ACCEPTED by --accept-conversion"
    return [
        f"{item.candidate} against {item.reference}: {item.agreement:.2%} agreement, at most {item.largest_lsb} LSB "
        f"({accepted if item.accepted else 'passed' if item.passed else 'FAILED'}: {item.limit})"
        for item in report.comparisons
        if item.kind in ("conversion", "seen") and not (only_failed and item.passed)
    ]


def warning_lines(report: parity_report.Report) -> list[str]:
    return [f"WARNING: {warning}" for warning in warnings_of(report)]


def warnings_of(report: parity_report.Report) -> list[str]:
    """Return warnings that a reader must see: models at chance level, accepted conversions, a doubtful input range."""
    warnings = [parity_report.chance_warning(report)]
    for item in report.comparisons:
        if item.accepted:
            figures = " and ".join(parity_report.measured(item, figure) for figure in item.failed)
            warnings.append(f"the conversion of {item.candidate} was accepted: it {figures} (limit: {item.limit}).")
    warnings += [f"{item.model}: {item.warning}" for item in report.input_ranges if item.warning]
    return [warning for warning in (*warnings, *report.doubts) if warning]


def program_lines(report: parity_report.Report) -> list[str]:
    """Return a line for each program with exported files: its accuracy, and its agreement with edgecnn's own int8 path."""
    first = report.comparisons[0].reference
    return [
        f"{item.candidate}, with its own resize, is right on {item.accuracy_candidate:.2%} of {item.n:,} images; {item.reference}, with "
        f"edgecnn's, on {item.accuracy_reference:.2%}. Both give the same answer on {item.agreement:.2%}."
        for item in report.comparisons
        if item.kind == "program" and item.reference != first
    ]


METHODS = {
    "calibrated": "calibrated ranges without training",
    "qat": "quantization-aware training",
    "qat_nearest": "the same with every weight at its nearest code",
    "ptq": "post-training quantization",
    "ptq_nearest": "the same with every weight at its nearest code",
}


def int8_lines(report: parity_report.Report) -> list[str]:
    """Return lines on how and why a run's int8 models were made, and the gain; empty if the report does not record it."""
    choice = report.int8
    if choice is None:
        return []
    validation, method, rounded = choice.validation, choice.method, choice.rounding == "gptq"
    left_out = {"calibrated": not choice.epoch, "qat_nearest": not rounded, "ptq_nearest": not rounded}
    models = {name: None if left_out.get(name) else getattr(validation, name) for name in METHODS}
    accuracies = [
        f"{METHODS[name]} {model.accuracy:.2%} ({model.agreement:.2%} agreement with float)"
        for name, model in models.items()
        if model is not None
    ]
    known = [f"epoch {choice.epoch}"] if method == "qat" else []
    rounding = ["kernels rounded by GPTQ"] if rounded and (method == "qat" or validation.ptq_nearest) else []
    epoch = f" ({', '.join(known + rounding)})" if known or rounding else ""
    lines = [
        f"int8 was made by {METHODS[method]}{epoch}, {reason(choice)}. Accuracy on {validation.n:,} validation images: float "
        f"{'; '.join([f'{validation.float.accuracy:.2%}', *accuracies])}."
    ]
    bought = choice.qat_against_ptq
    if bought:
        low, high = bought.drop_interval
        lines.append(
            f"Compared with post-training quantization, quantization-aware training changed the accuracy on the test split by "
            f"{0.0 - bought.drop:+.2f} points (95 % interval {0.0 - high:+.2f} to {0.0 - low:+.2f}; "
            f"{plural(bought.gained, 'image')} gained, {bought.lost:,} lost; "
            f"one-sided exact McNemar p that it is worse: {bought.mcnemar_p_worse:.3g})."
        )
    return lines


def reason(choice: parity_report.Int8Choice) -> str:
    one, two = choice.validation.qat, choice.validation.ptq
    if choice.skipped:
        return (
            "which agrees with the float model on every validation image, with nearly the same scores; quantization-aware training was "
            "skipped"
        )
    if choice.validation.ptq_nearest:
        return "since some of its layers cannot be trained as int8"
    if choice.asked != "auto" or one is None or two is None:
        return "as the recipe requests"
    if choice.decided_by is None:
        return (
            "since the scores of post-training quantization do not diverge much less from the float model's on validation images "
            f"({two.divergence:.3g} against {one.divergence:.3g} nats)"
        )
    if choice.method == "ptq":
        one, two = two, one
    if choice.decided_by == "divergence":
        figures = f"diverge less from the float model's ({one.divergence:.3g} against {two.divergence:.3g} nats)"
        if (one.agreement, one.accuracy) == (two.agreement, two.accuracy):
            return f"which ties with the other method in agreement and accuracy on validation images, and whose scores {figures}"
        return f"whose scores on validation images {figures}"
    return {
        "agreement": "which agrees with the float model on more validation images",
        "accuracy": "which classifies more validation images correctly",
    }[choice.decided_by]


def comparisons_table(report: parity_report.Report) -> Table:
    """Return the comparisons with the float model, or the reference of two; drops in points."""
    at_chance = report.chance.not_better
    first = report.comparisons[0].reference
    rows: list[tuple[str, ...]] = []
    for item in report.comparisons:
        if item.kind in ("conversion", "seen"):
            continue
        verdict = "" if item.kind == "alternative" else "passed: " if item.passed else "FAILED: "
        if item.passed and item.candidate in at_chance:
            verdict = "AT CHANCE LEVEL: "
        worst, label = max(
            ((one.drop, one.label) for one in item.per_class if one.drop is not None), key=lambda pair: pair[0]
        )
        rows.append(
            (
                item.candidate + ("" if item.reference == first else f" (against {item.reference})"),
                FigureText("{:.2f}", item.drop),
                FigureText("{:.2f} to {:.2f}", *item.drop_interval),
                FigureText("{:.3g}", item.mcnemar_p),
                FigureText("{:,}", item.lost),
                FigureText("{:,}", item.gained),
                f"{label} {worst:.2f}",
                FigureText("{:.4f}", item.confidence_drift.mean),
                "-"
                if item.mean_lsb is None or item.largest_lsb is None
                else FigureText("{:.2f}, {}", item.mean_lsb, item.largest_lsb),
                f"{verdict}{item.limit}",
            )
        )
    headings = (
        "against the reference", "drop", "95 % interval", "McNemar p", "lost", "gained", "worst class", "confidence drift",
        "LSB mean, max", "gate",
    )  # fmt: skip
    return Table(headings, rows)


def gate_line(report: parity_report.Report) -> str:
    line = f"Gate: a drop of at most {report.max_drop:.2f} points; {'passed' if report.passed else 'FAILED'}."
    return " ".join([line, *not_excluded(report)])


def not_excluded(report: parity_report.Report) -> list[str]:
    """Return a sentence on the largest drop of the gated models that the images do not rule out, if there are any."""
    gated = [item for item in report.comparisons if item.kind not in ("conversion", "alternative", "seen")]
    if not gated:
        return []
    worst = max(gated, key=lambda item: item.drop_upper)
    upper = worst.drop_upper
    line = f"These {worst.n:,} images do not rule out a drop of up to {upper:.2f} points (one-sided 95 % upper bound, {worst.candidate})."
    if upper > report.max_drop:
        line += (
            " That is more than the gate allows: more test images would narrow it, and --confident fails such a result."
        )
    return [line]


def abstains_line(figures: ScoreFigures, choice: Choice | None, images: str) -> str:
    """Return when a model abstains, and how often it answers `images`, such as "test images", and errs; `choice` bounds the error."""
    if not figures.threshold:
        return "It never abstains (no --target-error)."
    error = "no errors" if figures.error is None else f"{figures.error:.2%} errors"
    bound = f", and with {choice.confidence:.0%} confidence at most {choice.bound:.2%}" if choice else ""
    return (
        f"Below a score of {figures.threshold:.2f} it abstains: it answers {figures.share_answered:.2%} of the {images} with {error}"
        f"{bound}."
    )


def calibration_line(figures: ScoreFigures, chosen: ChosenConfidence | parity_report.Confidence, images: str) -> str:
    """Return how far scores are from shares of right answers on `images`, with the chosen temperature and without."""
    error = (
        f"{figures.calibration_error:.2%}; no temperature was fitted ({chosen.not_fitted})"
        if chosen.not_fitted
        else f"{figures.calibration_error_after:.2%}, {figures.calibration_error:.2%} without the temperature of {chosen.temperature:.3f}"
    )
    return f"Scores on {figures.n:,} {images}: calibration error {error}."


def chosen_on(info: RunInfo) -> str:
    return "held-out images" if info.folds or info.head_ships else "validation images"


def score_lines(report: parity_report.Report) -> list[str]:
    """Return lines on the test results of the temperature, threshold and stranger limit chosen on validation images."""
    tested, images = report.confidence, images_of(report)
    if tested is None:
        return []
    lines = [calibration_line(tested, tested, f"{images} ({tested.model})"), abstains_line(tested, None, images)]
    if tested.choice and report.int8 and report.int8.epoch is not None:
        lines.append(EPOCH_CHOSEN)
    return [*lines, stranger_line(report)]


def stranger_line(report: parity_report.Report) -> str:
    tested = report.strangers
    if tested is None:
        return "Strangers: the device assigns every image to one of the classes; this model does not detect strangers."
    if tested.not_fitted:
        return f"Strangers: none are detected, because no limit was chosen ({tested.not_fitted})."
    state = "off without --strangers"
    if tested.decide:
        state = "on" if report.folds else "on, as the recipe requests"
    other = "The limit is cross-validated; results for other cameras and places may differ. " if report.folds else ""
    refuses, had = ("it refuses", "had") if tested.decide else ("it would refuse", "have")
    ends = tested.refused_interval
    interval = "; 95 % interval {:.2%} to {:.2%}".format(*ends) if ends else ""
    return (
        f"Strangers ({tested.model}): the decision is {state}. Its limit is set to refuse {tested.rate:.2%} of in-distribution images; "
        f"{refuses} {tested.refused:,} of {tested.n:,} {images_of(report)} ({tested.refused / tested.n:.2%}{interval}), "
        f"{tested.refused_wrong:,} of which {had} a wrong answer. {other}How many strangers it detects is not known: most of those that "
        "resemble the classes pass."
    )


EPOCH_CHOSEN = (
    "The threshold's bound ignores that the epoch was chosen on the same validation images. In the worst case of a simulation, "
    "the bound was broken for 0.3 % of the models with one epoch, 2.9 % with 20 and 7.0 % with 60; 95 % confidence allows 5 %."
)
"""Source of the figures: docs/decisions.md. 1,000 draws, uninformative scores, the larger result for 600 and 2,000 images."""


def flip_lines(report: parity_report.Report) -> list[str]:
    lines = []
    for item in report.comparisons:
        if item.kind not in ("conversion", "alternative", "seen") and item.flips:
            flips = (f"{one.source} (label {one.true}): {one.reference}, now {one.candidate}" for one in item.flips[:3])
            changed = f"{item.candidate} changes {len(item.flips):,} of {item.n:,} answers of {item.reference}"
            lines.append(f"{changed}: {'; '.join(map(printable, flips))}")
    return lines


def matrix_section(rows: Sequence[parity_report.MatrixRow]) -> Section:
    """Return each engine's accuracy, and its agreement and largest difference (LSB) with each other engine."""
    ran = [row for row in rows if row.accuracy is not None]
    headings = ("", "accuracy", *(f"({number})" for number in range(1, len(ran) + 1)), "engine")
    lines: list[tuple[str, ...]] = []
    for number, row in enumerate(ran, 1):
        against = {cell.name: f"{cell.agreement:.2%} {cell.largest_lsb} LSB" for cell in row.against}
        lines.append((f"({number})", share(row.accuracy), *(against.get(other.name, "-") for other in ran), row.name))
    notes = [f"{row.name} did not run: {row.note}" for row in rows if row.accuracy is None]
    return Section("Engines", notes, Table(headings, lines))


def boards_section(boards: Sequence[parity_report.BoardRow]) -> Section:
    rows: list[tuple[str, ...]] = []
    for item in boards:
        python = item.versions["python"].partition("-")[0]
        largest = "-" if item.largest_difference is None else FigureText(f"{{:g}} {item.unit}", item.largest_difference)
        differ = "-" if item.largest_difference is None else FigureText("{:,}", item.rows_that_differ or 0)
        rows.append(
            (
                f"{item.target} ({item.cpu})",
                FigureText("{:,}" if item.split == "test" else "{:,} golden", item.images),
                *map(share, (item.accuracy, item.accuracy_here, item.agreement)),
                differ,
                largest,
                {True: "passed", False: "FAILED", None: "-"}[item.selftest],
                item.error or ("passed" if item.passed else "FAILED"),
                f"{item.engine}, Python {python}, against {item.against} here",
            )
        )
    headings = (
        "board", "images", "accuracy", "here", "agreement", "rows that differ", "largest difference", "self-test", "gate", "engine"
    )  # fmt: skip
    line = (
        "The runtime and packages that a board would install, on its processor, emulated by QEMU. Accuracy, agreement and "
        "differences are relative to this machine, on a sample of the test split or the golden images."
    )
    return Section("On emulated boards", [line], Table(headings, rows))
