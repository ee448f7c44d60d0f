"""What a stream reports next to results: one class for each event. Their JSON lines are described by `result.schema.json`."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from edgecnn.region import Region

END_OF_SOURCE, DURATION, CAMERA_LOST, SIGNAL = "end_of_source", "duration", "camera_lost", "signal"
"""Why a stream ended. CAMERA_LOST is also why there is no state while a camera is away."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something other than a result; `kind`, made of the class's name, is its name in a JSON line.

    `ts` is when it was reported, in seconds since the epoch, `source` the device, address or file that the stream reads.
    """

    kind: ClassVar[str]
    ts: float
    source: str

    def __init_subclass__(cls) -> None:
        cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Event")).lower()


@dataclass(frozen=True, kw_only=True)
class CameraOpenedEvent(Event):
    """The source gives frames for the first time.

    `about` says what was opened: device, format, size, rate. `live` is False for a source that waits for its reader, of which no frame is
    dropped. `region` is the part of each frame that is classified, as in `edgecnn.region`; None for the whole frame.
    """

    about: str
    live: bool
    region: Region | None = None


@dataclass(frozen=True, kw_only=True)
class CameraLostEvent(Event):
    """The source has stopped giving frames, for one of `edgecnn.device.cameras.source.REASONS`, or is "unavailable"; it is opened again."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CameraBackEvent(Event):
    """The source gives frames again, `after_s` seconds after the loss, at the last of `attempts` to open it."""

    about: str
    after_s: float
    attempts: int


@dataclass(frozen=True, kw_only=True)
class StateChangedEvent(Event):
    """The state has changed. The result that changed it comes first.

    `state` and `previous` are a label, "abstain", "stranger", or None for no state. `score` is the best class's, in [0, 1], and `seq` the
    frame's number, both None without a frame. `reason` says why the state is no label, or is CAMERA_LOST.
    """

    state: str | None
    previous: str | None
    score: float | None
    reason: str | None
    seq: int | None


@dataclass(frozen=True, kw_only=True)
class FrameDamagedEvent(Event):
    """Frames were skipped: they could not be decoded, or the camera cut them short. Reported at most once a second.

    `message` and `seq`, None if the camera itself skipped it, are of the last one; `count` is how many since the last such event.
    """

    message: str
    seq: int | None
    count: int


@dataclass(frozen=True, kw_only=True)
class SaveFailedEvent(Event):
    """An unsure frame, of number `seq`, could not be written. Reported at most once in ten seconds, for `count` of them."""

    message: str
    seq: int
    count: int


@dataclass(frozen=True, kw_only=True)
class CommandFailedEvent(Event):
    """A command that runs when the state changes has failed, or was terminated."""

    message: str


@dataclass(frozen=True, kw_only=True)
class MqttConnectedEvent(Event):
    """There is a connection to the MQTT broker; the newest state is sent now.

    It took `after_s` seconds since the loss or the start, and `attempts`. `dropped` states were replaced by newer ones meanwhile.
    """

    broker: str
    after_s: float
    attempts: int
    dropped: int


@dataclass(frozen=True, kw_only=True)
class MqttLostEvent(Event):
    """The connection to the MQTT broker is lost, or the stream ended before all was sent.

    `reason` is one of `edgecnn.device.mqtt.connection.REASONS`, or "stopped" at the end of the stream; `dropped` states were never sent.
    """

    broker: str
    reason: str
    message: str
    dropped: int


@dataclass(frozen=True, kw_only=True)
class MqttRefusedEvent(Event):
    """An attempt to connect to the MQTT broker failed, for one of `edgecnn.device.mqtt.connection.REASONS`.

    The same reason is reported once in ten minutes at most, for `count` attempts.
    """

    broker: str
    reason: str
    message: str
    count: int


@dataclass(frozen=True, kw_only=True)
class MqttConflictEvent(Event):
    """Another program publishes on the same topics. Reported once in ten minutes at most, for `count` of its messages."""

    broker: str
    message: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ReleaseEvent(Event):
    """The service runs a release, has found it good, or does not run it any more.

    `release` is the SHA-256 of its bundle, `name` the bundle's, `state` one of `edgecnn.device.slots.record.STATES`.
    """

    release: str
    name: str
    state: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class ProblemEvent(Event):
    """Something is wrong about the clock, the configuration, the disk or the release, and the service goes on."""

    about: str
    message: str


@dataclass(frozen=True, kw_only=True)
class EndedEvent(Event):
    """The stream has ended, for END_OF_SOURCE, DURATION, CAMERA_LOST or SIGNAL: nothing follows.

    `frames` were classified, `dropped` replaced by newer ones or too old, `damaged` skipped.
    """

    reason: str
    frames: int
    dropped: int
    damaged: int


class Seldom:
    """Limits events that may come with each frame to one in `every_s` seconds, which then stands for those that were held back."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last = -math.inf
        self._held_back = 0

    def count(self, times: int = 1) -> int:
        """Count `times` more; return how many an event would stand for now, 0 while it is too early for one."""
        self._held_back += times
        now = self._clock()
        if now - self._last < self._every_s:
            return 0
        self._last = now
        total, self._held_back = self._held_back, 0
        return total
