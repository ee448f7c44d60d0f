"""The Consumer that publishes a stream's state. It never waits for the broker; a separate thread does."""

import json
import random
import re
import secrets
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from paho.mqtt.client import MQTTMessage

from edgecnn.device.mqtt import discovery
from edgecnn.device.mqtt.address import Broker
from edgecnn.device.mqtt.connection import STOPPED, Connection, ConnectionFailed, Waits, tls_context
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
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.pictures import as_jpeg
from edgecnn.device.stream.results import FrameResult
from edgecnn.device.stream.settings import Mqtt
from edgecnn.device.update import last_check
from edgecnn.errors import ImageError, MqttError

AGAIN_S = 600.0

MOST_EVENTS = 64

LONGEST_ID = 23  # characters of a client identifier that every broker accepts (MQTT 3.1.1, section 3.1.3.1)


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """The broker, the device's `name` and what to publish. OSError if the authorities' file has no PEM certificate."""

    broker: Broker
    name: str
    options: Mqtt = field(default_factory=Mqtt)
    rotation: int = 0
    waits: Waits = field(default_factory=Waits)
    tls: ssl.SSLContext | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.broker.tls:
            object.__setattr__(self, "tls", tls_context(self.options.ca))


def client_id(name: str) -> str:
    """Return a unique identifier, even among processes with the same name: clients that share one disconnect each other."""
    token = secrets.token_hex(4)
    return f"{f'edgecnn-{name}'[: LONGEST_ID - len(token) - 1]}-{token}"


