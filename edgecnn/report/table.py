"""The tables and sentences of reports: models, comparisons, flipped images, the matrix, boards, the chosen network, and stress."""

from collections.abc import Sequence

from edgecnn.data.decoding import is_unbalanced
from edgecnn.evaluate.statistics import class_line
from edgecnn.labels import plural, printable, text_table
from edgecnn.run_info import Candidate, NetworkChoice, Tuning
from edgecnn.stress.corruptions import STRENGTHS
from edgecnn.stress.stress_report import Mean, Measured, Stressed, StressReport
from edgecnn.verify import parity_report

HEADINGS = (
    "model", "accuracy", "95 % interval", "calibration error", "drop", "agreement", "bytes", "ms/image", "engine"
)  # fmt: skip


def divided(data: parity_report.Data) -> str:
    """Return how a user's photos were divided, such as ", divided by photo"; "" for other images."""
    if data.divided_by == "group":
        return f", divided by group ({plural(data.groups or 0, 'group')}, {data.test_groups or 0:,} of them tested)"
    return ", photos like these, divided by photo" if data.divided_by else ""


def images_line(data: parity_report.Data) -> str:
    count = f"{data.test_images:,}"
    if data.split == "folds":
        return f"{data.title}, all {count} images, each answered by a model that was not trained on it{divided(data)}"
    if data.split == "all":
        return f"{data.title}, all {count} images"
    if data.images is None:
        return f"{data.title}, {count} test images{divided(data)}"
    whose = "its own test split" if data.own_test else "a test split, chosen by content; --split all uses all images"
    return f"{data.title}, {count} of {data.images:,} images ({whose})"


def tuning_line(tuning: Tuning) -> str:
    """Return the verdict between head and fine-tuned model as one line."""
    every = ", every class counting the same" if tuning.balanced else ""
    photos = (
        f"{tuning.head_accuracy:.1%}, fine-tuned {tuning.tuned_accuracy:.1%} of {tuning.n:,} validation photos{every}"
    )
    if not tuning.epochs:
        return f"head {tuning.head_accuracy:.1%} of {tuning.n:,} validation photos: head ships, fine-tuning cannot win"
    why = {"accuracy": "", "log loss": " by log loss", None: ", since the difference may be chance"}[tuning.decided_by]
    return f"head {photos}: {tuning.ships} ships{why}"


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
    return [f"{item.model} reads {formula(item)} ({item.name}), {item.text}" for item in report.input_ranges]


def formula(given: parity_report.ModelRange) -> str:
    text = f"{given.scale:.6g} * (pixel - 128 - {given.zero_point})"
    if given.mean is None or given.std is None:
        return text
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (given.mean, given.std))
    return f"({text} - [{mean}]) / [{std}]"


def against_float(report: parity_report.Report) -> dict[str, parity_report.Comparison]:
    """Return each candidate's comparison with the float model, or with the reference of two models, by name."""
    compared: dict[str, parity_report.Comparison] = {}
    for item in report.comparisons:
        if item.kind not in ("conversion", "seen"):
            compared.setdefault(item.candidate, item)  # a program's first; its second is against the int8 file
    return compared


def share(value: float | None) -> str:
    """Return a fraction as a percentage, or a dash for None."""
    return "-" if value is None else f"{value:.2%}"


def parity_rows(report: parity_report.Report) -> list[tuple[str, ...]]:
    """Return a parity report's models as rows of text under HEADINGS, with drop (points) and agreement from `against_float`."""
    compared = against_float(report)
    rows: list[tuple[str, ...]] = []
    for model in report.models:
        comparison = compared.get(model.name)
        interval, error = "{:.2%} to {:.2%}".format(*model.accuracy_interval), f"{model.calibration_error:.4f}"
        drop, agreement = (f"{comparison.drop:.2f}", f"{comparison.agreement:.2%}") if comparison else ("-", "-")
        costs = f"{model.size_bytes:,}", f"{model.ms_per_image:.3f}", model.engine
        rows.append((model.name, f"{model.accuracy:.2%}", interval, error, drop, agreement, *costs))
    return rows


def model_lines(report: parity_report.Report) -> list[str]:
    """Return a line for each model that the gate judges: what it costs in accuracy against its reference, in bytes and in time."""
    models = {item.name: item for item in report.models}
    lines = []
    for name, item in against_float(report).items():
        if item.kind != "alternative":
            low, high = item.drop_interval
            lines.append(
                f"{name}: {item.accuracy_candidate:.2%} right, {item.reference} {item.accuracy_reference:.2%}: drop {item.drop:.2f} points "
                f"(95 % interval {low:.2f} to {high:.2f}); {item.agreement:.2%} same answers; {models[name].size_bytes:,} bytes, "
                f"{models[name].ms_per_image:.2f} ms/image"
            )
    return lines


