"""Builds the server's starting data from the settings and the classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.bundle.validation import read_validation
from edgecnn.device.http.door import Door
from edgecnn.device.http.drift import shown_validation
from edgecnn.device.http.link import Opening
from edgecnn.device.keep.folder import read_kept
from edgecnn.device.slots.about import about
from edgecnn.device.stream.settings import Settings
from edgecnn.files import canonical_json, sha256, state_home
from edgecnn.region import WHOLE

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier


def make_opening(
    door: Door | None,
    settings: Settings,
    classifier: "Classifier",
    choice: Mapping[str, Any],
    *,
    camera: str | None = None,
    kept: Sequence[str] = (),
) -> Opening:
    """Return the server's starting data.

    `choice` holds the arguments of `Classifier.load` except the path. `camera` is the stream's address: "" for the first camera that
    works, None without a stream. `kept` lists the unsure frames that an earlier run kept in the settings' folder, oldest first.
    """
    folder, metrics_file = settings.reaction.keep, settings.metrics.file
    return Opening(
        port=door.address[1] if door else 0,
        token=door.token if door else None,
        hosts=door.hosts if door else (),
        camera=camera is not None,
        rotation=settings.camera.rotation,
        region=None if classifier.region == WHOLE else tuple(classifier.region),
        model=model_facts(classifier),
        classifier={"path": str(classifier.bundle.path), **choice},
        decision=vars(settings.decision),
        unsure=None if folder is None else str(folder.absolute()),
        kept=tuple(found for name in kept if folder and (found := described(folder, name))),
        drift=None if camera is None else drift_facts(classifier, settings, camera),
        metrics_file=None if metrics_file is None else str(metrics_file.absolute()),
    )


def drift_facts(classifier: "Classifier", settings: Settings, camera: str) -> dict[str, Any]:
    """Return the reference for a camera's counts, the file that stores them, and a key that changes with the model or the view."""
    strangers, decision = classifier.strangers is not None, settings.decision
    threshold = classifier.threshold if decision.threshold is None else decision.threshold
    made = [classifier.model_sha256, classifier.region, settings.camera.rotation, decision.fit, strangers]
    return {
        "key": sha256(canonical_json(made).encode()),
        "file": str(state_home() / "drift" / f"{sha256(camera.encode())[:16]}.json"),
        "strangers": strangers,
        "validation": shown_validation(read_validation(classifier.bundle.files), threshold, strangers),
    }


def described(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the facts about an unsure frame that was kept as `name` in a folder; None if it is gone."""
    kept = read_kept((folder / name).with_suffix(".json"))
    if kept is None:
        return None
    score = kept.scores[0].score if kept.scores else None
    return {"name": name, "ts": kept.ts, "guess": kept.guess, "reason": kept.reason, "score": score}


def model_facts(classifier: "Classifier") -> dict[str, Any]:
    """Return the model's entry in /v1/state, with its verified accuracy and Wilson's 95 % interval."""
    bundle, engine = classifier.bundle, classifier.model.engine
    known = about(bundle)
    files = {digest: name for name, digest in bundle.manifest.files.items()}
    entry = next(model for model in bundle.manifest.models if model.file == files[classifier.model_sha256])
    return {
        "name": classifier.name, "serial": bundle.manifest.serial, "sha256": bundle.sha256, "model_sha256": classifier.model_sha256,
        "labels": list(classifier.labels), "shape": [int(side) for side in engine.input.shape[1:]],
        "engine": f"{engine.name} {engine.version}", "precision": entry.precision,
        "accuracy": known.accuracy, "interval": known.interval, "images": known.images,
    }  # fmt: skip
