"""The events that a stream reports in addition to results, one class each. `result.schema.json` describes their JSON lines."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from edgecnn.region import Region

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

    `reason` is one of `edgecnn.device.mqtt.connection.REASONS`, or "stopped" at the end of the stream; `dropped` states were never sent.
    """

    broker: str
    reason: str
    message: str
    dropped: int


@dataclass(frozen=True, kw_only=True)
class MqttRefusedEvent(Event):
    """An attempt to connect to the MQTT broker failed, for one of `edgecnn.device.mqtt.connection.REASONS`.

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


class Seldom:
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
