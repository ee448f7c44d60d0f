"""Real brokers, the service, and Home Assistant."""

import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")
pytest.importorskip("starlette", reason="the page needs the http extra")

import jsonschema

from edgecnn.bundle.file import read_bundle, write_bundle
from edgecnn.device.mqtt.messages import state_names
from edgecnn.device.slots.store import Store, Use
from edgecnn.device.system import HTTP, MQTT
from edgecnn.errors import MqttError
from edgecnn.runtime.default import shipped_bundle
from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)


@pytest.mark.needs("mosquitto")
def test_the_state_is_on_the_broker_and_the_will_when_the_program_dies(device, mosquitto, watch, schema_of):
    broker = mosquitto()
    watcher = watch(broker.port)
    board = device(f"mqtt://127.0.0.1:{broker.port}/door", "--mqtt-picture", "--mqtt-binary", "1")
    watcher.until("availability", b"online")
    for label in ("9", "1"):
        board.show(label)
        watcher.until("state", label.encode())
    assert watcher.now["edgecnn/door/binary"] == b"ON"
    assert Image.open(io.BytesIO(watcher.now["edgecnn/door/picture"])).format == "JPEG"
    assert json.loads(watcher.now["homeassistant/device/edgecnn_door/config"])["device"]["model"] == "digits"
    board.process.kill()
    watcher.until("availability", b"offline")
    again = device(f"mqtt://127.0.0.1:{broker.port}/door")
    watcher.until("availability", b"online")
    watcher.until("state", b"None")
    again.show("9")
    watcher.until("state", b"9")
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(20) == 143
    watcher.until("availability", b"offline")
    validator = jsonschema.Draft202012Validator(schema_of("result"))
    for line in again.parsed():
        validator.validate(line)
    assert [line["event"] for line in again.parsed() if "event" in line][-1] == "ended"


@pytest.mark.needs("mosquitto")
def test_a_normal_end_says_goodbye(device, mosquitto, watch):
    broker = mosquitto()
    watcher = watch(broker.port)
    board = device(f"mqtt://127.0.0.1:{broker.port}/door", source="synthetic:8x8?frames=50")
    assert board.process.wait(60) == 0
    watcher.until("availability", b"offline")
    states = [line["state"] for line in board.events("state_changed")]
    watcher.until("state", states[-1].encode())
    assert board.events("mqtt_connected") and not board.events("mqtt_lost")


@pytest.mark.needs("mosquitto")
@pytest.mark.needs("mosquitto_passwd", package="mosquitto")
def test_who_may_connect(device, feed, mosquitto, watch, password_file, tmp_path, eventually):
    broker = mosquitto("allow_anonymous false", password_file("ann", "open sesame"))
    for who, text in (({"user": "ann", "password": "no"}, "the user or the password"), ({}, "requires a user")):
        refused = feed(broker.port, more=who).until("mqtt_refused")
        assert refused.reason == "not_authorized" and text in refused.message
    board = device(
        f"mqtt://127.0.0.1:{broker.port}/door", "--on-change", "sh -c 'env > variables; mv variables seen'",
        EDGECNN_MQTT_USER="ann", EDGECNN_MQTT_PASSWORD="open sesame",
    )  # fmt: skip
    board.until("mqtt_connected")
    assert b"sesame" not in Path(f"/proc/{board.process.pid}/cmdline").read_bytes()
    board.show("1")
    watcher = watch(broker.port, user="ann", password="open sesame")
    watcher.until("state", b"1")
    assert not [path for path in tmp_path.glob("[ln]*-*") if "sesame" in path.read_text()]
    eventually((tmp_path / "seen").exists)
    assert "sesame" not in (tmp_path / "seen").read_text(), "the user's program finds no password"


