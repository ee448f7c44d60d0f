"""What is published: topics, payloads and the names of states, and Home Assistant's device discovery.

The discovery is one retained message that describes a device and its entities.

Source: the integration's page on MQTT discovery, and the schemas of Home Assistant 2026.2, which a test checks it against.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgecnn import __version__
from edgecnn.device.stream.events import rfc3339
from edgecnn.device.stream.settings import Mqtt
from edgecnn.labels import ABSTAIN, STRANGER
from edgecnn.runtime.decision import Score

ONLINE, OFFLINE = "online", "offline"
NO_VALUE = "None"  # the payload for no state or score, which Home Assistant shows as unknown

RESERVED = ("none", "unknown", "unavailable")  # states with a special meaning in Home Assistant, in upper or lower case

MOST_CLASSES = 5
"""Maximum number of classes in the attributes: Home Assistant does not store attributes of more than 16 kB."""


LEVELS = ("availability", "camera", "state", "score", "attributes", "binary", "picture", "model")
"""Last levels of a device's topics. All messages are retained; `availability` is the program's."""


def topic(name: str, last: str) -> str:
    return f"edgecnn/{name}/{last}"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The published values at one moment. `reason` is why `state` is not a label, `since` the frame's time in seconds since the epoch."""

    camera: bool = False
    state: str | None = None
    reason: str | None = None
    since: float | None = None
    top: tuple[Score, ...] = ()

    @property
    def score(self) -> float | None:
        return self.top[0].score if self.state is not None and self.top else None


def state_names(labels: Sequence[str], strangers: bool = False) -> dict[str, str]:
    """Return each state's published name: the label, or "LABEL (class)" if Home Assistant reserves it; with `strangers`, also STRANGER."""
    names = {decision: decision for decision in ((ABSTAIN, STRANGER) if strangers else (ABSTAIN,))}
    taken = {*labels, *names}
    for label in labels:
        name = label
        if label.strip().casefold() in RESERVED:
            name = f"{label} (class)"
            while name in taken:
                name += "'"
            taken.add(name)
        names[label] = name
    return names


def values(
    snapshot: Snapshot, names: dict[str, str], binary: str | None, client: str, update: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Return (last topic level, payload) pairs in sending order: the state follows the values that an automation on its change may read.

    `update` is this board's last check for a release, if any.
    """
    state, score = snapshot.state, snapshot.score
    attributes = {
        "label": state if snapshot.reason is None else None,
        "reason": snapshot.reason,
        "since": None if snapshot.since is None else rfc3339(snapshot.since),
        "top": [{"label": item.label, "score": round(item.score, 6)} for item in snapshot.top[:MOST_CLASSES]],
        "client": client,
        **({"update": {name: update[name] for name in ("reason", "last_good")}} if update else {}),
    }
    messages = [("attributes", json.dumps(attributes)), ("score", NO_VALUE if score is None else f"{score:.6f}")]
    if binary is not None:
        certain = state is not None and snapshot.reason is None
        messages.append(("binary", ("ON" if state == binary else "OFF") if certain else NO_VALUE))
    messages.append(("state", NO_VALUE if state is None else names.get(state, NO_VALUE)))
    camera = ("camera", ONLINE if snapshot.camera else OFFLINE)
    return [*messages, camera] if snapshot.camera else [camera, *messages]


PREFIX = "homeassistant"  # where Home Assistant looks by default, and where it announces that it is online


def object_id(name: str) -> str:
    return f"edgecnn_{name}"


def config_topic(name: str, prefix: str = PREFIX) -> str:
    return f"{prefix}/device/{object_id(name)}/config"


def birth_topics(prefix: str = PREFIX) -> set[str]:
    return {f"{PREFIX}/status", f"{prefix}/status"}


def discovery_config(name: str, model: str, names: Mapping[str, str], options: Mqtt) -> str:
    """Return a device's description as JSON. An unused entity is listed with only its platform, which removes it."""
    device = object_id(name)
    program = {"topic": topic(name, "availability")}

    def component(platform: str, last: str, **fields: Any) -> dict[str, Any]:
        return {"platform": platform, "unique_id": f"{device}_{last}", **fields}

    components: dict[str, dict[str, Any]] = {
        "state": component(
            "sensor", "state", name=None, device_class="enum", options=list(names.values()),  # the name is the device's own
            state_topic=topic(name, "state"), json_attributes_topic=topic(name, "attributes"), icon="mdi:image-search",
        ),
        "score": component(
            "sensor", "score", name="Score", state_class="measurement", suggested_display_precision=2,
            state_topic=topic(name, "score"),
        ),
        "model": component(
            "sensor", "model", name="Model", entity_category="diagnostic", state_topic=topic(name, "model"),
            availability=[program],  # whatever the camera does
        ),
        "picture": {"platform": "image"},
        "binary": {"platform": "binary_sensor"},
    }  # fmt: skip
    if options.picture:
        components["picture"] = component(
            "image", "picture", name="Picture", image_topic=topic(name, "picture"), content_type="image/jpeg"
        )
    if options.binary is not None:
        components["binary"] = component(
            "binary_sensor", "binary", name=names[options.binary], state_topic=topic(name, "binary")
        )
    about = {"identifiers": [device], "name": name, "manufacturer": "edgecnn", "model": model}
    config = {
        "device": {**about, "sw_version": __version__},
        "origin": {"name": "edgecnn", "sw_version": __version__},
        "availability": [program, {"topic": topic(name, "camera")}],
        "availability_mode": "all",
        "components": components,
    }
    return json.dumps(config)
