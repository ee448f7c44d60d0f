"""What a stream reports besides results: one class for each event. Their JSON lines are described by `result.schema.json`."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from edgecnn.region import Region

END_OF_SOURCE, DURATION, CAMERA_LOST, SIGNAL = "end_of_source", "duration", "camera_lost", "signal"
"""Why a stream ended. CAMERA_LOST is also why there is no state while a camera is away."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something other than a result.

    Attributes:
        kind: the event's name in a JSON line.
        ts: when it was reported, in seconds since the epoch.
        source: the device, address or file that the stream reads.
    """

    kind: ClassVar[str]
    ts: float
    source: str


@dataclass(frozen=True, kw_only=True)
class CameraOpenedEvent(Event):
    """The source gives frames for the first time.

    Attributes:
        about: what was opened: device, format, size, rate.
        live: False for a source that waits for its reader, of which no frame is dropped.
        region: the part of each frame that is classified, as in `edgecnn.region`; None for the whole frame.
    """

    kind = "camera_opened"
    about: str
    live: bool
    region: Region | None = None


@dataclass(frozen=True, kw_only=True)
class CameraLostEvent(Event):
    """The source has stopped giving frames; the stream opens it again.

    Attributes:
        reason: one of `edgecnn.device.cameras.source.REASONS`, or "unavailable" where it could not be opened.
        message: what happened, for people.
    """

    kind = "camera_lost"
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CameraBackEvent(Event):
    """The source gives frames again.

    Attributes:
        about: what was opened.
        after_s: seconds since the loss.
        attempts: how many times it was opened.
    """

    kind = "camera_back"
    about: str
    after_s: float
    attempts: int


@dataclass(frozen=True, kw_only=True)
class StateChangedEvent(Event):
    """The state has changed. The result that changed it comes first.

    Attributes:
        state: a label, "abstain" or "stranger"; None before there is a state.
        previous: the state before.
        score: the best class's score in [0, 1]; None without a frame.
        reason: why the state is no label, or CAMERA_LOST.
        seq: the frame's number; None without a frame.
    """

    kind = "state_changed"
    state: str | None
    previous: str | None
    score: float | None
    reason: str | None
    seq: int | None


@dataclass(frozen=True, kw_only=True)
class FrameDamagedEvent(Event):
    """Frames were skipped: they could not be decoded, or the camera cut them short. Reported at most once a second.

    Attributes:
        message: what was wrong with the last one, for people.
        seq: its number; None where the camera itself skipped it.
        count: how many since the last such event.
    """

    kind = "frame_damaged"
    message: str
    seq: int | None
    count: int


@dataclass(frozen=True, kw_only=True)
class SaveFailedEvent(Event):
    """An unsure frame could not be written. Reported at most once in ten seconds.

    Attributes:
        message: why, for people.
        seq: the frame's number.
        count: how many since the last such event.
    """

    kind = "save_failed"
    message: str
    seq: int
    count: int


@dataclass(frozen=True, kw_only=True)
class CommandFailedEvent(Event):
    """A command that runs when the state changes has failed, or was terminated.

    Attributes:
        message: the program and what happened to it, for people.
    """

    kind = "command_failed"
    message: str


@dataclass(frozen=True, kw_only=True)
class MqttConnectedEvent(Event):
    """There is a connection to the MQTT broker; the newest state is sent now.

    Attributes:
        broker: its address, without user and password.
        after_s: seconds since the loss, or since the start.
        attempts: how many it took.
        dropped: states that were replaced by newer ones meanwhile, and were never sent.
    """

    kind = "mqtt_connected"
    broker: str
    after_s: float
    attempts: int
    dropped: int


@dataclass(frozen=True, kw_only=True)
class MqttLostEvent(Event):
    """The connection to the MQTT broker is lost, or the stream ended before all was sent.

    Attributes:
        broker: its address.
        reason: one of `edgecnn.device.mqtt.connection.REASONS`, or "stopped" at the end of the stream.
        message: what happened, for people.
        dropped: states that were never sent, since the last such event.
    """

    kind = "mqtt_lost"
    broker: str
    reason: str
    message: str
    dropped: int


@dataclass(frozen=True, kw_only=True)
class MqttRefusedEvent(Event):
    """An attempt to connect to the MQTT broker failed. The same reason is reported once in ten minutes at most.

    Attributes:
        broker: its address.
        reason: one of `edgecnn.device.mqtt.connection.REASONS`.
        message: why, for people.
        count: how many attempts since the last such event.
    """

    kind = "mqtt_refused"
    broker: str
    reason: str
    message: str
    count: int


@dataclass(frozen=True, kw_only=True)
class MqttConflictEvent(Event):
    """Another program publishes on the same topics. Reported once in ten minutes at most.

    Attributes:
        broker: its address.
        message: which, for people.
        count: how many of its messages since the last such event.
    """

    kind = "mqtt_conflict"
    broker: str
    message: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ReleaseEvent(Event):
    """The service runs a release, has found it good, or does not run it any more.

    Attributes:
        release: the SHA-256 of its bundle.
        name: the bundle's.
        state: one of `edgecnn.device.slots.record.STATES`.
        reason: why it is bad.
    """

    kind = "release"
    release: str
    name: str
    state: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class ProblemEvent(Event):
    """Something is wrong, and the service goes on.

    Attributes:
        about: clock, configuration, disk, or release where none is in use.
        message: what, for people.
    """

    kind = "problem"
    about: str
    message: str


@dataclass(frozen=True, kw_only=True)
class EndedEvent(Event):
    """The stream has ended: nothing follows.

    Attributes:
        reason: one of END_OF_SOURCE, DURATION, CAMERA_LOST and SIGNAL.
        frames: classified frames.
        dropped: frames that were replaced by newer ones while another was classified, or were too old.
        damaged: frames that were skipped.
    """

    kind = "ended"
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
