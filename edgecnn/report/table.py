"""The tables of a parity report: models, comparisons, flipped images, the matrix and the boards."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from edgecnn.labels import printable
from edgecnn.verify.gate import chance_warning, measured

HEADINGS = (
    "model", "accuracy", "95 % interval", "calibration error", "drop", "agreement", "bytes", "ms/image", "engine"
)  # fmt: skip


def images_line(data: Mapping[str, Any]) -> str:
    """Return in words which images were compared, and of how many."""
    count = f"{data['test_images']:,}"
    if data["split"] == "all":
        return f"{data['title']}, all {count} images"
    if "images" not in data:
        return f"{data['title']}, {count} test images"
    whose = "its own test split" if data["own_test"] else "a test split, divided off by content; --split all takes all"
    return f"{data['title']}, {count} of {data['images']:,} images ({whose})"


def range_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each of two models on the input range it was given; none for a run."""
    return [
        f"{item['model']} reads {item['scale']:.6g} * (pixel - 128 - {item['zero_point']}) ({item['name']}), {item['text']}"
        for item in report.get("input_ranges", ())
    ]


def parity_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a parity report's models as rows of text under HEADINGS.

    Drop (points) and agreement are against the float model, or the reference of two models, whose own stand as a dash.
    """
    against_float = {item["candidate"]: item for item in report["comparisons"] if item["kind"] != "conversion"}
    rows: list[tuple[str, ...]] = []
    for model in report["models"]:
        comparison = against_float.get(model["name"])
        rows.append(
            (
                model["name"],
                f"{model['accuracy']:.2%}",
                "{:.2%} to {:.2%}".format(*model["accuracy_interval"]),
                f"{model['calibration_error']:.4f}",
                f"{comparison['drop']:.2f}" if comparison else "-",
                f"{comparison['agreement']:.2%}" if comparison else "-",
                f"{model['size_bytes']:,}",
                f"{model['ms_per_image']:.3f}",
                model["engine"],
            )
        )
    return rows


def conversion_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each int8 export on how it differs from the fake-quantized model."""
    return [
        f"{item['candidate']} against {item['reference']}: {item['agreement']:.2%} agreement, at most "
        f"{item['largest_lsb']} LSB ({conversion_verdict(item)}: {item['limit']})"
        for item in report["comparisons"]
        if item["kind"] == "conversion"
    ]


def conversion_verdict(comparison: Mapping[str, Any]) -> str:
    """Return what the gate says of a comparison of kind "conversion", in words."""
    if comparison.get("accepted"):
        return "beyond its limit, ACCEPTED by --accept-conversion"
    return "passed" if comparison["passed"] else "FAILED"


def warning_lines(report: Mapping[str, Any]) -> list[str]:
    """Return what must not be missed in a report: models at chance level, conversions that were accepted, a doubtful input range."""
    warnings = [chance_warning(report)]
    for item in report["comparisons"]:
        if item.get("accepted"):
            found = " and ".join(measured(item, figure) for figure in item["failed"])
            warnings.append(f"the conversion of {item['candidate']} was accepted: it {found} (limit: {item['limit']}).")
    for item in report.get("input_ranges", ()):
        if item["warning"]:
            warnings.append(f"{item['model']}: {item['warning']}")
    return [f"WARNING: {warning}" for warning in warnings if warning]


METHODS = {
    "calibrated": "with ranges calibrated and no weight trained",
    "qat": "quantization-aware training",
    "qat_nearest": "with every weight at its nearest code",
    "ptq": "post-training quantization",
}


