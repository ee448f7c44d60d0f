"""The Consumer that publishes a stream's state: it never waits for the broker, which a thread of its own talks to."""

import json
import random
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgecnn.device.mqtt import discovery
from edgecnn.device.mqtt.address import Broker
from edgecnn.device.mqtt.connection import STOPPED, Connection, ConnectionFailed, Message, Waits, tls_context
from edgecnn.device.mqtt.outbox import Outbox
from edgecnn.device.mqtt.topics import LEVELS, OFFLINE, ONLINE, Snapshot, state_names, topic, values
from edgecnn.device.stream.events import (
    CameraBackEvent,
    CameraLostEvent,
    CameraOpenedEvent,
    Event,
    MqttConflictEvent,
    MqttConnectedEvent,
    MqttLostEvent,
    MqttRefusedEvent,
    Seldom,
    StateChangedEvent,
)
from edgecnn.device.stream.loop import Item
from edgecnn.device.stream.pictures import as_jpeg
from edgecnn.device.stream.results import FrameResult
from edgecnn.errors import ImageError, MqttError

AGAIN_S = 600.0
"""Least time between two events that say the same."""

MOST_EVENTS = 64
"""Events that wait for the stream; older ones are dropped."""

LONGEST_ID = 23
"""Characters of a client's identifier that every broker takes (MQTT 3.1.1, section 3.1.3.1)."""


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """What is published, and where.

    Attributes:
        broker: see there.
        name: the device's: the second level of its topics.
        ca: a file with the certificates of the authorities that may sign the broker's; None for the system's.
        picture: publish a JPEG of the frame with each change of the state.
        binary: the label for which a binary sensor is on; None for no such sensor.
        prefix: of Home Assistant's discovery topics.
        rotation: clockwise degrees by which pictures are turned.
        waits: see there.
    """

    broker: Broker
    name: str
    ca: Path | None = None
    picture: bool = False
    binary: str | None = None
    prefix: str = discovery.PREFIX
    rotation: int = 0
    waits: Waits = field(default_factory=Waits)


def client_id(name: str) -> str:
    """Return an identifier that no other client has, another process with the same name included: two with one would end each other."""
    token = secrets.token_hex(4)
    return f"{f'edgecnn-{name}'[: LONGEST_ID - len(token) - 1]}-{token}"