@pytest.mark.needs("mosquitto")
@pytest.mark.needs("mosquitto_passwd", package="mosquitto")
def test_the_documented_rights_are_enough(feed, mosquitto, watch, password_file, tmp_path, root, eventually):
    page = (root / "docs" / "home-assistant.md").read_text(encoding="utf-8")
    rights = [line.strip() for line in page.splitlines() if line.strip().startswith(("user door", "topic "))]
    assert len(rights) == 4
    (tmp_path / "rights").write_text("\n".join([*rights, "user home", "topic readwrite #", ""]))
    passwords = password_file("door", "sesame")
    password_file("home", "sesame")
    broker = mosquitto("allow_anonymous false", passwords, f"acl_file {tmp_path / 'rights'}")
    fed = feed(broker.port, more={"user": "door", "password": "sesame"}, picture=True)
    fed.frame("cat", image=np_frame())
    watcher = watch(broker.port, user="home", password="sesame")
    watcher.until("state", b"cat")
    watcher.until("availability", b"online")
    eventually(lambda: "homeassistant/device/edgecnn_door/config" in watcher.now)
    assert "Denied" not in (tmp_path / "mosquitto.log").read_text()


@pytest.mark.needs("mosquitto")
@pytest.mark.needs("openssl")
def test_tls(device, feed, mosquitto, authority):
    broker = mosquitto("allow_anonymous true", f"certfile {authority}/cert.pem", f"keyfile {authority}/key.pem")
    ca = ("--mqtt-ca", authority / "ca.pem")
    connected = device(f"mqtts://localhost:{broker.port}/door", *ca).until("mqtt_connected")
    assert connected["broker"] == f"mqtts://localhost:{broker.port}"
    trusted, here = {"ca": authority / "ca.pem"}, {"tls": True, "host": "localhost"}
    for more, options, reasons, text in (
        ({"tls": True}, trusted, ["tls"], "not valid for '127.0.0.1'"),
        (here, {}, ["tls"], "certificate is not accepted"),
        ({}, {}, ["closed", "no_answer"], "the broker"),
    ):
        refused = feed(broker.port, more=more, **options).until("mqtt_refused")
        assert refused.reason in reasons and text in refused.message, refused
    broker.kill()
    broker.lines = ("allow_anonymous true",)
    broker.start()
    assert feed(broker.port, more=here, **trusted).until("mqtt_refused").reason in ("tls", "closed")


@pytest.mark.needs("mosquitto")
@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_a_frozen_broker(feed, mosquitto, watch, eventually):
    broker = mosquitto()
    fed = feed(broker.port)
    watcher = watch(broker.port)
    watcher.until("availability", b"online")
    broker.freeze(True)
    fed.frame("cat")
    assert fed.until("mqtt_lost").reason == "no_answer"
    assert fed.until("mqtt_refused").reason == "no_answer"
    for state in ("dog", "cat", "dog"):
        fed.frame(state)
    broker.freeze(False)
    fed.until("mqtt_connected", 2)
    watcher.until("state", b"dog")
    eventually(
        lambda: ("edgecnn/door/availability", b"offline") in watcher.messages, "the will of the first connection"
    )
    watcher.until("availability", b"online")


@pytest.mark.needs("mosquitto")
@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_a_silent_line_is_noticed_at_keepalive(feed, mosquitto, watch, monkeypatch):
    """paho's clock runs five times as fast: it counts whole seconds."""
    now = time.monotonic
    monkeypatch.setattr("paho.mqtt.client.time_func", lambda: 5 * now())
    broker = mosquitto()
    watcher = watch(broker.port)
    fed = feed(broker.port)
    watcher.until("availability", b"online")
    broker.freeze(True)
    lost = fed.until("mqtt_lost")
    assert lost.reason == "no_answer" and "silent" in lost.message
    broker.freeze(False)
    fed.until("mqtt_connected", 2)


