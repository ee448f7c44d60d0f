"""A fake of paho's client, a hostile port, mosquitto as a process, and a publisher that tests feed by hand."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import MappingProxyType, SimpleNamespace

import pytest

from edgecnn.device.address import Broker
from edgecnn.device.stream.events import (
    CameraBackEvent,
    CameraLostEvent,
    CameraOpenedEvent,
    FrameResult,
    StateChangedEvent,
)
from edgecnn.runtime.decision import Score

LONG = 20.0
"""How long a test waits for something that comes soon, even on a busy machine."""

QUICK = {"KEEPALIVE_S": 1, "ANSWER_S": 0.5, "RETRY_S": 0.05, "LONGEST_RETRY_S": 0.2, "STEADY_S": 0.0}


FED = []
"""The publishers of the current test: a stream polls its own at least every tenth of a second."""


def wait_for(condition, what="it", wait_s=LONG):
    """Wait until a condition is true; return its value."""
    deadline = time.monotonic() + wait_s
    while not (value := condition()):
        for fed in FED:
            fed.poll()
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)
    return value


@pytest.fixture
def eventually():
    """Wait until a condition is true, and return its value: `eventually(lambda: …, "what")`."""
    return wait_for


def reason(packet, name):
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.reasoncodes import ReasonCode

    return ReasonCode(getattr(PacketTypes, packet), name)


class Fake:
    """Stands for paho's client. A test says what the broker does, and paho's callbacks run at once. A `mute` broker acknowledges nothing.

    `messages` holds everything published, as (topic, payload); `retained` is what a later subscriber would get.
    """

    def __init__(self, version, client_id, **options):
        self.name = client_id
        self.user, self.will, self.topics, self.delays = None, None, [], []
        self.messages, self.retained, self.infos = [], {}, []
        self.mute = self.started = self.connected = False
        self.goodbyes = 0

    def username_pw_set(self, user, password):
        self.user = user, password

    def will_set(self, topic, payload, qos, retain):
        self.will = topic, payload, qos, retain

    def reconnect_delay_set(self, shortest, longest):
        self.delays.append((shortest, longest))

    def connect_async(self, host, port, keepalive):
        self.address = host, port, keepalive

    def loop_start(self):
        self.started = True

    def subscribe(self, topics):
        self.topics += topics

    def publish(self, topic, payload, qos, retain):
        assert qos == 1 and retain and self.connected
        self.messages.append((topic, payload))
        self.retained[topic] = payload
        self.infos.append(SimpleNamespace(rc=0, done=not self.mute))
        self.infos[-1].is_published = lambda info=self.infos[-1]: info.done
        return self.infos[-1]

    def disconnect(self):
        if not self.connected:
            return 4  # MQTT_ERR_NO_CONN
        self.goodbyes += 1
        self.drop("Success")
        return 0

    def accept(self):
        self.connected = True
        self.on_connect(self, None, None, reason("CONNACK", "Success"), None)

    def refuse(self, why="Server unavailable"):
        self.on_connect(self, None, None, reason("CONNACK", why), None)
        self.drop()

    def fail(self, error):
        try:
            raise error
        except OSError:
            self.on_connect_fail(self, None)

    def drop(self, why="Unspecified error"):
        self.connected = False
        self.on_disconnect(self, None, None, reason("DISCONNECT", why), None)

    def acknowledge(self):
        for info in self.infos:
            info.done = True

    def send(self, topic, payload, retain=False):
        self.on_message(self, None, SimpleNamespace(topic=topic, payload=payload, retain=retain))

    def payloads(self, last):
        """The payloads published on a topic of the device, in order."""
        return [
            payload.decode() if isinstance(payload, bytes) else payload
            for topic, payload in self.messages
            if topic == f"edgecnn/door/{last}"
        ]


@pytest.fixture
def fake(monkeypatch, feed):
    """Make a publisher fed by hand whose `broker` is a Fake: `fake(picture=True)`."""

    def make(**options):
        with monkeypatch.context() as patch:
            patch.setattr("edgecnn.device.mqtt.publisher._Client", Fake)
            fed = feed(1883, **options)
        fed.broker = fed.publisher._link._client
        return fed

    return make


class Hostile:
    """A port that answers the first packet of each connection with `answer`, and records what it reads. It acknowledges nothing."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.answer, self.received, self.client = b"", [], None
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                self.client, _ = self.socket.accept()
                self.received.append(b"")
                with self.client as client, contextlib.suppress(OSError):
                    while data := client.recv(1 << 16):
                        if not self.received[-1]:
                            client.sendall(self.answer)
                        self.received[-1] += data

    def drop(self):
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # this also ends `accept`
        self.socket.close()
        if self.client is not None:
            self.drop()


