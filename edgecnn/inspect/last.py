"""What training reports about its images: the findings of their last inspection, or else of their listing."""

import contextlib
import json
from collections import Counter

from edgecnn.data import Dataset
from edgecnn.files import cache_home
from edgecnn.inspect.cache import FILE, Cache
from edgecnn.inspect.findings import FEW_TRAINING
from edgecnn.inspect.inspection_report import SEVERITIES, Inspection
from edgecnn.labels import plural

KIND = "inspection-1"

NAMED = 2  # findings that the line names


def keep(report: Inspection) -> None:
    """Keep the findings of an inspection for `worst`, by the data's fingerprint."""
    found = [[item.severity, item.text] for item in report.findings]
    with contextlib.closing(Cache()) as cache:
        cache.put(KIND, [(report.fingerprint, json.dumps(found).encode())])


def worst(dataset: Dataset) -> str:
    """Return a line on the worst findings for these images, divided in the same way; "" if nothing is known to be wrong."""
    found = inspected(dataset)
    if found is None:
        return listed(dataset)
    bad = [text for severity, text in found if severity in SEVERITIES[1:]]
    if not bad:
        return ""
    more = f"; and {plural(len(bad) - NAMED, 'more finding')}" if len(bad) > NAMED else ""
    return f"{dataset.name}: inspected: {'; '.join(bad[:NAMED])}{more}. All of them: edgecnn inspect"


def inspected(dataset: Dataset) -> list[tuple[str, str]] | None:
    if not (cache_home() / FILE).is_file():
        return None
    with contextlib.closing(Cache()) as cache:
        known = cache.get(KIND, [dataset.fingerprint]).get(dataset.fingerprint)
    try:
        return None if known is None else [(str(severity), str(text)) for severity, text in json.loads(known)]
    except ValueError:
        return None


def listed(dataset: Dataset) -> str:
    """Return a line on what the listing of a user's own images shows; "" if it shows nothing bad."""
    if not dataset.own:
        return ""
    hashes = Counter(item.hash for items in dataset.items.values() for item in items)
    copies = sum(hashes.values()) - len(hashes)
    training = Counter(item.label for item in dataset.items["train"])
    few = [label for index, label in enumerate(dataset.labels) if training[index] < FEW_TRAINING]
    parts = []
    if copies:
        parts.append(f"{plural(copies, 'file is a copy', 'files are copies')} of another one")
    if few:
        parts.append(
            f"{plural(len(few), 'class has', 'classes have')} fewer than {FEW_TRAINING} training images, such as {few[0]}"
        )
    return f"{dataset.name}: {'; '.join(parts)}. To find more problems: edgecnn inspect" if parts else ""
