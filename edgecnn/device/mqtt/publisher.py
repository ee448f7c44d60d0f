"""The Consumer that publishes a stream's state. It never waits for the broker: paho's thread talks to it."""

import json
import re
import secrets
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from paho.mqtt.client import MQTTMessage

from edgecnn.device.address import Broker
from edgecnn.device.mqtt.connection import STOPPED, Link, News, Waits, tls_context
from edgecnn.device.mqtt.messages import (
    LEVELS,
    OFFLINE,
    ONLINE,
    Outbox,
    Snapshot,
    birth_topics,
    config_topic,
    discovery_config,
    state_names,
    topic,
    values,
)
from edgecnn.device.stream.events import (
    CameraBackEvent,
    CameraLostEvent,
    CameraOpenedEvent,
    Event,
    FrameResult,
    MqttConflictEvent,
    MqttConnectedEvent,
    MqttLostEvent,
    MqttRefusedEvent,
    RateLimiter,
    StateChangedEvent,
)
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.pictures import as_jpeg
from edgecnn.device.stream.settings import Mqtt
from edgecnn.device.update import last_check
from edgecnn.errors import ImageError, MqttError

AGAIN_S = 600.0

WAIT_S = 0.01  # how often the end of a stream looks for the broker's answers

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
        self._config = discovery_config(settings.name, model, self._names, options)
        self._id = client_id(settings.name)
        self._outbox = outbox or Outbox()
        self._source = ""
        self._now = Snapshot()
        self._result: FrameResult | None = None
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._conflicts = RateLimiter(AGAIN_S)
        self._refusals: dict[str, RateLimiter] = {}
        self._picture: bytes | None = None
        self._first: Snapshot | None = None  # what to publish first on a new connection
        self._sent: dict[str, str | bytes] = {}
        self._connected = self._started = self._greet_again = False
        own = topic(settings.name, "availability")
        self._births = birth_topics(options.prefix)
        self._link = Link(
            settings.broker, self._id, settings.waits, settings.tls,
            will=(own, OFFLINE), topics={*self._births, own, topic(settings.name, "attributes")}, receive=self._receive,
        )  # fmt: skip

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
        """Begin to connect on the first call. Publish what is due, and return the connection's events."""
        if not self._started:
            self._started = True
            self._link.start()
        if self._connected and self._link.idle:
            self._outbox.delivered()
        while self._link.news:
            self._follow(self._link.news.popleft())
        if self._connected and self._link.idle:
            first, self._first = self._first, None
            if first or self._greet_again:
                self._greet(first or self._outbox.latest)
            elif (snapshot := self._outbox.next()) is not None:
                self._publish(snapshot)
        return [self._events.popleft() for _ in range(len(self._events))]

    def finish(self, wait_s: float) -> list[Event]:
        """Publish the waiting changes, then the offline status, within `wait_s` seconds; if 0, do not wait."""
        if not self._started:
            return []
        end = time.monotonic() + wait_s
        events = self.poll()
        while not (self._connected and self._outbox.empty and self._link.idle):
            if self._link.failed or time.monotonic() >= end:
                break
            time.sleep(WAIT_S)
            events += self.poll()
        if self._connected:
            self._link.publish(topic(self._settings.name, "availability"), OFFLINE)
            while not self._link.idle and not self._link.failed and time.monotonic() < end:
                time.sleep(WAIT_S)
        self._link.stop(max(0.0, end - time.monotonic()))
        self._connected = False
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

    def _follow(self, news: News) -> None:
        """Report what happened to the connection; a new one begins with everything."""
        self._connected = not news.reason
        self._link.forget_messages()
        if self._connected:
            self._first, dropped = self._outbox.connected(), self._outbox.dropped()
            self._events.append(
                self._event(MqttConnectedEvent, after_s=news.after_s, attempts=news.attempts, dropped=dropped)
            )
            return
        self._outbox.disconnected()
        if news.lost:
            self._refusals.clear()
            self._events.append(self._lost(news.reason, news.text, self._outbox.dropped()))
            return
        if news.reason not in self._refusals:
            self._refusals = {news.reason: RateLimiter(AGAIN_S)}
        if count := self._refusals[news.reason].count():
            self._events.append(self._event(MqttRefusedEvent, reason=news.reason, message=news.text, count=count))

    def _greet(self, snapshot: Snapshot) -> None:
        """Publish everything, and the online status last."""
        name, self._greet_again = self._settings.name, False
        self._sent.clear()
        self._link.publish(config_topic(name, self._options.prefix), self._config)
        self._link.publish(topic(name, "model"), self._model)
        for last in ("picture",) * (not self._options.picture) + ("binary",) * (self._options.binary is None):
            self._link.publish(topic(name, last), b"")  # left from an earlier run
        self._publish(snapshot)
        self._link.publish(topic(name, "availability"), ONLINE)

    def _publish(self, snapshot: Snapshot) -> None:
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
            if self._sent.get(last) != payload:
                self._link.publish(topic(self._settings.name, last), payload)
                self._sent[last] = payload

    def _receive(self, message: MQTTMessage) -> None:
        """Note, in paho's thread, what other programs publish."""
        online = message.payload == ONLINE.encode()
        if message.topic in self._births:
            self._greet_again |= online and not message.retain
        elif message.topic == topic(self._settings.name, "availability"):
            self._greet_again |= not online  # an earlier connection's will
        else:
            self._check_conflict(message)

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


def forget(settings: MqttSettings) -> None:
    """Remove a device from Home Assistant, and everything that the broker retains for it; MqttError if that fails."""
    link = Link(settings.broker, client_id(settings.name), settings.waits, settings.tls)
    link.start()
    end = time.monotonic() + 2 * settings.waits.answer_s
    topics = [config_topic(settings.name, settings.options.prefix)]
    topics += [topic(settings.name, last) for last in LEVELS]
    text = f"no answer within {2 * settings.waits.answer_s:g} s"
    connected = False
    while time.monotonic() < end and not (connected and link.idle):
        if link.news:
            if (news := link.news.popleft()).reason:
                text = news.text
                break
            connected = True
            for name in topics:
                link.publish(name, b"")
        time.sleep(WAIT_S)
    done = connected and link.idle and not link.failed
    link.stop(settings.waits.answer_s if done else 0.0)
    if not done:
        raise MqttError(f"{settings.broker.address}: {text}.")
