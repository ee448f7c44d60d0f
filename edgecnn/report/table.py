"""The table of a parity report: one row a model."""

from collections.abc import Mapping, Sequence
from typing import Any

HEADINGS = ("model", "accuracy", "drop", "agreement", "bytes", "ms/image", "engine")


def parity_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a parity report's models as rows of text under HEADINGS.

    Drop (points) and agreement are against the float model, whose own stand as a dash.
    """
    against_float = {item["candidate"]: item for item in report["comparisons"] if item["kind"] == "quantization"}
    rows: list[tuple[str, ...]] = []
    for model in report["models"]:
        comparison = against_float.get(model["name"])
        rows.append(
            (
                model["name"],
                f"{model['accuracy']:.2%}",
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
        f"{item['largest_lsb']} LSB ({'passed' if item['passed'] else 'FAILED'}: {item['limit']})"
        for item in report["comparisons"]
        if item["kind"] == "conversion"
    ]


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under headings, the first and last column to the left, the others to the right."""
    table = [tuple(headings), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        last = len(row) - 1
        cells = (
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(table[0]), line(["-" * width for width in widths]), *map(line, table[1:])])


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under headings as a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
