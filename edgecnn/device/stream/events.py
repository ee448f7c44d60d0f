"""What a stream yields: the results of frames, the events in addition, one class each, and the JSON lines of both and of files.

`result.schema.json` is their schema. Lines are formatted by hand, since `json.dumps` takes longer than a decision.
"""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgecnn.labels import utf8
from edgecnn.region import WHOLE, Region
from edgecnn.runtime.decision import Score

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Result


END_OF_SOURCE, DURATION, CAMERA_LOST, SIGNAL = "end_of_source", "duration", "camera_lost", "signal"
"""Why a stream ended. CAMERA_LOST also explains a missing state while the camera is away."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something other than a result. `kind`, derived from the class's name, is its name in a JSON line.

    `ts` is the time of the report, in seconds since the epoch, `source` the device, address or file that the stream reads.
    """

    kind: ClassVar[str]
    ts: float
    source: str

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Event")).lower()


@dataclass(frozen=True, kw_only=True)
class CameraOpenedEvent(Event):
    """The source has delivered its first frame.

    `about` describes the source: device, format, size, rate. `live` is False for a source that waits for its reader, so that no frame is
    dropped. `region` is the part of each frame that is classified, as in `edgecnn.region`; None for the whole frame.
    """

    about: str
    live: bool
    region: Region | None = None


@dataclass(frozen=True, kw_only=True)
class CameraLostEvent(Event):
    """The source has stopped delivering frames, for one of `edgecnn.device.cameras.source.REASONS`, or is "unavailable". It is retried."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CameraBackEvent(Event):
    """The source delivers frames again, `after_s` seconds after the loss and after `attempts` attempts to open it."""

    about: str
    after_s: float
    attempts: int


@dataclass(frozen=True, kw_only=True)
class StateChangedEvent(Event):
    """The state has changed. The result that changed it precedes this event.

    `state` and `previous` are a label, "abstain", "stranger", or None for no state. `score` is that of the best class, in [0, 1], and `seq`
    the frame's number, both None without a frame. `reason` says why the state is not a label, or is CAMERA_LOST.
    """

    state: str | None
    previous: str | None
    score: float | None
    reason: str | None
    seq: int | None


@dataclass(frozen=True, kw_only=True)
class FrameDamagedEvent(Event):
    """Frames were skipped because they could not be decoded, or because the camera cut them short. Reported at most once per second.

    `message` and `seq` are for the last one; `seq` is None if the camera skipped it. `count` is the number since the last such event.
    """

    message: str
    seq: int | None
    count: int


@dataclass(frozen=True, kw_only=True)
class SaveFailedEvent(Event):
    """Frame number `seq` was to be kept but could not be written. Reported at most once every ten seconds, for `count` frames."""

    message: str
    seq: int
    count: int


@dataclass(frozen=True, kw_only=True)
class CommandFailedEvent(Event):
    """A command that runs when the state changes has failed or was terminated."""

    message: str


@dataclass(frozen=True, kw_only=True)
class MqttConnectedEvent(Event):
    """The stream is connected to the MQTT broker and now sends the newest state.

    Connecting took `after_s` seconds since the loss or the start, and `attempts` attempts. Newer states replaced `dropped` older ones.
    """

    broker: str
    after_s: float
    attempts: int
    dropped: int


@dataclass(frozen=True, kw_only=True)
class MqttLostEvent(Event):
    """The connection to the MQTT broker is lost, or the stream ended before everything was sent.

    `reason` is one of `edgecnn.device.mqtt.publisher.REASONS`, or "stopped" at the end of the stream; `dropped` states were never sent.
    """

    broker: str
    reason: str
    message: str
    dropped: int


@dataclass(frozen=True, kw_only=True)
class MqttRefusedEvent(Event):
    """An attempt to connect to the MQTT broker failed, for one of `edgecnn.device.mqtt.publisher.REASONS`.

    The same reason is reported at most once every ten minutes, for `count` attempts.
    """

    broker: str
    reason: str
    message: str
    count: int


@dataclass(frozen=True, kw_only=True)
class MqttConflictEvent(Event):
    """Another program publishes on the same topics. Reported at most once every ten minutes, for `count` of its messages."""

    broker: str
    message: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ReleaseEvent(Event):
    """The service has started a release, found it good, or stopped running it.

    `release` is the SHA-256 of its bundle, `name` the bundle's name, `state` one of `edgecnn.device.slots.record.STATES`.
    """

    release: str
    name: str
    state: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class ProblemEvent(Event):
    """Something is wrong with the clock, the configuration, the disk or the release, but the service continues."""

    about: str
    message: str


@dataclass(frozen=True, kw_only=True)
class EndedEvent(Event):
    """The stream has ended, for END_OF_SOURCE, DURATION, CAMERA_LOST or SIGNAL. Nothing follows.

    `frames` counts the classified frames, `dropped` those that were too old or replaced by newer ones, `damaged` those that were skipped.
    """

    reason: str
    frames: int
    dropped: int
    damaged: int


class RateLimiter:
    """Limits events that may occur with every frame to one per `every_s` seconds, which then stands for those held back."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last = -math.inf
        self._held_back = 0

    def count(self, times: int = 1) -> int:
        """Count `times` more; return how many occurrences an event would stand for now, or 0 if it is too early for one."""
        self._held_back += times
        now = self._clock()
        if now - self._last < self._every_s:
            return 0
        self._last = now
        total, self._held_back = self._held_back, 0
        return total