class Publisher:
    """Publishes the state, its score and attributes, and Home Assistant's description of the device.

    A Consumer: give it to `open_stream`. The first `poll` starts its thread. It connects for ever, with growing waits in between. While
    there is no connection only the newest change is kept, and sent when it is back. No call waits for the network, except `finish`.
    """

    def __init__(
        self,
        settings: MqttSettings,
        *,
        labels: Sequence[str],
        model: str,
        strangers: bool = False,
        outbox: Outbox | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            settings: see there.
            labels: of the classes.
            model: the bundle's name.
            strangers: whether the classifier recognises strangers.
            outbox: what waits to be published.
            clock, wall: monotonic seconds, and seconds since the epoch.

        Raises:
            ValueError: if `settings.binary` is not a label.
            OSError: if the authorities' file cannot be read.
        """
        if settings.binary is not None and settings.binary not in labels:
            raise ValueError(f"{settings.binary!r} is not a class of the model; it has {', '.join(labels)}")
        self._settings = settings
        self._names = state_names(labels, strangers)
        self._model = model
        self._config = discovery.config(
            settings.name, model, self._names, picture=settings.picture, binary=settings.binary
        )
        self._id = client_id(settings.name)
        self._tls = tls_context(settings.ca) if settings.broker.tls else None
        self._outbox = outbox or Outbox()
        self._clock = clock
        self._wall = wall
        self._source = ""
        self._now = Snapshot()
        self._result: FrameResult | None = None
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._stopping = threading.Event()
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._conflicts = Seldom(AGAIN_S, clock)
        self._picture: bytes | None = None

    def take(self, item: Item) -> Iterable[Event]:
        """Note a change, or a frame's scores."""
        self._source = item.source
        match item:
            case FrameResult():
                self._result = item
                self._outbox.score(item)
            case CameraOpenedEvent() | CameraBackEvent():
                self._change(replace(self._now, camera=True))
            case CameraLostEvent():
                self._change(replace(self._now, camera=False))
            case StateChangedEvent():
                self._change_state(item)
        return ()

    def poll(self) -> list[Event]:
        """Start the thread with the first call; return what happened in it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
            self._thread.start()
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events

    def finish(self, wait_s: float) -> list[Event]:
        """Publish what waits, and that the device is offline, within `wait_s` seconds; at 0 do not wait for that."""
        if self._thread is None:
            return []
        self._deadline = self._clock() + wait_s
        self._stopping.set()
        self._thread.join(wait_s)
        events = self.poll()
        undelivered = self._outbox.undelivered()
        if wait_s and undelivered:
            events.append(self._lost(STOPPED, "the stream ended before all was sent", undelivered))
        return events

    def _change(self, now: Snapshot, image: bytes | np.ndarray | None = None) -> None:
        self._now = now
        self._outbox.change(now, image)

    def _change_state(self, event: StateChangedEvent) -> None:
        result = self._result if self._result is not None and self._result.seq == event.seq else None
        now = replace(
            self._now,
            state=event.state,
            reason=event.reason,
            since=result.state_since if result else None,
            top=result.top if result and result.decision == event.state else (),
        )
        self._change(now, result.image if result and self._settings.picture else None)
        self._result = None

    # what follows runs in the thread

    def _run(self) -> None:
        waits = self._settings.waits
        retry_s, attempts, since = waits.retry_s, 0, self._clock()
        refusals: dict[str, Seldom] = {}
        while not self._stopping.is_set():
            attempts += 1
            opened = None
            try:
                with self._connection() as connection:
                    connection.open(self._late)
                    opened = self._clock()
                    first = self._outbox.connected()  # from here on a change waits; before, it drops the one before it
                    self._events.append(self._connected(opened - since, attempts))
                    attempts = 0
                    self._serve(connection, first)
                    return
            except ConnectionFailed as error:
                self._outbox.disconnected()
                if opened is None:
                    self._refused(error, refusals)
                else:
                    since = self._clock()
                    self._events.append(self._lost(error.reason, str(error), self._outbox.dropped()))
                    if since - opened >= waits.steady_s:
                        retry_s = waits.retry_s
                        refusals.clear()
            self._stopping.wait(retry_s * random.uniform(0.5, 1.0))  # not all boards of a house at once
            retry_s = min(2 * retry_s, waits.longest_retry_s)

    def _late(self) -> bool:
        return self._stopping.is_set() and self._clock() >= self._deadline

    def _connection(self) -> Connection:
        settings = self._settings
        will = (topic(settings.name, "availability"), OFFLINE)
        return Connection(settings.broker, self._id, will=will, tls=self._tls, waits=settings.waits, clock=self._clock)

    def _serve(self, connection: Connection, first: Snapshot) -> None:
        """Publish `first`, and changes until the stream ends; raise ConnectionFailed if the connection is lost before."""
        name = self._settings.name
        births = discovery.birth_topics(self._settings.prefix)
        connection.subscribe({*births, topic(name, "availability"), topic(name, "attributes")})
        sent: dict[str, str | bytes] = {}
        self._greet(connection, first, sent)
        greet_again = False
        while True:
            for message in connection.step():
                online = message.payload == ONLINE.encode()
                if message.topic in births:
                    greet_again |= online and not message.retained
                elif message.topic == topic(name, "availability"):
                    greet_again |= not online  # an earlier connection's will
                else:
                    self._check_conflict(message)
            if self._late():
                return
            if not connection.idle:
                continue
            self._outbox.delivered()
            if greet_again:
                greet_again = False
                sent.clear()
                self._greet(connection, self._outbox.latest, sent)
                continue
            snapshot = self._outbox.next()
            if snapshot is not None:
                self._publish(connection, snapshot, sent)
            elif self._stopping.is_set():
                self._say_goodbye(connection)
                return

    def _greet(self, connection: Connection, snapshot: Snapshot, sent: dict[str, str | bytes]) -> None:
        """Publish all there is. The device is online last, when all its values are there."""
        name = self._settings.name
        connection.publish(discovery.config_topic(name, self._settings.prefix), self._config)
        connection.publish(topic(name, "model"), self._model)
        for last in ("picture",) * (not self._settings.picture) + ("binary",) * (self._settings.binary is None):
            connection.publish(topic(name, last), b"")  # of an earlier run
        self._publish(connection, snapshot, sent)
        connection.publish(topic(name, "availability"), ONLINE)

    def _publish(self, connection: Connection, snapshot: Snapshot, sent: dict[str, str | bytes]) -> None:
        """Publish what of a snapshot the broker does not have yet."""
        messages: list[tuple[str, str | bytes]] = []
        image = self._outbox.image()
        if image is not None:
            try:
                self._picture = as_jpeg(image, self._settings.rotation)
            except ImageError:  # it was decoded for the classifier, which may have skipped what is damaged
                self._picture = None
        if self._picture is not None:
            messages.append(("picture", self._picture))
        messages += values(snapshot, self._names, self._settings.binary, self._id)
        for last, payload in messages:
            if sent.get(last) != payload:
                connection.publish(topic(self._settings.name, last), payload)
                sent[last] = payload

    def _say_goodbye(self, connection: Connection) -> None:
        connection.publish(topic(self._settings.name, "availability"), OFFLINE)
        while not connection.idle and not self._late():
            connection.step()
        connection.close()

    def _check_conflict(self, message: Message) -> None:
        """Report another program that publishes on the same topics now."""
        if message.retained:
            return
        try:
            other = json.loads(message.payload)["client"]
        except (ValueError, KeyError, TypeError, RecursionError):
            other = None
        if other != self._id and (count := self._conflicts.count()):
            name = self._settings.name
            if not isinstance(other, str) or not re.fullmatch(r"[\w-]{1,64}", other, re.ASCII):
                other = "another program"
            text = f"{other} publishes as {name!r} too, so their states mix: give each device a name of its own"
            self._events.append(self._event(MqttConflictEvent, message=text, count=count))

    def _event(self, kind: Callable[..., Event], **fields: object) -> Event:
        return kind(ts=self._wall(), source=self._source, broker=self._settings.broker.address, **fields)

    def _connected(self, after_s: float, attempts: int) -> Event:
        return self._event(
            MqttConnectedEvent, after_s=round(after_s, 3), attempts=attempts, dropped=self._outbox.dropped()
        )

    def _lost(self, reason: str, message: str, dropped: int) -> Event:
        return self._event(MqttLostEvent, reason=reason, message=message, dropped=dropped)

    def _refused(self, error: ConnectionFailed, refusals: dict[str, Seldom]) -> None:
        """Report why there is no connection: at once if the reason is another, else seldom."""
        if error.reason == STOPPED:
            return
        if error.reason not in refusals:
            refusals.clear()
            refusals[error.reason] = Seldom(AGAIN_S, self._clock)
        if count := refusals[error.reason].count():
            self._events.append(self._event(MqttRefusedEvent, reason=error.reason, message=str(error), count=count))


def forget(settings: MqttSettings) -> None:
    """Remove a device from Home Assistant, and all that the broker retains of it.

    Raises:
        MqttError: if the broker cannot be reached, or does not take it.
        OSError: if the authorities' file cannot be read.
    """
    tls = tls_context(settings.ca) if settings.broker.tls else None
    connection = Connection(settings.broker, client_id(settings.name), will=None, tls=tls, waits=settings.waits)
    try:
        with connection:
            connection.open(lambda: False)
            connection.publish(discovery.config_topic(settings.name, settings.prefix), b"")
            for last in LEVELS:
                connection.publish(topic(settings.name, last), b"")
            while not connection.idle:
                connection.step()
            connection.close()
    except ConnectionFailed as error:
        raise MqttError(f"{settings.broker.address}: {error}.") from None