@pytest.fixture
def hostile():
    port = Hostile()
    yield port
    port.close()


class Fed:
    """A publisher fed by hand like by a stream, and the events that it returned."""

    def __init__(self, publisher):
        self.publisher = publisher
        self.events = []
        self.seq = 0
        self.state = None
        self.camera("opened")

    def camera(self, what):
        common = {"ts": 0.0, "source": "camera"}
        event = {
            "opened": CameraOpenedEvent(about="a fake", live=True, **common),
            "back": CameraBackEvent(about="a fake", after_s=1.0, attempts=1, **common),
            "lost": CameraLostEvent(reason="stall", message="no frame", **common),
        }[what]
        self.give(event)
        if what == "lost":
            self.changed(None, None, "camera_lost", None)

    def frame(self, decision, score=0.75, image=b"", state=None):
        """Feed a frame's result, and a change of the state if it differs; the state is the decision by default."""
        self.seq += 1
        state = state or decision
        changed, self.state = self.state != state, state
        top = (Score(decision, 0, score), Score("other", 1, 1 - score))
        reason = {"abstain": "below_threshold", "stranger": "unfamiliar"}.get(decision)
        self.give(
            FrameResult(
                seq=self.seq, ts=1.8e9, age_ms=1.0, source="camera", image=image, top=top, decision=decision,
                reason=reason, lead=0.5, state=state,
                state_since=1.8e9, latency_ms={}, dropped=0,
            )
        )  # fmt: skip
        if changed:
            self.changed(state, score, reason, self.seq)

    def changed(self, state, score, reason, seq):
        self.state = state
        self.give(
            StateChangedEvent(ts=0.0, source="camera", state=state, previous=None, score=score, reason=reason, seq=seq)
        )

    def give(self, item):
        assert not list(self.publisher.take(item))
        self.poll()

    def poll(self):
        self.events += self.publisher.poll()
        return self.events

    def until(self, kind, count=1):
        """Wait for events of a kind; return the last."""
        wait_for(lambda: [event.kind for event in self.poll()].count(kind) >= count, kind)
        return [event for event in self.events if event.kind == kind][-1]

    def finish(self, wait_s=LONG):
        self.events += self.publisher.finish(wait_s)


@pytest.fixture
def feed(monkeypatch):
    """Make a publisher fed by hand: `feed(port, picture=True)`. `more` describes the broker: `tls=True`."""
    from edgecnn.device.mqtt import publisher
    from edgecnn.device.mqtt.publisher import MqttSettings, Publisher
    from edgecnn.device.stream.settings import Mqtt

    FED.clear()

    def make(port, *, labels=("cat", "dog"), waits=QUICK, rotation=0, more=MappingProxyType({}), **options):
        broker = Broker(**{"host": "127.0.0.1", "port": port, "tls": False, **more})
        for name, value in waits.items():
            monkeypatch.setattr(publisher, name, value)
        settings = MqttSettings(broker=broker, name="door", options=Mqtt(**options), rotation=rotation)
        FED.append(Fed(Publisher(settings, labels=labels, model="pets")))
        return FED[-1]

    yield make
    for fed in FED:
        fed.publisher.finish(0)
    FED.clear()
    wait_for(lambda: not connected(), "the end of each connection")


