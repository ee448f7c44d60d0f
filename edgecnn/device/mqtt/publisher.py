"""The Consumer that publishes a stream's state, and its link to a broker, for which nothing here waits: paho's thread talks to it."""

import json
import math
import random
import re
import secrets
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edgecnn.device.address import Broker
from edgecnn.device.mqtt.messages import (
    LEVELS,
    OFFLINE,
    ONLINE,
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
from edgecnn.runtime.decision import Score

UNREACHABLE, NO_ANSWER, TLS, NOT_AUTHORIZED, REFUSED = "unreachable", "no_answer", "tls", "not_authorized", "refused"
CLOSED, GARBAGE, STOPPED = "closed", "garbage", "stopped"
REASONS = (UNREACHABLE, NO_ANSWER, TLS, NOT_AUTHORIZED, REFUSED, CLOSED, GARBAGE)
"""Why a connection failed: the host and port cannot be reached; no answer in time; no TLS, or a rejected certificate; a wrong user or
password; another refusal; the broker closed the connection; it sent data that is not MQTT."""

LARGEST = 1 << 16  # largest message accepted from a broker, in bytes

# bytes kept of a larger packet: enough for the longest topic and a payload that still counts as too large
KEPT = 3 * LARGEST

MOST_NEWS = 64


KEEPALIVE_S = 15  # a broker that is silent for about twice this is lost
ANSWER_S = 10.0  # for opening a connection

RETRY_S, LONGEST_RETRY_S, STEADY_S = 1.0, 60.0, 5.0
"""The wait before another attempt doubles up to the longest, and begins again after a connection of STEADY_S."""


class News(NamedTuple):
    """The link is open (`reason` is ""), was lost, or could not be opened. `reason` is one of REASONS, `text` is for people.

    `after_s` and `attempts` are the time and the attempts since the start or the loss.
    """

    reason: str
    text: str
    lost: bool
    after_s: float = 0.0
    attempts: int = 0


class _Client(paho.Client):
    """paho's client, with three changes.

    It keeps at most KEPT bytes of a packet: paho 2.2 would hold a packet of 256 MB three times, and hanging up instead would let anyone
    who may publish keep this device offline. A packet that is not MQTT ends the connection, not paho's thread. A new connection does not
    send the outdated messages of the one before.
    """

    def _sock_recv(self, bufsize: int) -> bytes:
        del self._in_packet["packet"][KEPT:]
        return super()._sock_recv(min(bufsize, LARGEST))

    def _packet_handle(self) -> MQTTErrorCode:
        try:
            return super()._packet_handle()
        except Exception:  # noqa: BLE001 - paho fails in many ways on a packet that is not MQTT
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _messages_reconnect_reset_out(self) -> None:
        with self._out_message_mutex:
            self._out_messages.clear()
            self._inflight_messages = 0


class Link:
    """A connection that paho keeps open from `start` to `stop`. `news` has what happened to it since the caller last emptied it."""

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        tls: ssl.SSLContext | None,
        *,
        will: tuple[str, str] | None = None,
        topics: Iterable[str] = (),
        receive: Callable[[paho.MQTTMessage], object] = bool,
    ) -> None:
        """Prepare a link. `will` is the topic and payload that the broker publishes, retained, after a loss.

        paho's thread passes messages on `topics` to `receive`, which must not raise.
        """
        self.news: deque[News] = deque(maxlen=MOST_NEWS)
        self.failed = False  # the newest attempt failed, or the connection is lost
        self._broker, self._topics, self._receive = broker, sorted(topics), receive
        self._unacknowledged: list[paho.MQTTMessageInfo] = []
        self._opened: float | None = None
        self._since, self._attempts, self._retry_s = time.monotonic(), 0, RETRY_S
        self._refused = False
        self._stopping, self._ended = False, threading.Event()
        self._client = client = _Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv311)
        client.connect_timeout = ANSWER_S
        if will is not None:
            client.will_set(*will, qos=1, retain=True)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.on_connect, client.on_connect_fail = self._on_connect, self._on_connect_fail
        client.on_disconnect, client.on_message = self._on_disconnect, self._on_message

    def start(self) -> None:
        self._pace()
        self._client.connect_async(self._broker.host, self._broker.port, KEEPALIVE_S)
        self._client.loop_start()

    def publish(self, topic: str, payload: str | bytes) -> None:
        """Send a retained message if the link is open; an empty one removes the previous message."""
        data = payload.encode("utf-8", "replace") if isinstance(payload, str) else payload
        self._unacknowledged.append(self._client.publish(topic, data, qos=1, retain=True))

    @property
    def idle(self) -> bool:
        """Whether the broker has acknowledged all messages of this connection."""
        self._unacknowledged = [info for info in self._unacknowledged if info.rc or not info.is_published()]
        return not self._unacknowledged

    def forget_messages(self) -> None:
        self._unacknowledged.clear()

    def stop(self, wait_s: float = 0.0) -> None:
        """Disconnect properly, so that the broker does not publish the will; wait for the end of the connection for at most `wait_s`."""
        self._stopping = True
        if self._client.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._ended.wait(wait_s)

    # the methods below run in paho's thread

    def _pace(self) -> None:
        """Set the wait before the next attempt. It is random, so that the boards of a house do not all retry at once."""
        self._client.reconnect_delay_set(self._retry_s * random.uniform(0.5, 1.0), LONGEST_RETRY_S)

    def _tell(self, reason: str, text: str) -> None:
        lost, self.failed = self._opened is not None, True
        if not lost:
            self._attempts += 1
        self.news.append(News(reason, text, lost))

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        if self._stopping:
            client.disconnect()
        elif not code.is_failure:
            if self._topics:
                client.subscribe([(topic, 0) for topic in self._topics])
            self._opened, self.failed = time.monotonic(), False
            self.news.append(News("", "", False, round(self._opened - self._since, 3), self._attempts + 1))
            self._attempts = 0
        else:
            self._refused = True  # the end of this connection is no second piece of news
            if code.getName() in ("Not authorized", "Bad user name or password"):
                known = self._broker.user is not None
                who = "the user or the password is wrong" if known else "it requires a user and a password"
                self._tell(NOT_AUTHORIZED, f"the broker refused the connection: {who}")
            else:
                self._tell(REFUSED, f"the broker refused the connection: {code.getName().lower()}")

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        if self._stopping:
            client.disconnect()
        match sys.exception():
            case ssl.SSLCertVerificationError() as error:
                self._tell(TLS, f"the broker's certificate is not accepted: {error.verify_message}")
            case TimeoutError():
                self._tell(NO_ANSWER, f"no answer within {ANSWER_S:g} s")
            case ssl.SSLError() as error:
                self._tell(TLS, f"TLS failed ({error.reason or error}); is this a port without TLS?")
            case ConnectionResetError() | BrokenPipeError():
                self._tell(CLOSED, self._closed())
            case error:
                self._tell(UNREACHABLE, getattr(error, "strerror", None) or str(error))

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        if self._stopping:
            self._ended.set()
        elif self._refused:
            self._refused = False
        elif code.getName() == "Keep alive timeout":
            times = 1 if self._opened is None else 2
            self._tell(NO_ANSWER, f"the broker was silent for {times * KEEPALIVE_S} s")
        elif code.getName() == "Protocol error":
            self._tell(GARBAGE, "the broker sent data that is not MQTT 3.1.1")
        else:
            self._tell(CLOSED, self._closed())
        if self._opened is not None:
            now = time.monotonic()
            steady = now - self._opened >= STEADY_S
            self._retry_s = RETRY_S if steady else min(2 * self._retry_s, LONGEST_RETRY_S)
            self._opened, self._since = None, now
            self._pace()

    def _closed(self) -> str:
        what = "the broker closed the connection"
        if self._opened is None:
            what += f" without an answer; is this a port {'without' if self._broker.tls else 'with'} TLS?"
        return what

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        if len(message.payload) <= LARGEST:
            self._receive(message)