SCHEMA = "edgecnn.result/1"


def quote(text: str) -> str:
    """Return a text as a JSON string. `edgecnn.labels.utf8` handles names that are not UTF-8."""
    return encode_basestring_ascii(utf8(text))


def file_line(source: str, result: "Result", model: tuple[str, str], region: Region = WHOLE) -> str:
    """Return a file's result as a JSON line; `model` is the bundle's name and the SHA-256 of its model file."""
    return (
        f'{{"schema": "{SCHEMA}", "source": {quote(source)}, "top": {top_json(result.top)}, '
        f'"decision": {quote(result.decision)}, "reason": {text_json(result.reason)}, '
        f'"latency_ms": {latency_json(result.latency_ms)}, {model_json(model, region)}}}'
    )


def error_line(source: str, error: str) -> str:
    return f'{{"schema": "{SCHEMA}", "source": {quote(source)}, "error": {quote(error)}}}'


def top_json(top: Sequence[Score]) -> str:
    items = [f'{{"label": {quote(item.label)}, "index": {item.index}, "score": {item.score:.6f}}}' for item in top]
    return f"[{', '.join(items)}]"


def text_json(text: str | None) -> str:
    return "null" if text is None else quote(text)


def model_json(model: tuple[str, str], region: Region) -> str:
    """Return a model's name, its file's SHA-256 and, unless it saw the whole image, the region, as the fields of a JSON object."""
    name, sha256 = model
    part = "" if region == WHOLE else f', "region": {list(region)}'
    return f'"model": {quote(name)}, "model_sha256": "{sha256}"{part}'


def latency_json(latency_ms: dict[str, float]) -> str:
    return (
        f'{{"decode": {latency_ms["decode"]:.3f}, "preprocess": {latency_ms["preprocess"]:.3f}, '
        f'"infer": {latency_ms["infer"]:.3f}}}'
    )


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """The result for one frame of a stream; `top`, `decision`, `reason`, `lead`, `latency_ms` and `features` are as in `Result`.

    Attributes:
        seq: the frame's number among all frames since the start. Gaps are frames that were discarded, dropped, damaged or passed over.
        ts: when the frame was complete, in seconds since the epoch. The result was ready `age_ms` later.
        image: the source's frame before any rotation: an encoded image's bytes, or uint8 RGB of shape (height, width, 3).
        state: the decision after smoothing; None until enough frames have arrived, at the start and after a loss of the camera.
        state_since: the `ts` of the frame that set the state.
        dropped: frames since the start that were replaced by newer ones while another was classified, or were too old.
    """

    seq: int
    ts: float
    age_ms: float
    source: str
    image: bytes | np.ndarray = field(repr=False, compare=False)
    top: tuple[Score, ...]
    decision: str
    reason: str | None
    lead: float
    state: str | None
    state_since: float | None
    latency_ms: dict[str, float]
    dropped: int
    features: np.ndarray | None = field(default=None, repr=False, compare=False)


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC with milliseconds: 2026-11-25T04:00:00.123Z."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{ms:03d}Z"


def result_line(result: FrameResult, model: tuple[str, str], region: Region = WHOLE) -> str:
    """Return a frame's result as a JSON line; `model` and `region` are as in `lines.file_line`."""
    since = "null" if result.state_since is None else f'"{rfc3339(result.state_since)}"'
    return (
        f'{{"schema": "{SCHEMA}", "seq": {result.seq}, "ts": "{rfc3339(result.ts)}", "age_ms": {result.age_ms:.3f}, '
        f'"source": {quote(result.source)}, "top": {top_json(result.top)}, "decision": {quote(result.decision)}, '
        f'"reason": {text_json(result.reason)}, "state": {text_json(result.state)}, "state_since": {since}, '
        f'"latency_ms": {latency_json(result.latency_ms)}, "dropped": {result.dropped}, {model_json(model, region)}}}'
    )


def event_line(event: Event) -> str:
    left_out = {"ts", "source"} | ({"region"} if getattr(event, "region", None) is None else set())
    details = {name: value for name, value in vars(event).items() if name not in left_out}
    line = {"schema": SCHEMA, "event": event.kind, "ts": rfc3339(event.ts), "source": event.source, **details}
    return json.dumps({name: utf8(value) if isinstance(value, str) else value for name, value in line.items()})
