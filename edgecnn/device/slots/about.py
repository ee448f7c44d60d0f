"""A bundle's own description: its classes, its accuracy, and the part of an image that it sees."""

import contextlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from edgecnn.bundle.read import Bundle
from edgecnn.bundle.verdict import Verdict, verdict_of
from edgecnn.errors import EngineError
from edgecnn.region import WHOLE, Region, region_text
from edgecnn.runtime.default import choose_model

SHOWN = 5


class About(NamedTuple):
    """A bundle's own description. The accuracy and its 95 % interval are for the model that this device runs, on `images` test images."""

    labels: tuple[str, ...]
    accuracy: float | None
    images: int
    fit: str
    region: Region
    interval: tuple[float, float] | None = None
    verdict: Verdict = Verdict()


def about(bundle: Bundle) -> About:
    """Describe a bundle. Its parity report is treated as untrusted text."""
    manifest = bundle.manifest
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    images = 0
    with contextlib.suppress(EngineError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        digest = manifest.files[choose_model(manifest).model.file]
        report = json.loads(bundle.files["parity.json"])
        found = [model for model in report["models"] if model["sha256"] == digest]
        if found and 0 <= float(found[0]["accuracy"]) <= 1:
            accuracy, images = float(found[0]["accuracy"]), int(report["data"]["test_images"])
            low, high = map(float, found[0]["accuracy_interval"])
            interval = (low, high) if 0 <= low <= high <= 1 else None
    return About(
        manifest.labels, accuracy, images, manifest.input.fit, manifest.input.region, interval, verdict_of(bundle)
    )


def difference(new: About, old: About) -> str:
    """Return which classes were added and removed, such as "adds cat, and lacks dog"; "" if they are the same."""
    added = [name for name in new.labels if name not in old.labels]
    gone = [name for name in old.labels if name not in new.labels]
    return ", and ".join(f"{verb} {_some(names)}" for verb, names in (("adds", added), ("lacks", gone)) if names)


def in_words(about: About) -> dict[str, str]:
    accuracy = "unknown" if about.accuracy is None else f"{about.accuracy:.2%} of {about.images:,} test images"
    return {
        "classes": f"{len(about.labels)}: {_some(about.labels)}",
        "accuracy": accuracy,
        "fit": about.fit,
        "region": "the whole image" if about.region == WHOLE else region_text(about.region),
        **({"verdict": f"{about.verdict.word}: {about.verdict.why}"} if about.verdict.word else {}),
    }


def _some(names: Sequence[str]) -> str:
    shown, more = ", ".join(names[:SHOWN]), len(names) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
