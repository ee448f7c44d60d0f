"""An inspection as one HTML file with pictures that needs nothing else, and as JSON."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgecnn.data import Dataset
from edgecnn.errors import ImageError
from edgecnn.files import canonical_json, write_atomic
from edgecnn.inspect.inspection_report import Inspection
from edgecnn.inspect.look import decoded, scaled
from edgecnn.report.page import templates
from edgecnn.tables import to_json

PAGE, FIGURES = "inspection.html", "inspection.json"

SIDE = 128
"""Longer side of a picture on the page."""

QUALITY = 75


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How many of each the page shows; the JSON has all. All pictures together take about 2 MB."""

    lost: int = 100
    groups: int = 60
    copies: int = 6
    labels: int = 100
    odd: int = 40


def verdict(report: Inspection) -> str:
    """Return the findings in a sentence: how many of which severity."""
    counts = [
        (sum(item.severity == severity for item in report.findings), severity)
        for severity in ("error", "warning", "note")
    ]
    parts = [f"{count} {severity}{'s' if count > 1 else ''}" for count, severity in counts if count]
    return ", ".join(parts) if parts else "Nothing was detected"


def shown_sources(report: Inspection, limits: Shown) -> Iterator[str]:
    """Yield the sources of the pictures on the page."""
    for group in report.groups[: limits.groups]:
        yield from (copy.source for copy in group.copies[: limits.copies])
    yield from (item.source for item in report.wrong_labels[: limits.labels])
    for odd in (report.far, report.blurred):
        yield from (item.source for item in odd[: limits.odd])


def pictures(report: Inspection, dataset: Dataset, limits: Shown) -> dict[str, str]:
    """Return the pictures of the page by source, as data addresses; one that has changed since is left out."""
    needed = set(shown_sources(report, limits))
    result = {}
    for items in dataset.items.values():
        for item in items:
            if item.source in needed:
                try:
                    image = decoded(item, dataset.read, (SIDE, SIDE))
                except ImageError:
                    continue
                result[item.source] = address(image)
    return result


def address(image: Image.Image) -> str:
    """Return a picture, reduced to SIDE, as an address that holds it."""
    buffer = io.BytesIO()
    scaled(image, SIDE).save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def render(report: Inspection, dataset: Dataset, limits: Shown | None = None) -> str:
    """Return the page: HTML that makes no request and has no script."""
    chosen = limits or Shown()
    return (
        templates("edgecnn.inspect")
        .get_template("inspection.html.j2")
        .render(
            report=report,
            verdict=verdict(report),
            worst=report.findings[0].severity if report.findings else "",
            pictures=pictures(report, dataset, chosen),
            limits=chosen,
        )
    )


def write_inspection(report: Inspection, dataset: Dataset, folder: Path) -> Path:
    """Write the page and the JSON into a folder, and return the page's path.

    Raises:
        OutputError: if one cannot be written.
    """
    write_atomic(folder / PAGE, render(report, dataset).encode())
    write_atomic(folder / FIGURES, canonical_json(to_json(report)))
    return folder / PAGE
