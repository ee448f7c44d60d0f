"""An inspection as one self-contained HTML file with pictures, and as JSON."""

import base64
import contextlib
import io
from collections import Counter
from pathlib import Path

from edgecnn.data import Dataset
from edgecnn.data.decoding import picture
from edgecnn.errors import ImageError
from edgecnn.files import canonical_json, write_atomic
from edgecnn.inspect.inspection_report import SEVERITIES, Inspection
from edgecnn.inspect.look import scaled
from edgecnn.labels import plural
from edgecnn.report.page import templates
from edgecnn.tables import to_json

PAGE, FIGURES = "inspection.html", "inspection.json"

SIDE = 128  # longer side of a picture on the page

QUALITY = 75


SHOWN = {"lost": 100, "groups": 60, "copies": 6, "labels": 100, "odd": 40}
"""Maximum number of entries of each kind on the page; the JSON has all. All pictures together take about 2 MB."""


def verdict(report: Inspection) -> str:
    counts = Counter(item.severity for item in report.findings)
    parts = [plural(counts[name], name) for name in reversed(SEVERITIES) if counts[name]]
    return ", ".join(parts) or "Nothing was detected"


def pictures(report: Inspection, dataset: Dataset) -> dict[str, str]:
    """Return the pictures of the page by source, as data URLs; images that have changed since are left out."""
    copies = (copy for group in report.groups[: SHOWN["groups"]] for copy in group.copies[: SHOWN["copies"]])
    odd = (*report.far[: SHOWN["odd"]], *report.blurred[: SHOWN["odd"]])
    needed = {item.source for item in (*copies, *report.wrong_labels[: SHOWN["labels"]], *odd)}
    result = {}
    for item in (item for items in dataset.items.values() for item in items if item.source in needed):
        with contextlib.suppress(ImageError):
            buffer = io.BytesIO()
            scaled(picture(item, dataset.read, 3, (SIDE, SIDE)), SIDE).save(buffer, "JPEG", quality=QUALITY)
            result[item.source] = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return result


def render(report: Inspection, dataset: Dataset) -> str:
    """Return the page: HTML that makes no request and has no script."""
    template = templates("edgecnn.inspect").get_template("inspection.html.j2")
    worst = report.findings[0].severity if report.findings else ""
    shown = pictures(report, dataset)
    return template.render(report=report, verdict=verdict(report), worst=worst, pictures=shown, limits=SHOWN)


def write_inspection(report: Inspection, dataset: Dataset, folder: Path) -> Path:
    """Write the page and the JSON into a folder, and return the page's path. Raises OutputError if one cannot be written."""
    write_atomic(folder / PAGE, render(report, dataset).encode())
    write_atomic(folder / FIGURES, canonical_json(to_json(report)))
    return folder / PAGE
