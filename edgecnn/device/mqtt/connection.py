"""A link to a broker: paho-mqtt's client connects, reconnects, sends and receives in its own thread, and nothing here waits for it."""

import random
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edgecnn.device.address import Broker

UNREACHABLE, NO_ANSWER, TLS, NOT_AUTHORIZED, REFUSED = "unreachable", "no_answer", "tls", "not_authorized", "refused"
CLOSED, GARBAGE, STOPPED = "closed", "garbage", "stopped"
REASONS = (UNREACHABLE, NO_ANSWER, TLS, NOT_AUTHORIZED, REFUSED, CLOSED, GARBAGE)
"""Why a connection failed: the host and port cannot be reached; no answer in time; no TLS, or a rejected certificate; a wrong user or
password; another refusal; the broker closed the connection; it sent data that is not MQTT."""

LARGEST = 1 << 16  # largest message accepted from a broker, in bytes

KEPT = (
    3 * LARGEST
)  # bytes kept of a larger packet: enough for the longest topic and a payload that still counts as too large

MOST_NEWS = 64


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Time limits in seconds. A broker that is silent for about twice `keepalive_s` is lost; `answer_s` is for opening a connection.

    `retry_s` doubles up to `longest_retry_s`, and begins again after a connection of `steady_s`.
    """

    keepalive_s: int = 15
    answer_s: float = 10.0
    retry_s: float = 1.0
    longest_retry_s: float = 60.0
    steady_s: float = 5.0


class News(NamedTuple):
    """The link is open (`reason` is ""), was lost, or could not be opened. `reason` is one of REASONS, `text` is for people.

    `after_s` and `attempts` are the time and the attempts since the start or the loss.
    """

    reason: str
    text: str
    lost: bool
    after_s: float = 0.0
    attempts: int = 0


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Return TLS settings that verify certificates and names, with the authorities of the system or a file; may raise OSError."""
    return ssl.create_default_context(cafile=None if ca is None else str(ca))


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
        waits: Waits,
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
        self._broker, self._waits, self._topics, self._receive = broker, waits, sorted(topics), receive
        self._unacknowledged: list[paho.MQTTMessageInfo] = []
        self._opened: float | None = None
        self._since, self._attempts, self._retry_s = time.monotonic(), 0, waits.retry_s
        self._refused = False
        self._stopping, self._ended = False, threading.Event()
        self._client = client = _Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv311)
        client.connect_timeout = waits.answer_s
        if will is not None:
            client.will_set(*will, qos=1, retain=True)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.on_connect, client.on_connect_fail = self._on_connect, self._on_connect_fail
        client.on_disconnect, client.on_message = self._on_disconnect, self._on_message

    def start(self) -> None:
        """Connect in paho's thread, as often as necessary."""
        self._pace()
        self._client.connect_async(self._broker.host, self._broker.port, self._waits.keepalive_s)
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
        """Wait no longer for the messages of an earlier connection."""
        self._unacknowledged.clear()

    def stop(self, wait_s: float = 0.0) -> None:
        """Disconnect properly, so that the broker does not publish the will; wait for the end of the connection for at most `wait_s`."""
        self._stopping = True
        if self._client.disconnect() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._ended.wait(wait_s)

    # the methods below run in paho's thread

    def _pace(self) -> None:
        """Set the wait before the next attempt. It is random, so that the boards of a house do not all retry at once."""
        self._client.reconnect_delay_set(self._retry_s * random.uniform(0.5, 1.0), self._waits.longest_retry_s)

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
                self._tell(NO_ANSWER, f"no answer within {self._waits.answer_s:g} s")
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
            self._tell(NO_ANSWER, f"the broker was silent for {times * self._waits.keepalive_s} s")
        elif code.getName() == "Protocol error":
            self._tell(GARBAGE, "the broker sent data that is not MQTT 3.1.1")
        else:
            self._tell(CLOSED, self._closed())
        if self._opened is not None:
            now = time.monotonic()
            steady = now - self._opened >= self._waits.steady_s
            self._retry_s = self._waits.retry_s if steady else min(2 * self._retry_s, self._waits.longest_retry_s)
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