@pytest.mark.needs("mosquitto")
def test_forget_removes_everything_retained(edgecnn, feed, mosquitto, watch, eventually):
    broker = mosquitto()
    fed = feed(broker.port, picture=True, binary="cat", prefix="ha")
    fed.frame("cat", image=np_frame())
    before = watch(broker.port)
    before.until("state", b"cat")
    fed.finish()
    before.until("availability", b"offline")
    assert len(before.now) == 9
    address = f"mqtt://127.0.0.1:{broker.port}/door"
    result = edgecnn("classify", "--mqtt", address, "--mqtt-prefix", "ha", "--mqtt-forget")
    assert result.code == 0
    before.client.publish("first", b"retained", retain=True)
    after = watch(broker.port)
    eventually(lambda: "first" in after.now)
    before.client.publish("last", b"sent after all that was retained")
    eventually(lambda: "last" in after.now)
    assert after.now.keys() == {"first", "last"}
    for watcher in (before, after):
        watcher.close()
    broker.kill()
    result = edgecnn("classify", "--mqtt", address, "--mqtt-forget")
    assert result.code == MqttError.exit_code == 29 and "Connection refused" in result.err


def np_frame():
    import numpy as np

    return np.zeros((8, 8, 3), np.uint8)


def usage(process):
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return mib, len(os.listdir(f"/proc/{process.pid}/fd")), len(os.listdir(f"/proc/{process.pid}/task"))


@pytest.mark.needs("mosquitto")
@pytest.mark.slow
def test_ten_restarts_lose_no_frame_and_no_memory(device, mosquitto, watch):
    """The broker is killed and restarted ten times, and frozen once, while a live stream runs at two frames per second."""
    broker = mosquitto()
    source = "synthetic:64x48?fps=2&pattern=noise"
    board = device(f"mqtt://127.0.0.1:{broker.port}/door", "--mqtt-picture", source=source)
    watcher = watch(broker.port)
    watcher.until("availability", b"online")
    early = None
    for number in range(1, 11):
        broker.kill()
        board.until("mqtt_lost", number)
        time.sleep(1)
        broker.start()
        board.until("mqtt_connected", number + 1)
        time.sleep(6)
        early = early or usage(board.process)
    broker.freeze(True)
    board.until("mqtt_lost", 11, wait_s=60)  # twice the time between two signs of life
    broker.freeze(False)
    board.until("mqtt_connected", 12)
    late = usage(board.process)
    board.process.send_signal(signal.SIGINT)
    assert board.process.wait(20) == 130
    frames = [line for line in board.parsed() if "seq" in line and "event" not in line]
    print(f"{len(frames)} frames, {frames[-1]['dropped']} dropped, MiB, files and threads {early}, {late}")
    gaps = [after["seq"] - before["seq"] for before, after in itertools.pairwise(frames)]
    assert set(gaps) == {1} and frames[-1]["dropped"] == 0
    assert late[0] - early[0] < 3 and late[1:] == early[1:]
    last = [line["state"] for line in board.events("state_changed")][-1]
    watcher.until("availability", b"offline")
    watcher.until("state", last.encode())


TOKEN = "correct-horse-battery-staple"


@pytest.mark.needs("mosquitto")
@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
@pytest.mark.slow
def test_three_hundred_connections_leave_nothing_behind(feed, hostile):
    """Memory, files and threads are the same after 300 losses as after 50."""
    hostile.answer = b"\x20\x02\0\0"
    fed = feed(hostile.port, picture=True)
    me = type("Me", (), {"pid": os.getpid()})
    early = None
    for number in range(1, 301):
        fed.frame("cat" if number % 2 else "dog", image=np_frame())
        fed.until("mqtt_connected", number)
        hostile.drop()
        fed.until("mqtt_lost", number)
        if number == 50:
            early = usage(me)
    late = usage(me)
    print(early, late)
    assert late[0] - early[0] < 3 and late[1] <= early[1] + 2 and late[2] <= early[2]