def taught_lines(report: parity_report.Report) -> list[str]:
    unseen = report.data.unseen
    return [] if unseen is None else [parity_report.taught_line(unseen, report.data.test_images)]


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


COMPARISON_HEADINGS = (
    "against the reference", "drop", "95 % interval", "McNemar p", "worst class", "confidence drift", "LSB mean, max", "gate"
)  # fmt: skip


def comparison_rows(report: parity_report.Report) -> list[tuple[str, ...]]:
    """Return the comparisons with the float model, or the reference of two, as rows under COMPARISON_HEADINGS; drops in points."""
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
                f"{item.drop:.2f}",
                "{:.2f} to {:.2f}".format(*item.drop_interval),
                f"{item.mcnemar_p:.3g}",
                f"{label} {worst:.2f}",
                f"{item.confidence_drift.mean:.4f}",
                "-" if item.largest_lsb is None else f"{item.mean_lsb:.2f}, {item.largest_lsb}",
                f"{verdict}{item.limit}",
            )
        )
    return rows


def score_lines(report: parity_report.Report) -> list[str]:
    """Return lines on the test results of the temperature, threshold and stranger limit chosen on validation images."""
    tested = report.confidence
    if tested is None:
        return []
    error = "no errors" if tested.error is None else f"{tested.error:.2%} errors"
    temperature = (
        f"{tested.calibration_error:.2%}; no temperature was fitted ({tested.not_fitted})"
        if tested.not_fitted
        else f"{tested.calibration_error_after:.2%}, {tested.calibration_error:.2%} without the temperature"
    )
    lines = [
        f"Scores on {images_of(report)} ({tested.model}): calibration error {temperature}; at the threshold of "
        f"{tested.threshold:.2f} it answers {tested.share_answered:.2%} with {error}."
    ]
    if tested.choice and report.int8 and report.int8.epoch is not None:
        lines.append(EPOCH_CHOSEN)
    return lines + stranger_lines(report)


def stranger_lines(report: parity_report.Report) -> list[str]:
    tested = report.strangers
    if tested is None:
        return []
    if tested.not_fitted:
        return [f"Strangers: none are detected, because no limit was chosen ({tested.not_fitted})."]
    state = "off without --strangers"
    if tested.decide:
        state = "on" if report.folds else "on, as the recipe requests"
    other = "The limit is cross-validated; results for other cameras and places may differ. " if report.folds else ""
    refuses, had = ("it refuses", "had") if tested.decide else ("it would refuse", "have")
    ends = tested.refused_interval
    interval = "; 95 % interval {:.2%} to {:.2%}".format(*ends) if ends else ""
    return [
        f"Strangers ({tested.model}): the decision is {state}. Its limit is set to refuse {tested.rate:.2%} of in-distribution images; "
        f"{refuses} {tested.refused:,} of {tested.n:,} {images_of(report)} ({tested.refused / tested.n:.2%}{interval}), "
        f"{tested.refused_wrong:,} of which {had} a wrong answer. {other}How many strangers it detects is not known: most of those that "
        "resemble the classes pass."
    ]


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


def matrix_table(rows: Sequence[parity_report.MatrixRow], width: int | None = None) -> str:
    """Lay out the matrix with `text_table`: each engine's accuracy, and its agreement and largest difference (LSB) with each other."""
    ran = [row for row in rows if row.accuracy is not None]
    headings = ("", "accuracy", *(f"({number})" for number in range(1, len(ran) + 1)), "engine")
    lines = []
    for number, row in enumerate(ran, 1):
        against = {cell.name: f"{cell.agreement:.2%} {cell.largest_lsb} LSB" for cell in row.against}
        lines.append((f"({number})", f"{row.accuracy:.2%}", *(against.get(other.name, "-") for other in ran), row.name))
    notes = [f"{row.name} did not run: {row.note}" for row in rows if row.accuracy is None]
    return "\n".join([text_table(headings, lines, width), *notes])


BOARD_HEADINGS = (
    "board", "images", "accuracy", "here", "agreement", "rows that differ", "largest difference", "self-test", "gate", "engine"
)  # fmt: skip


