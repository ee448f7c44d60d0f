"""Home Assistant Core itself: the device appears, follows the state, becomes unavailable and returns; invalid fields are rejected."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")

from edgecnn.device.mqtt import discovery
from edgecnn.device.mqtt.topics import state_names

PYTHON = Path(__file__).parents[3] / ".venv-home-assistant" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("mosquitto"),
    pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done"),
]


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


def test_a_wrong_field_is_rejected(home, feed, mosquitto, monkeypatch):
    right = discovery.config

    def wrong(*arguments):
        config = json.loads(right(*arguments))
        config["components"]["state"]["device_class"] = "enumeration"
        return json.dumps(config)

    monkeypatch.setattr(discovery, "config", wrong)
    broker = mosquitto()
    assistant = home(broker.port)
    fed = feed(broker.port)
    fed.frame("cat")
    assistant.until("sensor.door_model", "pets")
    assistant.eventually(lambda: any("enumeration" in warning for warning in assistant.warnings))
    assert "sensor.door" not in assistant.entities


def test_the_environment_is_the_documented_one():
    version = [PYTHON, "-c", "from homeassistant.const import __version__; print(__version__)"]
    found = subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip()
    assert f"homeassistant=={found}" in (PYTHON.parents[2] / "Makefile").read_text()