def model_of(port):
    """Return the name of the model on the page once it has classified a frame; None without an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/state", headers={"authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            state = json.load(answer)
    except OSError:
        return None
    return state["model"]["name"] if state["frame"] else None


@pytest.mark.needs("mosquitto", "mosquitto_passwd", package="mosquitto")
@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_its_page_and_its_connection_come_back_when_another_release_is_put_in_use(
    mosquitto, watch, password_file, spawn, tmp_path, root, eventually, free_port
):
    store = Store(tmp_path / "slots")
    shipped = read_bundle(shipped_bundle())
    write_bundle(tmp_path / "new.edgecnn", dataclasses.replace(shipped.manifest, name="new"), shipped.files)
    old, new = store.add(shipped_bundle())[0], store.add(tmp_path / "new.edgecnn")[0]
    store.activate(old)
    broker = mosquitto("allow_anonymous false", password_file("ann", "sesame"))
    watcher = watch(broker.port, user="ann", password="sesame")
    port = free_port()
    options = tmp_path / "service.toml"
    source = "synthetic:64x48?fps=30"
    options.write_text(f'source = "{source}"\nmqtt = "mqtt://127.0.0.1:{broker.port}/door"\nhttp = "0.0.0.0:{port}"\n')
    command = [sys.executable, "-m", "edgecnn", "service", "run", "--slots", store.root, "--config", options]
    environment = {**os.environ, "PYTHONPATH": str(root), f"{HTTP}TOKEN": TOKEN}
    environment |= {f"{MQTT}USER": "ann", f"{MQTT}PASSWORD": "sesame"}
    with (tmp_path / "lines").open("wb") as lines:
        process = spawn(command, env=environment, stdout=lines)
    watcher.until("availability", b"online")
    eventually(lambda: model_of(port) == shipped.manifest.name, "the page")
    store.activate(new, Use(accept="a test"))
    watcher.until("model", b"new")
    eventually(lambda: model_of(port) == "new", "the page of the next process")
    text = (tmp_path / "lines").read_text()
    assert process.poll() is None and "sesame" not in text and TOKEN not in text


PYTHON = Path(__file__).parents[3] / ".venv-home-assistant" / "bin" / "python"


class Home:
    """A running Home Assistant and its output."""

    def __init__(self, process, log, eventually):
        self.process, self.log, self.eventually = process, log, eventually

    @property
    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def entities(self):
        """The last line of each existing entity."""
        found = {}
        for line in self.lines:
            if "entity" in line:
                found[line["entity"]] = line
            found.pop(line.get("removed"), None)
        return found

    @property
    def warnings(self):
        return [line["warning"] for line in self.lines if "warning" in line]

    def until(self, entity, state):
        def holds():
            return self.entities.get(entity, {}).get("state") == state and self.entities[entity]

        try:
            return self.eventually(holds, f"{entity} {state!r}")
        except AssertionError:
            raise AssertionError(f"{entity} is not {state!r}: {self.entities}, {self.warnings}") from None


@pytest.fixture
def home(spawn, tmp_path, eventually):
    """Start Home Assistant: `home(port)`."""

    def start(port):
        count = len(list(tmp_path.glob("home-*")))
        folder = tmp_path / f"home-{count}"
        folder.mkdir()
        log = folder / "states"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with log.open("w") as out, (folder / "errors").open("w") as errors:
            program = Path(__file__).parents[1] / "home_assistant.py"
            process = spawn(
                [PYTHON, program, folder, json.dumps({"mqtt": port})], stdout=out, stderr=errors, env=environment
            )
        started = Home(process, log, eventually)
        for _ in range(6):  # takes a minute on two busy cores
            try:
                eventually(lambda: process.poll() is not None or any("ready" in line for line in started.lines))
                break
            except AssertionError:
                continue
        assert [line["ready"] for line in started.lines if "ready" in line] == ["ConfigEntryState.LOADED"], (
            folder / "errors"
        ).read_text()
        return started

    return start


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
@pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done")
def test_the_device_appears_follows_dies_and_returns(home, device, mosquitto, edgecnn):
    broker = mosquitto()
    assistant = home(broker.port)
    address = f"mqtt://127.0.0.1:{broker.port}/door"
    options = ("--mqtt-picture", "--mqtt-binary", "1")
    board = device(address, *options)
    main = assistant.until("sensor.door", "unavailable")  # there has been no frame yet
    assert main["device"] == "door" and main["model"] == "digits" and main["attributes"]["device_class"] == "enum"
    assert main["attributes"]["options"] == ["abstain", *"0123456789"]
    assert assistant.until("sensor.door_model", "digits")["category"] == "diagnostic"
    for label, shown in (("1", "on"), ("9", "off"), ("1", "on")):
        board.show(label)
        assert assistant.until("sensor.door", label)["attributes"]["label"] == label
        assistant.until("binary_sensor.door_1", shown)
    assert 0.5 < float(assistant.entities["sensor.door_score"]["state"]) <= 1
    assert "T" in assistant.entities["image.door_picture"]["state"], "the time of the last picture"
    names = {
        "sensor.door", "sensor.door_score", "sensor.door_model", "image.door_picture", "binary_sensor.door_1",
    }  # fmt: skip
    assert set(assistant.entities) == names

    board.process.kill()
    for name in names:
        assistant.until(name, "unavailable")
    again = device(address, *options)
    assistant.until("sensor.door_model", "digits")
    again.show("9")
    assistant.until("sensor.door", "9")

    restarted = home(broker.port)
    assert restarted.until("sensor.door", "9")["device"] == "door"
    assert not assistant.warnings and not restarted.warnings
    again.process.kill()
    restarted.until("sensor.door", "unavailable")

    plain = device(address)
    restarted.eventually(lambda: set(restarted.entities) == {"sensor.door", "sensor.door_score", "sensor.door_model"})
    plain.process.kill()
    plain.process.wait()
    assert edgecnn("classify", "--mqtt", address, "--mqtt-forget").code == 0
    restarted.eventually(lambda: not restarted.entities)


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
@pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done")
def test_a_lost_camera_is_unavailable_and_the_model_is_not(home, feed, mosquitto):
    broker = mosquitto()
    assistant = home(broker.port)
    fed = feed(broker.port)
    fed.frame("cat")
    assistant.until("sensor.door", "cat")
    fed.camera("lost")
    assistant.until("sensor.door", "unavailable")
    assistant.until("sensor.door_score", "unavailable")
    assert assistant.entities["sensor.door_model"]["state"] == "pets"
    fed.camera("back")
    assistant.until("sensor.door", "unknown")
    fed.frame("dog")
    assistant.until("sensor.door", "dog")
    fed.frame("abstain")
    assistant.until("sensor.door", "abstain")
    states = [line["state"] for line in assistant.lines if line.get("entity") == "sensor.door"]
    assert [now for before, now in itertools.pairwise(states) if now != before][-5:] == [
        "cat", "unavailable", "unknown", "dog", "abstain",
    ]  # fmt: skip
    assert not assistant.warnings


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
@pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done")
def test_hostile_labels(home, feed, mosquitto):
    labels = ["unknown", "Unavailable", "None", "a/+/#", "{{ states }}", "'\"<b>", "é" * 127, "x" * 255]
    broker = mosquitto()
    assistant = home(broker.port)
    fed = feed(broker.port, labels=labels, binary="{{ states }}")
    for label, name in state_names(labels).items():
        fed.frame(label)
        line = assistant.until("sensor.door", name)
        assert line["attributes"]["label"] == (None if label == "abstain" else label)
    assert not assistant.warnings


@pytest.mark.slow
@pytest.mark.needs("mosquitto")
@pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done")
def test_the_environment_is_the_documented_one():
    version = [PYTHON, "-c", "from homeassistant.const import __version__; print(__version__)"]
    found = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
    assert f"homeassistant=={found}" in (PYTHON.parents[2] / "Makefile").read_text()