def int8_lines(report: Mapping[str, Any]) -> list[str]:
    """Return lines on how a run's int8 models were made, why, and what that bought; none where the report does not say."""
    chosen = report.get("int8")
    if chosen is None:
        return []
    validation, method = chosen["validation"], chosen["method"]
    rounded = chosen.get("rounding") == "gptq"
    named = {
        "calibrated": validation.get("calibrated") if chosen["epoch"] else None,
        "qat": validation["qat"],
        "qat_nearest": validation["qat_nearest"] if rounded else None,
        "ptq": validation["ptq"],
    }
    measured = [
        f"{METHODS[name]} {found['accuracy']:.2%}, the float model's answer to {found['agreement']:.2%}"
        for name, found in named.items()
        if found is not None
    ]
    epoch = f" (epoch {chosen['epoch']}{', kernels rounded by GPTQ' if rounded else ''})" if method == "qat" else ""
    compared = chosen["asked"] == "auto" and None not in (validation["qat"], validation["ptq"])
    why = "as the better on validation" if compared else "as the recipe says"
    lines = [
        f"int8 by {METHODS[method]}{epoch}, {why}. Of {validation['n']:,} validation images right: float "
        f"{'; '.join([format(validation['float']['accuracy'], '.2%'), *measured])}."
    ]
    found = chosen["qat_against_ptq"]
    if found:
        low, high = found["drop_interval"]
        lines.append(
            f"Over post-training quantization, quantization-aware training bought {0.0 - found['drop']:+.2f} points on the test split "
            f"(95 % interval {0.0 - high:+.2f} to {0.0 - low:+.2f}; {found['gained']} images gained, {found['lost']} lost; one-sided exact "
            f"McNemar p that it is worse: {found['mcnemar_p_worse']:.3g})."
        )
    return lines


COMPARISON_HEADINGS = (
    "against the reference", "drop", "95 % interval", "McNemar p", "worst class", "confidence drift", "LSB mean, max", "gate"
)  # fmt: skip


def comparison_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the comparisons with the float model, or the reference of two, as rows of text under COMPARISON_HEADINGS.

    Drops are in points.
    """
    at_chance = report.get("chance", {}).get("not_better", ())
    rows: list[tuple[str, ...]] = []
    for item in report["comparisons"]:
        if item["kind"] == "conversion":
            continue
        low, high = item["drop_interval"]
        verdict = "" if item["kind"] == "beside" else "passed: " if item["passed"] else "FAILED: "
        if item["passed"] and item["candidate"] in at_chance:
            verdict = "AT CHANCE LEVEL: "
        worst = max((one for one in item["per_class"] if one["drop"] is not None), key=lambda one: one["drop"])
        rows.append(
            (
                item["candidate"],
                f"{item['drop']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{item['mcnemar_p']:.3g}",
                f"{worst['label']} {worst['drop']:.2f}",
                f"{item['confidence_drift']['mean']:.4f}",
                "-" if item["largest_lsb"] is None else f"{item['mean_lsb']:.2f}, {item['largest_lsb']}",
                f"{verdict}{item['limit']}",
            )
        )
    return rows


def score_lines(report: Mapping[str, Any]) -> list[str]:
    """Return lines on what the temperature and threshold, chosen on validation images, are worth on the test split."""
    tested = report["confidence"]
    if not tested:
        return []
    error = "no image" if tested["error"] is None else f"{tested['error']:.2%} errors"
    why = tested.get("not_fitted")
    temperature = (
        f"{tested['calibration_error']:.2%}; no temperature was fitted ({why})"
        if why
        else f"{tested['calibration_error_after']:.2%}, {tested['calibration_error']:.2%} without the temperature"
    )
    lines = [
        f"Scores on the test split ({tested['model']}): calibration error {temperature}; at the threshold of "
        f"{tested['threshold']:.2f} {tested['share_answered']:.2%} answered with {error}."
    ]
    if tested.get("choice") and (report.get("int8") or {}).get("epoch") is not None:
        lines.append(EPOCH_CHOSEN)
    return lines


EPOCH_CHOSEN = (
    "The threshold's bound does not count that the epoch was chosen on the same validation images. In the worst case of a simulation "
    "the promise was false for 0.3 % of the models with one epoch, 2.9 % with 20 and 7.0 % with 60; 95 % confidence allows 5 %."
)
"""Source of the figures: `tools/bench/small_validation.py`, 1,000 draws, scores that say nothing, the larger of 600 and 2,000 images."""


def flip_lines(report: Mapping[str, Any], most: int = 3) -> list[str]:
    """Return, for each gated comparison with flipped images, how many and the first `most`."""
    lines = []
    for item in report["comparisons"]:
        flips = item["flips"]
        if item["kind"] not in ("conversion", "beside") and flips:
            shown = "; ".join(
                printable(f"{flip['source']} (a {flip['true']}): {flip['reference']}, now {flip['candidate']}")
                for flip in flips[:most]
            )
            lines.append(f"{len(flips):,} answers of {item['reference']} are others in {item['candidate']}: {shown}")
    return lines


def matrix_table(report: Mapping[str, Any], width: int | None = None) -> str:
    """Lay out the matrix as `text_table`: each engine's accuracy, and agreement and largest difference (LSB) against each other."""
    ran = [item for item in report["matrix"] if item["accuracy"] is not None]
    headings = ("", "accuracy", *(f"({number})" for number in range(1, len(ran) + 1)), "engine")
    rows = []
    for number, item in enumerate(ran, 1):
        against = {other["name"]: other for other in item["against"]}
        cells = [
            f"{against[other['name']]['agreement']:.2%} {against[other['name']]['largest_lsb']} LSB"
            if other["name"] in against
            else "-"
            for other in ran
        ]
        rows.append((f"({number})", f"{item['accuracy']:.2%}", *cells, item["name"]))
    notes = [f"{item['name']} did not run: {item['note']}" for item in report["matrix"] if item["accuracy"] is None]
    return "\n".join([text_table(headings, rows, width), *notes])


