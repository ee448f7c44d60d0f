"""What the server is given when it starts, made of the settings and of the classifier."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgecnn.device.http.door import Door
from edgecnn.device.http.link import Opening
from edgecnn.device.slots.about import about
from edgecnn.device.stream.settings import Settings
from edgecnn.region import WHOLE

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier


def make_opening(
    door: Door, settings: Settings, classifier: "Classifier", choice: Mapping[str, Any], *, camera: bool
) -> Opening:
    """Put together what the server needs; `choice` has the arguments of `Classifier.load`, but its path."""
    kept = settings.reaction.save_uncertain
    return Opening(
        port=door.address[1],
        token=door.token,
        hosts=door.hosts,
        camera=camera,
        rotation=settings.camera.rotation,
        region=None if classifier.region == WHOLE else tuple(classifier.region),
        model=model_facts(classifier),
        classifier={"path": str(classifier.bundle.path), **choice},
        decision=vars(settings.decision),
        unsure=None if kept is None else str(kept.absolute()),
    )


def model_facts(classifier: "Classifier") -> dict[str, Any]:
    """Return what /v1/state says of the model: its accuracy is the verified one, with Wilson's 95 % interval."""
    bundle, engine = classifier.bundle, classifier.model.engine
    known = about(bundle)
    files = {digest: name for name, digest in bundle.manifest.files.items()}
    entry = next(model for model in bundle.manifest.models if model.file == files[classifier.model_sha256])
    return {
        "name": classifier.name, "serial": bundle.manifest.serial, "sha256": bundle.sha256, "model_sha256": classifier.model_sha256,
        "labels": list(classifier.labels), "engine": f"{engine.name} {engine.version}", "precision": entry.precision,
        "accuracy": known.accuracy, "interval": known.interval, "images": known.images,
    }  # fmt: skip
