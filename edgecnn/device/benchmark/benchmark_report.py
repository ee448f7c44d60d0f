"""The output of a benchmark as JSON documents."""

import os
import platform
from typing import Any

from edgecnn.bundle.read import Bundle
from edgecnn.cpu import read_cpu
from edgecnn.device.benchmark.figures import ELIGIBLE, RULE, Sweep, winner
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.device.benchmark.sustained import Sustained
from edgecnn.device.system import System
from edgecnn.tables import to_json
from edgecnn.versions import library_versions

MOST_NAMES = 20


def document(bundle: Bundle, images: BenchImages, measured: Sweep, warmup: int) -> dict[str, Any]:
    best = winner(measured.rows)
    return {
        "schema": "edgecnn.benchmark/1",
        **_circumstances(bundle, images),
        "load_average": measured.load_average,
        "warmup": warmup,
        "configurations": [row.to_json() for row in measured.rows],
        "failed": [{**item._asdict(), "reason": reason} for item, reason in measured.failed.items()],
        "rule": f"{RULE}; {ELIGIBLE}",
        "winner": best.configuration._asdict() if best else None,
        "interrupted": measured.interrupted,
    }


def sustained_document(bundle: Bundle, images: BenchImages, about: str, done: Sustained) -> dict[str, Any]:
    """Return a sustained run of one configuration, which `about` describes, as one JSON document."""
    outcome = {**to_json(done), "drift": done.drift, "throttled": done.throttled}
    return {"schema": "edgecnn.sustained/1", **_circumstances(bundle, images), "about": about, **outcome}


def _circumstances(bundle: Bundle, images: BenchImages) -> dict[str, Any]:
    return {
        "bundle": {"path": str(bundle.path), "name": bundle.manifest.name, "sha256": bundle.sha256},
        "hardware": hardware(),
        "system": platform.platform(),
        "versions": library_versions(),
        "images": {"about": images.about, "count": len(images.items), "names": list(images.names[:MOST_NAMES])},
    }


def hardware() -> str:
    """Return this machine's name: its board or processor, and its number of CPUs."""
    return f"{System(packages={}).board or read_cpu().name or platform.machine()}, {os.cpu_count()} CPUs"