AGAIN_S = 600.0

WAIT_S = 0.01  # how often the end of a stream looks for the broker's answers

MOST_EVENTS = 64

MOST_WAITING = 64  # maximum number of changes that wait during a connection; without one, only the newest waits

REFRESH_S = 10.0  # minimum time between two messages for a new score without a new state

LONGEST_ID = 23  # characters of a client identifier that every broker accepts (MQTT 3.1.1, section 3.1.3.1)


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """The broker, the device's `name` and what to publish. OSError if the authorities' file has no PEM certificate.

    `tls` verifies certificates and names, with the authorities of the system or of that file.
    """

    broker: Broker
    name: str
    options: Mqtt = field(default_factory=Mqtt)
    rotation: int = 0
    tls: ssl.SSLContext | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.broker.tls:
            object.__setattr__(self, "tls", ssl.create_default_context(cafile=self.options.ca))


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
        self._source = ""
        self._now = Snapshot()  # the newest change, with the scores that were sent last
        self._waiting: deque[Snapshot] = deque()
        self._sending: Snapshot | None = None  # sent, but not acknowledged
        self._dropped = 0
        self._scored: tuple[str | None, tuple[Score, ...]] = (None, ())
        self._refreshed = -math.inf
        self._image: bytes | np.ndarray | None = None
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
            settings.broker, self._id, settings.tls,
            will=(own, OFFLINE), topics={*self._births, own, topic(settings.name, "attributes")}, receive=self._receive,
        )  # fmt: skip

    def take(self, item: Item) -> Iterable[Event]:
        self._source = item.source
        match item:
            case FrameResult():
                self._result = item
                if item.decision == item.state:
                    self._scored = (item.state, item.top)
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
            self._sending = None
        while self._link.news:
            self._follow(self._link.news.popleft())
        if self._connected and self._link.idle:
            first, self._first = self._first, None
            if first or self._greet_again:
                self._greet(first or self._newest)
            elif (snapshot := self._next()) is not None:
                self._publish(snapshot)
        return [self._events.popleft() for _ in range(len(self._events))]

    def finish(self, wait_s: float) -> list[Event]:
        """Publish the waiting changes, then the offline status, within `wait_s` seconds; if 0, do not wait."""
        if not self._started:
            return []
        end = time.monotonic() + wait_s
        events = self.poll()
        while self._waiting or self._sending or not (self._connected and self._link.idle):
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
        unsent = [snapshot for snapshot in (self._sending, *self._waiting) if snapshot and snapshot.state is not None]
        self._dropped += len(unsent)
        if wait_s and self._dropped:
            events.append(self._lost(STOPPED, "the stream ended before everything was sent"))
        return events

    def _change(self, now: Snapshot, image: bytes | np.ndarray | None = None) -> None:
        self._now = now
        self._waiting.append(now)
        if image is not None:
            self._image = image
        self._limit()

    def _limit(self) -> None:
        """Drop the oldest of too many changes. Only a state that differs from the next counts."""
        while len(self._waiting) > (MOST_WAITING if self._connected else 1):
            state = self._waiting.popleft().state
            self._dropped += state is not None and state != self._waiting[0].state

    @property
    def _newest(self) -> Snapshot:
        """The newest change, with the scores of the newest frame whose decision is its state."""
        state, top = self._scored
        return replace(self._now, top=top) if state is not None and state == self._now.state else self._now

    def _next(self) -> Snapshot | None:
        """Return the next change or, from time to time, the newest scores; None if nothing is due."""
        now, newest = time.monotonic(), self._newest
        if self._waiting:
            self._sending, self._refreshed = self._waiting.popleft(), now
            return self._sending
        early = bool(self._now.top) and now - self._refreshed < REFRESH_S
        if early or newest.top == self._now.top:
            return None
        self._now, self._refreshed = newest, now
        return newest

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
            self._sending = self._waiting[-1] if self._waiting else None  # the snapshot that comes first replaces all
            self._waiting.clear()
            self._first = self._now = self._newest
            self._refreshed = time.monotonic()
            about = {"after_s": news.after_s, "attempts": news.attempts, "dropped": self._taken()}
            self._events.append(self._event(MqttConnectedEvent, **about))
            return
        if self._sending is not None:
            self._waiting.appendleft(self._sending)
            self._sending = None
        self._limit()
        if news.lost:
            self._refusals.clear()
            self._events.append(self._lost(news.reason, news.text))
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
        image, self._image = self._image, None
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

    def _lost(self, reason: str, message: str) -> Event:
        return self._event(MqttLostEvent, reason=reason, message=message, dropped=self._taken())

    def _taken(self) -> int:
        """Return how many states were dropped since the last event with their number."""
        dropped, self._dropped = self._dropped, 0
        return dropped


def forget(settings: MqttSettings) -> None:
    """Remove a device from Home Assistant, and everything that the broker retains for it; MqttError if that fails."""
    link = Link(settings.broker, client_id(settings.name), settings.tls)
    link.start()
    end = time.monotonic() + 2 * ANSWER_S
    topics = [config_topic(settings.name, settings.options.prefix)]
    topics += [topic(settings.name, last) for last in LEVELS]
    text = f"no answer within {2 * ANSWER_S:g} s"
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
    link.stop(ANSWER_S if done else 0.0)
    if not done:
        raise MqttError(f"{settings.broker.address}: {text}.")