def connected():
    """Return the threads of publishers that are still running."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("paho-mqtt-client-edgecnn")]


@dataclasses.dataclass
class Mosquitto:
    """Debian's broker, as a process that can be killed, restarted and frozen."""

    folder: os.PathLike
    spawn: object
    port: int
    lines: tuple = ("allow_anonymous true",)
    process: object = None

    def start(self):
        path = self.folder / "mosquitto.conf"
        path.write_text("\n".join([f"listener {self.port} 127.0.0.1", *self.lines, "user root", ""]))
        with (self.folder / "mosquitto.log").open("a") as log:
            self.process = self.spawn(["mosquitto", "-v", "-c", str(path)], stdout=log, stderr=log)
        wait_for(self.listens, "mosquitto's start")
        return self

    def listens(self):
        assert self.process.poll() is None, (self.folder / "mosquitto.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self, frozen):
        os.kill(self.process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)


@pytest.fixture
def mosquitto(tmp_path, spawn, free_port):
    """Start mosquitto with these lines of configuration: `mosquitto("allow_anonymous true")`."""

    def make(*lines):
        return Mosquitto(tmp_path, spawn, free_port(), lines=lines or ("allow_anonymous true",)).start()

    return make


@pytest.fixture
def password_file(tmp_path):
    """Add a user to mosquitto's passwords: `password_file("ann", "open sesame")`; return the line of its configuration."""

    def add(user, password):
        path = tmp_path / "passwords"
        path.touch(mode=0o600, exist_ok=True)
        subprocess.run(["mosquitto_passwd", "-b", path, user, password], check=True, capture_output=True)
        return f"password_file {path}"

    return add


class Watcher:
    """A client that records the content of each topic on a broker, and all messages in order."""

    def __init__(self, port, **options):
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.now, self.messages = {}, []
        self.client = Client(CallbackAPIVersion.VERSION2)
        if "user" in options:
            self.client.username_pw_set(options["user"], options["password"])
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe("#", 1)
        self.client.on_message = self.keep
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def keep(self, client, data, message):
        self.now[message.topic] = message.payload
        self.messages.append((message.topic, message.payload))

    def until(self, last, payload):
        wait_for(lambda: self.now.get(f"edgecnn/door/{last}") == payload, f"{last} {payload!r}")

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def watch():
    watchers = []

    def make(port, **options):
        watchers.append(Watcher(port, **options))
        return watchers[-1]

    yield make
    for watcher in watchers:
        watcher.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate authority, and a broker's certificate for localhost: ca.pem, cert.pem and key.pem in a folder."""
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"]
    openssl("req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=authority")
    openssl(
        "req", "-x509", *key, "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-keyout", "key.pem", "-out", "cert.pem",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
        "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    return folder


class Device:
    """`edgecnn classify watch:inbox --mqtt …` as a process that is given digits."""

    def __init__(self, process, inbox, digits, lines):
        self.process, self.inbox, self.digits, self.lines = process, inbox, digits, lines
        self.shown = 0

    def show(self, label):
        self.shown += 1
        path = self.inbox / f".{self.shown}.png"
        self.digits[label].save(path)
        path.rename(self.inbox / f"{self.shown}.png")

    def parsed(self):
        """The JSON lines so far."""
        lines = self.lines.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def events(self, kind):
        return [line for line in self.parsed() if line.get("event") == kind]

    def until(self, kind, count=1, wait_s=LONG):
        return wait_for(lambda: self.events(kind)[count - 1 :], kind, wait_s)[0]


@pytest.fixture
def device(root, tmp_path, spawn, digits):
    """Start a device: `device("mqtt://localhost:1883/door", "--mqtt-picture", EDGECNN_MQTT_USER="ann")`."""

    def start(address, *options, source=None, **variables):
        inbox = tmp_path / "inbox"
        inbox.mkdir(exist_ok=True)
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        bundle = root / "models" / "digits" / "digits.edgecnn"
        command = ["classify", source or f"watch:{inbox}", "--json", "--model", bundle, "--mqtt", address, *options]
        count = len(list(tmp_path.glob("lines-*")))
        lines = tmp_path / f"lines-{count}"
        with lines.open("wb") as out, (tmp_path / f"notes-{count}").open("wb") as notes:
            process = spawn(
                [sys.executable, "-m", "edgecnn", *map(str, command)],
                stdout=out, stderr=notes, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, **variables},
            )  # fmt: skip
        return Device(process, inbox, digits, lines)

    return start
