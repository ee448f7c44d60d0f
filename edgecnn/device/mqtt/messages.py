"""What is published: topics, payloads and the names of states, Home Assistant's device discovery, and a bounded queue of updates.

The discovery is one retained message that describes a device and its entities.

Source: the integration's page on MQTT discovery, and the schemas of Home Assistant 2026.2, which a test checks it against.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgecnn import __version__
from edgecnn.device.stream.events import FrameResult, rfc3339
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


MOST_WAITING = 64  # maximum number of changes that wait during a connection; without one, only the newest waits

REFRESH_S = 10.0  # minimum time between two messages for a new score without a new state


class Outbox:
    """Changes in order, the newest score and the newest picture. A state replaced before delivery counts as dropped."""

    def __init__(self, *, refresh_s: float = REFRESH_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._refresh_s = refresh_s
        self._clock = clock
        self._latest = Snapshot()
        self._waiting: deque[Snapshot] = deque()
        self._sent: Snapshot | None = None
        self._connected = False
        self._dropped = 0
        self._score: tuple[str | None, tuple[Score, ...]] = (None, ())
        self._refreshed = -math.inf
        self._image: bytes | np.ndarray | None = None

    def change(self, snapshot: Snapshot, image: bytes | np.ndarray | None = None) -> None:
        """Add a change, with its frame if the frame is to be published."""
        self._latest = snapshot
        self._waiting.append(snapshot)
        if image is not None:
            self._image = image
        self._limit()

    def score(self, result: FrameResult) -> None:
        """Note a frame's scores. Those of the newest frame whose decision is the state are published from time to time."""
        if result.decision == result.state:
            self._score = (result.state, result.top)

    @property
    def latest(self) -> Snapshot:
        state, top = self._score
        return replace(self._latest, top=top) if state is not None and state == self._latest.state else self._latest

    @property
    def empty(self) -> bool:
        """Whether no change waits or is on its way."""
        return not self._waiting and self._sent is None

    def connected(self) -> Snapshot:
        """Begin a connection: return the snapshot to publish first, which replaces all that wait."""
        self._connected = True
        self._sent = self._waiting[-1] if self._waiting else None
        self._waiting.clear()
        self._refreshed = self._clock()
        self._latest = self.latest
        return self._latest

    def disconnected(self) -> None:
        self._connected = False
        if self._sent is not None:
            self._waiting.appendleft(self._sent)
            self._sent = None
        self._limit()

    def next(self) -> Snapshot | None:
        """Return the snapshot to publish now, or None. Then call `delivered` or `disconnected`."""
        now = self._clock()
        if self._waiting:
            self._sent, self._refreshed = self._waiting.popleft(), now
            return self._sent
        fresh = self.latest
        early = bool(self._latest.top) and now - self._refreshed < self._refresh_s
        if early or fresh.top == self._latest.top:
            return None
        self._latest, self._refreshed = fresh, now
        return fresh

    def delivered(self) -> None:
        self._sent = None

    def image(self) -> bytes | np.ndarray | None:
        image, self._image = self._image, None
        return image

    def dropped(self) -> int:
        count, self._dropped = self._dropped, 0
        return count

    def undelivered(self) -> int:
        """Return how many states have not reached the broker, including those that wait."""
        waiting = [self._sent, *self._waiting] if self._sent is not None else self._waiting
        return self._dropped + sum(snapshot.state is not None for snapshot in waiting)

    def _limit(self) -> None:
        limit = MOST_WAITING if self._connected else 1
        while len(self._waiting) > limit:
            state = self._waiting.popleft().state
            self._dropped += state is not None and state != self._waiting[0].state
