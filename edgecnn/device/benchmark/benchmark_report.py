"""The output of a benchmark: JSON documents, and the winning setting."""

import datetime
import platform
from typing import Any

from edgecnn.bundle.read import Bundle
from edgecnn.device.benchmark.figures import ELIGIBLE, RULE, Sweep, winner
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.device.benchmark.sustained import Sustained
from edgecnn.errors import ParityError
from edgecnn.runtime.tuned import Tuned, hardware
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


def tuned_winner(measured: Sweep) -> Tuned:
    """Return the winner as a setting to keep; ParityError if no model that ran passed the gate."""
    best = winner(measured.rows)
    if best is None:
        raise ParityError(
            "nothing was tuned: no model that runs here passed both the bundle's gate and its golden vectors. "
            "Verify the run and bundle it again: edgecnn verify && edgecnn bundle"
        )
    item, infer = best.configuration, best.parts["infer"]
    return Tuned(
        engine=item.engine,
        engine_version=best.probed.version,
        provider=item.provider,
        precision=item.precision,
        threads=item.threads,
        hardware=hardware(),
        date=datetime.date.today().isoformat(),
        n=infer.n,
        p50_ms=infer.p50_ms,
        p90_ms=infer.p90_ms,
    )