BOARD_HEADINGS = (
    "board", "images", "accuracy", "here", "agreement", "rows that differ", "largest difference", "self-test", "gate", "engine"
)  # fmt: skip


def board_rows(boards: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return emulated boards as rows of text under BOARD_HEADINGS; what is not known stands as a dash."""
    rows: list[tuple[str, ...]] = []
    for item in boards:
        share = {
            key: "-" if item[key] is None else f"{item[key]:.2%}" for key in ("accuracy", "accuracy_here", "agreement")
        }
        ran = item["largest_difference"] is not None
        rows.append(
            (
                f"{item['target']} ({item['cpu']})",
                f"{item['images']:,}" + ("" if item["split"] == "test" else " golden"),
                share["accuracy"],
                share["accuracy_here"],
                share["agreement"],
                f"{item['rows_that_differ']:,}" if ran else "-",
                f"{item['largest_difference']:g} {item['unit']}" if ran else "-",
                {True: "passed", False: "FAILED", None: "-"}[item["selftest"]],
                item["error"] or ("passed" if item["passed"] else "FAILED"),
                f"{item['engine']}, Python {item['versions']['python'].partition('-')[0]}, against {item['against']} here",
            )
        )
    return rows


NARROWEST = 20
"""Characters that a cell which is folded takes at least."""


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lay out rows under headings, the first and last column to the left, the others to the right.

    Where they take more than `width` characters, columns follow in further tables below, each behind the first column, and a cell that
    is too wide by itself is folded.
    """
    table = [tuple(map(printable, row)) for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    last = len(headings) - 1
    if width is not None:
        room = max(NARROWEST, width - widths[0] - 2)
        widths = [widths[0], *(min(size, room) for size in widths[1:])]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(headings)):
        taken = sum(widths[shown] + 2 for shown in blocks[-1])
        if width is not None and len(blocks[-1]) > 1 and taken + widths[column] > width:
            blocks.append([0])
        blocks[-1].append(column)

    def lines(row: Sequence[str], block: Sequence[int]) -> list[str]:
        cells = [
            [row[column]] if len(row[column]) <= widths[column] else textwrap.wrap(row[column], widths[column])
            for column in block
        ]
        return [
            "  ".join(
                part.ljust(widths[column]) if column in (0, last) else part.rjust(widths[column])
                for column, part in zip(block, parts, strict=True)
            ).rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]

    rule = ["-" * size for size in widths]
    return "\n\n".join(
        "\n".join(line for row in (table[0], rule, *table[1:]) for line in lines(row, block)) for block in blocks
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under headings as a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
