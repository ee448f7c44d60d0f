"""One connection to a broker, with paho-mqtt 2."""

import contextlib
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from edgecnn.device.mqtt.address import Broker

UNREACHABLE, NO_ANSWER, TLS, NOT_AUTHORIZED, REFUSED = "unreachable", "no_answer", "tls", "not_authorized", "refused"
CLOSED, GARBAGE, STOPPED = "closed", "garbage", "stopped"
REASONS = (UNREACHABLE, NO_ANSWER, TLS, NOT_AUTHORIZED, REFUSED, CLOSED, GARBAGE)
"""Why a connection failed: the host and port cannot be reached; no answer in time; no TLS, or a rejected certificate; a wrong user or
password; another refusal; the broker closed the connection; it sent data that is not MQTT."""

STEP_S = 0.05  # longest wait for the network before the thread checks what is to be sent

LARGEST = 1 << 16  # largest message accepted from a broker, in bytes

KEPT = (
    3 * LARGEST
)  # bytes kept of a larger packet: enough for the longest topic and a payload that still counts as too large


class ConnectionFailed(Exception):
    """The connection failed or was lost. `reason` is one of REASONS; the text is for people."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Time limits in seconds. A broker that is silent for about twice `keepalive_s` is lost. `retry_s` doubles up to `longest_retry_s`."""

    keepalive_s: int = 15
    answer_s: float = 10.0
    retry_s: float = 1.0
    longest_retry_s: float = 60.0
    steady_s: float = 5.0


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """Return TLS settings that verify certificates and names, with the authorities of the system or a file; may raise OSError."""
    return ssl.create_default_context(cafile=None if ca is None else str(ca))


class _Client(paho.Client):
    """paho's client, limited to KEPT bytes of a packet. paho 2.2 would hold a packet of 256 MB three times.

    Hanging up instead would let anyone who may publish keep this device offline.
    """

    def _sock_recv(self, bufsize: int) -> bytes:
        del self._in_packet["packet"][KEPT:]
        return super()._sock_recv(min(bufsize, LARGEST))


class Connection:
    """A connection for one thread and one use, as a context manager. If paho reconnected by itself, it would resend outdated messages."""

    def __init__(
        self, broker: Broker, client_id: str, *, will: tuple[str, str] | None, tls: ssl.SSLContext | None, waits: Waits
    ) -> None:
        """Prepare a connection without opening it. `will` is the topic and payload that the broker publishes, retained, after a loss."""
        self._broker = broker
        self._waits = waits
        self._accepted = False
        self._failure: ConnectionFailed | None = None
        self._received: list[paho.MQTTMessage] = []
        self._unacknowledged: set[int] = set()
        self._waiting_since = 0.0
        self._client = client = _Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv311, reconnect_on_failure=False
        )
        client.connect_timeout = waits.answer_s
        if will is not None:
            client.will_set(*will, qos=1, retain=True)
        if broker.user is not None:
            client.username_pw_set(broker.user, broker.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        """Close the socket. If `close` was not called, the broker then publishes the will."""
        client = self._client
        client.on_connect = client.on_disconnect = client.on_message = client.on_publish = None
        if (socket := client.socket()) is not None:
            with contextlib.suppress(OSError):
                socket.close()

    def open(self, give_up: Callable[[], bool]) -> None:
        """Connect and wait until the broker accepts. ConnectionFailed if it does not, or if `give_up` returns True (STOPPED)."""
        try:
            self._client.connect(self._broker.host, self._broker.port, self._waits.keepalive_s)
        except ssl.SSLCertVerificationError as error:
            raise ConnectionFailed(TLS, f"the broker's certificate is not accepted: {error.verify_message}") from None
        except TimeoutError:
            raise ConnectionFailed(NO_ANSWER, f"no answer within {self._waits.answer_s:g} s") from None
        except ssl.SSLError as error:
            raise ConnectionFailed(TLS, f"TLS failed ({error.reason or error}); is this a port without TLS?") from None
        except (ConnectionResetError, BrokenPipeError):
            raise self._closed() from None
        except (OSError, UnicodeError) as error:
            raise ConnectionFailed(UNREACHABLE, getattr(error, "strerror", None) or str(error)) from None
        end = time.monotonic() + self._waits.answer_s
        while not self._accepted:
            self.step()
            if self._accepted:
                return
            if give_up():
                raise ConnectionFailed(STOPPED, "the stream ended")
            if time.monotonic() >= end:
                what = f"it accepted the connection but did not answer within {self._waits.answer_s:g} s"
                raise ConnectionFailed(NO_ANSWER, what)

    def step(self, wait_s: float = STEP_S) -> list[paho.MQTTMessage]:
        """Send and receive for at most `wait_s` seconds; return the received messages. Raises ConnectionFailed, also for a late broker."""
        try:
            code = self._client.loop(wait_s)
        except Exception as error:  # noqa: BLE001 - paho fails in many ways on a packet that is not MQTT
            raise ConnectionFailed(GARBAGE, f"the broker sent data that is not MQTT ({type(error).__name__})") from None
        if self._failure is not None:
            raise self._failure
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._lost(code)
        if self._unacknowledged and time.monotonic() - self._waiting_since >= self._waits.answer_s:
            what = f"the broker did not acknowledge a message within {self._waits.answer_s:g} s"
            raise ConnectionFailed(NO_ANSWER, what)
        received, self._received = self._received, []
        return received

    @property
    def idle(self) -> bool:
        return not self._unacknowledged

    def subscribe(self, topics: set[str]) -> None:
        self._client.subscribe([(topic, 0) for topic in sorted(topics)])

    def publish(self, topic: str, payload: str | bytes) -> None:
        """Publish a retained message; an empty one removes the previous message. Raises ConnectionFailed."""
        if self.idle:
            self._waiting_since = time.monotonic()
        data = payload.encode("utf-8", "replace") if isinstance(payload, str) else payload
        info = self._client.publish(topic, data, qos=1, retain=True)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._failure or self._lost(info.rc)
        if not info.is_published():
            self._unacknowledged.add(info.mid)

    def close(self) -> None:
        """Disconnect properly, so that the broker does not publish the will."""
        self._client.disconnect()

    def _lost(self, code: MQTTErrorCode) -> ConnectionFailed:
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            return ConnectionFailed(GARBAGE, "the broker sent data that is not MQTT 3.1.1")
        return self._closed()

    def _closed(self) -> ConnectionFailed:
        what = "the broker closed the connection"
        if not self._accepted:
            what += f" without an answer; is this a port {'without' if self._broker.tls else 'with'} TLS?"
        return ConnectionFailed(CLOSED, what)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        if not code.is_failure:
            self._accepted = True
        elif code.getName() in ("Not authorized", "Bad user name or password"):
            known = self._broker.user is not None
            who = "the user or the password is wrong" if known else "it requires a user and a password"
            self._failure = ConnectionFailed(NOT_AUTHORIZED, f"the broker refused the connection: {who}")
        else:
            self._failure = ConnectionFailed(REFUSED, f"the broker refused the connection: {code.getName().lower()}")

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        if self._failure is None and code.getName() == "Keep alive timeout":
            what = f"the broker was silent for {2 * self._waits.keepalive_s} s"
            self._failure = ConnectionFailed(NO_ANSWER, what)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        if len(message.payload) <= LARGEST:
            self._received.append(message)

    def _on_publish(self, client: Any, userdata: Any, mid: int, code: Any, properties: Any) -> None:
        self._unacknowledged.discard(mid)
        self._waiting_since = time.monotonic()