def board_rows(boards: Sequence[parity_report.BoardRow]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for item in boards:
        ran = item.largest_difference is not None
        python = item.versions["python"].partition("-")[0]
        rows.append(
            (
                f"{item.target} ({item.cpu})",
                f"{item.images:,}" + ("" if item.split == "test" else " golden"),
                *map(share, (item.accuracy, item.accuracy_here, item.agreement)),
                f"{item.rows_that_differ:,}" if ran else "-",
                f"{item.largest_difference:g} {item.unit}" if ran else "-",
                {True: "passed", False: "FAILED", None: "-"}[item.selftest],
                item.error or ("passed" if item.passed else "FAILED"),
                f"{item.engine}, Python {python}, against {item.against} here",
            )
        )
    return rows


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


CHOICE_HEADINGS = ("network", "input", "accuracy", "behind the best", "MACs", "int8 bytes (expected)", "ms here", "")


def choice_rows(choice: NetworkChoice) -> list[tuple[str, ...]]:
    """Return the candidates as rows of text under HEADINGS, best first."""
    return [_row(one, choice) for one in choice.candidates]


def _row(one: Candidate, choice: NetworkChoice) -> tuple[str, ...]:
    chosen = (one.network, one.height, one.width) == (choice.network, choice.height, choice.width)
    return (
        one.network,
        f"{one.width}x{one.height}",
        f"{one.accuracy:.1%}",
        f"{100 * one.behind:.1f} ± {100 * one.behind_error:.1f}" if one.behind or one.behind_error else "-",
        f"{one.macs:,}",
        f"{one.int8_bytes:,}",
        "-" if one.ms is None else f"{one.ms:.2f}",
        "chosen" if chosen else "" if one.fits else "over the budget",
    )


def judged_line(choice: NetworkChoice) -> str:
    limit = f", within {choice.budget}" if choice.budget else ""
    every = ", every class counting the same," if choice.balanced else ""
    return (
        f"{choice.network} at {choice.width}x{choice.height} was chosen for {choice.images:,} images{limit}: {choice.why}. "
        f"Frozen networks with a fitted last layer were compared{every} on images that did not fit it. It took {choice.seconds:,.0f} s."
    )


STRESS_HEADINGS = ("corruption", *map(str, STRENGTHS), "int8", "float", "agreement", "points lost")

ROBUST_KIN = (
    "Training mixed corruptions into its images (train.robust). None of them is among those measured here, but noise, blur, light and "
    "colour are related to them."
)


def stress_rows(report: StressReport) -> list[tuple[str, ...]]:
    """Return a report as rows of text under HEADINGS: int8 at each strength, then the means over the strengths."""
    clean, mean, none = report.clean, report.mean_int8.accuracy, ["-"] * len(STRENGTHS)
    float_clean = share(clean.float.accuracy if clean.float else None)
    float_mean = share(report.mean_float.accuracy if report.mean_float else None)
    lost = 100 * (clean.int8.accuracy - mean)
    return [
        ("none", *none, f"{clean.int8.accuracy:.2%}", float_clean, share(clean.agreement), "-"),
        *map(stressed_row, report.corruptions),
        ("mean", *none, f"{mean:.2%}", float_mean, "-", f"{lost:.2f}"),
    ]


def stressed_row(item: Stressed) -> tuple[str, ...]:
    by_strength = {entry.strength: f"{entry.int8.accuracy:.2%}" for entry in item.strengths}
    strengths = (by_strength.get(strength, "-") for strength in STRENGTHS)
    return item.corruption, *strengths, f"{item.int8:.2%}", share(item.float), share(item.agreement), f"{item.lost:.2f}"


def stress_images_line(report: StressReport) -> str:
    data = report.data
    count = f"{data.images:,}" if data.images == data.of else f"{data.images:,} of {data.of:,}"
    size = (
        f"at a shorter side of at most {report.largest_side} pixels, with the strengths for photos"
        if report.largest_side
        else "at their own size, with the strengths for small images"
    )
    uses = ""
    if data.split == "test":
        uses = f"; stress has measured this test split {plural(report.test_uses, 'time')}"
    return f"{data.title}, {count} {data.split} images, corrupted before the resize {size}, seed {report.seed}{uses}"


def mean_line(report: StressReport) -> str:
    int8, clean = with_interval(report.mean_int8), with_interval(report.clean.int8)
    text = f"mean corrupted accuracy of int8: {int8}, {clean} without corruption"
    if report.mean_float:
        text += f"; of float: {with_interval(report.mean_float)}"
    if report.at_least is not None:
        text += f". Pass line {report.at_least:.2%}: {'passed' if report.passed else 'FAILED'}"
    return text if report.complete else f"{text}. Some corruptions were left out"


def with_interval(figure: Mean | Measured) -> str:
    return f"{figure.accuracy:.2%} ({figure.interval[0]:.2%} to {figure.interval[1]:.2%})"


def stress_lines(report: StressReport) -> list[str]:
    """Return the lines below a report's table."""
    worst = report.costliest
    costs = f"{worst.corruption} costs the most accuracy: {worst.lost:.2f} points."
    return [mean_line(report), costs, *([ROBUST_KIN] if report.trained_robust else [])]