class Publisher(Consumer):
    """A Consumer that publishes the state and Home Assistant's description. Only `finish` waits for the network."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        labels: Sequence[str],
        model: str,
        strangers: bool = False,
        outbox: Outbox | None = None,
    ) -> None:
        """Prepare to publish, without connecting yet. ValueError if the binary sensor's label is not a class."""
        options = settings.options
        if options.binary is not None and options.binary not in labels:
            raise ValueError(f"{options.binary!r} is not a class of the model; it has {', '.join(labels)}")
        self._settings = settings
        self._options = options
        self._names = state_names(labels, strangers)
        self._model = model
        self._config = discovery.config(settings.name, model, self._names, options)
        self._id = client_id(settings.name)
        self._outbox = outbox or Outbox()
        self._source = ""
        self._now = Snapshot()
        self._result: FrameResult | None = None
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._stopping = threading.Event()
        self._deadline = 0.0
        self._thread: threading.Thread | None = None
        self._conflicts = Seldom(AGAIN_S)
        self._picture: bytes | None = None

    def take(self, item: Item) -> Iterable[Event]:
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
        """Start the thread on the first call; return its events."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
            self._thread.start()
        return [self._events.popleft() for _ in range(len(self._events))]

    def finish(self, wait_s: float) -> list[Event]:
        """Publish the waiting changes, then the offline status, within `wait_s` seconds; if 0, do not wait."""
        if self._thread is None:
            return []
        self._deadline = time.monotonic() + wait_s
        self._stopping.set()
        self._thread.join(wait_s)
        events = self.poll()
        undelivered = self._outbox.undelivered()
        if wait_s and undelivered:
            events.append(self._lost(STOPPED, "the stream ended before everything was sent", undelivered))
        return events

    def _change(self, now: Snapshot, image: bytes | np.ndarray | None = None) -> None:
        self._now = now
        self._outbox.change(now, image)

    def _change_state(self, event: StateChangedEvent) -> None:
        result = self._result if self._result is not None and self._result.seq == event.seq else None
        since = result.state_since if result else None
        top = result.top if result and result.decision == event.state else ()
        now = replace(self._now, state=event.state, reason=event.reason, since=since, top=top)
        self._change(now, result.image if result and self._options.picture else None)
        self._result = None

    # the methods below run in the thread

    def _run(self) -> None:
        settings, waits = self._settings, self._settings.waits
        will = (topic(settings.name, "availability"), OFFLINE)
        retry_s, attempts, since = waits.retry_s, 0, time.monotonic()
        refusals: dict[str, Seldom] = {}
        while not self._stopping.is_set():
            attempts += 1
            opened = None
            try:
                with Connection(settings.broker, self._id, will=will, tls=settings.tls, waits=waits) as connection:
                    connection.open(self._late)
                    opened = time.monotonic()
                    first = (
                        self._outbox.connected()
                    )  # from here on changes wait; until now, each replaced the one before
                    after_s, dropped = round(opened - since, 3), self._outbox.dropped()
                    event = self._event(MqttConnectedEvent, after_s=after_s, attempts=attempts, dropped=dropped)
                    self._events.append(event)
                    attempts = 0
                    self._serve(connection, first)
                    return
            except ConnectionFailed as error:
                self._outbox.disconnected()
                if opened is None:
                    self._refused(error, refusals)
                else:
                    since = time.monotonic()
                    self._events.append(self._lost(error.reason, str(error), self._outbox.dropped()))
                    if since - opened >= waits.steady_s:
                        retry_s = waits.retry_s
                        refusals.clear()
            self._stopping.wait(
                retry_s * random.uniform(0.5, 1.0)
            )  # so that the boards of a house do not all retry at once
            retry_s = min(2 * retry_s, waits.longest_retry_s)

    def _late(self) -> bool:
        return self._stopping.is_set() and time.monotonic() >= self._deadline

    def _serve(self, connection: Connection, first: Snapshot) -> None:
        """Publish `first`, then changes until the stream ends; raise ConnectionFailed if the connection is lost earlier."""
        name = self._settings.name
        births = discovery.birth_topics(self._options.prefix)
        connection.subscribe({*births, topic(name, "availability"), topic(name, "attributes")})
        sent: dict[str, str | bytes] = {}
        self._greet(connection, first, sent)
        greet_again = False
        while True:
            for message in connection.step():
                online = message.payload == ONLINE.encode()
                if message.topic in births:
                    greet_again |= online and not message.retain
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
        """Publish everything, and the online status last."""
        name = self._settings.name
        connection.publish(discovery.config_topic(name, self._options.prefix), self._config)
        connection.publish(topic(name, "model"), self._model)
        for last in ("picture",) * (not self._options.picture) + ("binary",) * (self._options.binary is None):
            connection.publish(topic(name, last), b"")  # left from an earlier run
        self._publish(connection, snapshot, sent)
        connection.publish(topic(name, "availability"), ONLINE)

    def _publish(self, connection: Connection, snapshot: Snapshot, sent: dict[str, str | bytes]) -> None:
        messages: list[tuple[str, str | bytes]] = []
        image = self._outbox.image()
        if image is not None:
            try:
                self._picture = as_jpeg(image, self._settings.rotation)
            except ImageError:  # the classifier decoded it, but may have skipped a damaged part
                self._picture = None
        if self._picture is not None:
            messages.append(("picture", self._picture))
        messages += values(snapshot, self._names, self._options.binary, self._id, last_check())
        for last, payload in messages:
            if sent.get(last) != payload:
                connection.publish(topic(self._settings.name, last), payload)
                sent[last] = payload

    def _say_goodbye(self, connection: Connection) -> None:
        connection.publish(topic(self._settings.name, "availability"), OFFLINE)
        while not connection.idle and not self._late():
            connection.step()
        connection.close()

    def _check_conflict(self, message: MQTTMessage) -> None:
        if message.retain:
            return
        try:
            other = json.loads(message.payload)["client"]
        except (ValueError, KeyError, TypeError, RecursionError):
            other = None
        if other != self._id and (count := self._conflicts.count()):
            name = self._settings.name
            if not isinstance(other, str) or not re.fullmatch(r"[\w-]{1,64}", other, re.ASCII):
                other = "another program"
            text = f"{other} also publishes as {name!r}, so their states mix: give each device its own name"
            self._events.append(self._event(MqttConflictEvent, message=text, count=count))

    def _event(self, kind: Callable[..., Event], **fields: object) -> Event:
        return kind(ts=time.time(), source=self._source, broker=self._settings.broker.address, **fields)

    def _lost(self, reason: str, message: str, dropped: int) -> Event:
        return self._event(MqttLostEvent, reason=reason, message=message, dropped=dropped)

    def _refused(self, error: ConnectionFailed, refusals: dict[str, Seldom]) -> None:
        if error.reason == STOPPED:
            return
        if error.reason not in refusals:
            refusals.clear()
            refusals[error.reason] = Seldom(AGAIN_S)
        if count := refusals[error.reason].count():
            self._events.append(self._event(MqttRefusedEvent, reason=error.reason, message=str(error), count=count))


def forget(settings: MqttSettings) -> None:
    """Remove a device from Home Assistant, and everything that the broker retains for it; MqttError if that fails."""
    who = client_id(settings.name)
    try:
        with Connection(settings.broker, who, will=None, tls=settings.tls, waits=settings.waits) as connection:
            connection.open(lambda: False)
            connection.publish(discovery.config_topic(settings.name, settings.options.prefix), b"")
            for last in LEVELS:
                connection.publish(topic(settings.name, last), b"")
            while not connection.idle:
                connection.step()
            connection.close()
    except ConnectionFailed as error:
        raise MqttError(f"{settings.broker.address}: {error}.") from None
