"""Addresses, options, topics and payloads."""

import json
import socket

import pytest

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")

import jsonschema

from edgecnn import __version__
from edgecnn.cli.classify_stream import event_text
from edgecnn.device.address import default_name, parse_address
from edgecnn.device.mqtt import messages
from edgecnn.device.mqtt.messages import Snapshot, state_names, values
from edgecnn.device.mqtt.publisher import forget
from edgecnn.device.stream import events
from edgecnn.device.stream.events import event_line
from edgecnn.device.stream.settings import Mqtt
from edgecnn.device.system import environment, parse_secret
from edgecnn.errors import MqttError
from edgecnn.labels import MAX_LABEL_BYTES, why_not_a_label
from edgecnn.runtime.decision import Score

HOSTILE = ["cat", "unknown", "Unavailable", "None", "unknown (class)", "a/+/#", "{{ states }}", "'\"", " x", "é" * 127]


def test_no_state_has_a_name_that_home_assistant_reserves():
    names = state_names(HOSTILE)
    assert names["cat"] == "cat" and names["abstain"] == "abstain"
    assert names["Unavailable"] == "Unavailable (class)" and names["None"] == "None (class)"
    assert names["unknown"] == "unknown (class)'" and names["unknown (class)"] == "unknown (class)"
    assert len(set(names.values())) == len(HOSTILE) + 1
    assert not {name.casefold() for name in names.values()} & {"unknown", "unavailable", "none", ""}
    assert max(map(len, names.values())) <= 255


def test_no_label_of_a_bundle_is_longer_than_a_state_can_be():
    assert MAX_LABEL_BYTES <= 255 and why_not_a_label("a" * 256) and why_not_a_label("a\0b")


def payloads(snapshot, binary=None):
    return dict(values(snapshot, state_names(HOSTILE), binary, "me"))


def test_payloads():
    top = (Score("unknown", 1, 0.9), Score("cat", 0, 0.1))
    known = payloads(Snapshot(camera=True, state="unknown", since=0.0, top=top))
    assert (known["state"], known["score"], known["camera"]) == ("unknown (class)'", "0.900000", "online")
    assert json.loads(known["attributes"])["label"] == "unknown"
    long = (Score("cat", 0, 0.12345649), Score("unknown", 1, 0.8765435))
    sent = payloads(Snapshot(camera=True, state="cat", since=1_800_000_000.25, top=long))
    found = json.loads(sent["attributes"])
    assert (sent["score"], [one["score"] for one in found["top"]]) == ("0.123456", [0.123456, 0.876544])
    assert (found["since"], found["reason"], found["client"]) == ("2027-01-15T08:00:00.250Z", None, "me")
    assert (
        payloads(Snapshot(camera=True, state="cat"))["score"]
        == payloads(Snapshot(camera=True, top=top))["score"]
        == "None"
    )
    none = payloads(Snapshot(reason="camera_lost"), binary="cat")
    assert (none["state"], none["score"], none["camera"], none["binary"]) == ("None", "None", "offline", "None")
    assert json.loads(none["attributes"])["label"] is None


@pytest.mark.parametrize(("state", "reason"), [("abstain", "below_margin"), ("stranger", "unfamiliar")])
def test_a_state_that_is_not_a_label(state, reason):
    sent = dict(
        values(
            Snapshot(camera=True, state=state, reason=reason, since=0.0, top=(Score("cat", 0, 0.9),)),
            state_names(HOSTILE, strangers=True),
            "cat",
            "me",
        )
    )
    attributes = json.loads(sent["attributes"])
    assert (sent["state"], sent["binary"], sent["score"]) == (state, "None", "0.900000")
    assert (attributes["label"], attributes["reason"], attributes["top"][0]["label"]) == (None, reason, "cat")


def test_stranger_is_a_state_only_if_the_model_recognises_it():
    assert "stranger" not in state_names(["cat", "dog"])
    assert state_names(["cat", "dog"], strangers=True)["stranger"] == "stranger"
    assert state_names(["cat", "stranger"])["stranger"] == "stranger", "it may be a class in other models"


def test_the_last_check_for_a_release_is_an_attribute():
    check = {"schema": "edgecnn.update/1", "reason": "the server is gone", "last_good": None, "age_s": None}
    sent = dict(values(Snapshot(camera=True), {}, None, "me", check))
    assert json.loads(sent["attributes"])["update"] == {"reason": "the server is gone", "last_good": None}


def test_attributes_are_few():
    top = tuple(Score("x" * 255, index, 0.001) for index in range(10_000))
    attributes = payloads(Snapshot(state="cat", top=top))["attributes"]
    assert len(attributes) < 16384 and len(json.loads(attributes)["top"]) == 5


def test_the_order_of_a_camera_that_is_lost_and_returns():
    def order(camera):
        return [last for last, _ in values(Snapshot(camera=camera), {}, None, "")]

    assert order(True) == ["attributes", "score", "state", "camera"]
    assert order(False) == ["camera", "attributes", "score", "state"]


def test_a_devices_description():
    config = json.loads(
        messages.discovery_config("door", "pets", state_names(HOSTILE), Mqtt(picture=True, binary="None"))
    )
    parts = config["components"]
    assert config["device"]["identifiers"] == ["edgecnn_door"] and config["origin"]["name"] == "edgecnn"
    assert parts["state"]["options"] == list(state_names(HOSTILE).values())
    assert parts["binary"]["name"] == "None (class)" and parts["score"]["suggested_display_precision"] == 2
    assert {part["unique_id"] for part in parts.values()} == {f"edgecnn_door_{name}" for name in parts}
    assert [item["topic"] for item in config["availability"]] == ["edgecnn/door/availability", "edgecnn/door/camera"]
    assert config["availability_mode"] == "all"
    about = config["device"]
    assert (about["name"], about["model"], about["manufacturer"]) == ("door", "pets", "edgecnn")
    assert about["sw_version"] == config["origin"]["sw_version"] == __version__
    read = {(name, key): value for name, part in parts.items() for key, value in part.items() if key.endswith("_topic")}
    assert read == {
        ("state", "state_topic"): "edgecnn/door/state", ("state", "json_attributes_topic"): "edgecnn/door/attributes",
        ("score", "state_topic"): "edgecnn/door/score", ("model", "state_topic"): "edgecnn/door/model",
        ("picture", "image_topic"): "edgecnn/door/picture", ("binary", "state_topic"): "edgecnn/door/binary",
    }  # fmt: skip
    assert parts["model"]["availability"] == config["availability"][:1], "it is known without a camera too"
    assert {name: part["platform"] for name, part in parts.items()} == {
        "state": "sensor", "score": "sensor", "model": "sensor", "picture": "image", "binary": "binary_sensor",
    }  # fmt: skip
    bare = json.loads(messages.discovery_config("door", "pets", state_names(HOSTILE), Mqtt()))["components"]
    assert bare["picture"] == {"platform": "image"} and bare["binary"] == {"platform": "binary_sensor"}


def test_topics_of_home_assistant():
    assert messages.config_topic("door") == "homeassistant/device/edgecnn_door/config"
    assert messages.birth_topics() == {"homeassistant/status"}
    assert messages.birth_topics("ha") == {"homeassistant/status", "ha/status"}


@pytest.mark.parametrize(("text", "host", "port", "tls", "user", "name"), [
    ("mqtt://broker.local/door", "broker.local", 1883, False, None, "door"),
    ("mqtts://broker.local/door", "broker.local", 8883, True, None, "door"),
    ("mqtt://10.0.0.7:18830/front-door_2/", "10.0.0.7", 18830, False, None, "front-door_2"),
    ("mqtt://ann@broker/door", "broker", 1883, False, "ann", "door"),
    ("mqtt://ann%40home@broker/door", "broker", 1883, False, "ann@home", "door"),
    ("mqtts://[fd00::1]:8884/door", "fd00::1", 8884, True, None, "door"),
])  # fmt: skip
def test_an_address(text, host, port, tls, user, name):
    broker, found = parse_address(text)
    assert (broker.host, broker.port, broker.tls, broker.user, found) == (host, port, tls, user, name)
    again = parse_address(broker.address + "/x")[0]
    assert broker.password is None and (again.host, again.port, again.tls, again.user) == (host, port, tls, None)


def test_the_name_is_the_hosts_by_default(monkeypatch):
    for host, name in (
        ("door", "door"),
        ("front door.example.org", "front-door"),
        ("", "edgecnn"),
        ("été", "t"),
        ("h" * 63 + "-x", "h" * 63),
    ):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        assert default_name() == parse_address("mqtt://broker")[1] == name
    assert parse_address(f"mqtt://broker/{'n' * 64}")[1] == "n" * 64


@pytest.mark.parametrize("text", [
    "mqtt://ann:sesame@broker/door",
    "mqtt://ann:ses/ame@broker/door",
    "mqtt://ann:ses@me@broker/door",
    "mqtt://:sesame@broker/door",
    "ann:sesame@broker",
    "mqtt:ann:sesame@broker",
])  # fmt: skip
def test_a_password_is_refused_and_not_repeated(text):
    with pytest.raises(
        ValueError, match=r"visible to every user .* must not contain a password; expected mqtt://USER@"
    ) as error:
        parse_address(text)
    assert "ses" not in str(error.value)


@pytest.mark.parametrize(("text", "why"), [
    ("broker/door", "'broker/door' is not an MQTT address; expected mqtt://HOST/NAME, or mqtts://"),
    ("http://broker/door", "is not an MQTT address"),
    ("", "is not an MQTT address"),
    ("mqtt://", "no valid host"),
    ("mqtt:///door", "no valid host"),
    ("mqtt://bro ker/door", "no valid host"),
    ("mqtt://broker:port/door", "host or port"),
    ("mqtt://broker:99999/door", "host or port"),
    ("mqtt://broker:0/door", "no valid host"),
    ("mqtt://[::1/door", "host or port"),
    (f"mqtt://{'a' * 64}.local/door", "host or port"),
    ("mqtt://broker/door?qos=1", "means nothing"),
    ("mqtt://broker/front/door", "the name 'front/door' is not valid; expected .*letters"),
    ("mqtt://broker/%23", "the name '#'"),
    ("mqtt://broker/a+b", "the name"),
    ("mqtt://broker/T%C3%BCr", "the name 'Tür'"),
    (f"mqtt://broker/{'a' * 65}", "the name"),
    ("mqtt://a%00b@broker/door", "unprintable"),
])  # fmt: skip
def test_invalid_addresses(text, why):
    with pytest.raises(ValueError, match=why):
        parse_address(text)


@pytest.mark.parametrize(("text", "secret"), [
    ("sesame\n", (None, "sesame")),
    (" open:sesame ", (None, " open:sesame ")),
    ("ann\r\nsesame\r\n", ("ann", "sesame")),
])  # fmt: skip
def test_a_password_file(text, secret):
    assert parse_secret(text) == secret


@pytest.mark.parametrize("text", ["", "\n", "ann\n\n", "\nsesame\n", "a\nb\nc\n"])
def test_invalid_password_files(text):
    with pytest.raises(ValueError, match="expected one line with the password, or two"):
        parse_secret(text)


@pytest.mark.parametrize(("arguments", "text"), [
    (["--mqtt", "mqtt://ann:sesame@broker/door"], "--mqtt-password-file or EDGECNN_MQTT_PASSWORD"),
    (["--mqtt", "broker/door"], "'broker/door'"),
    (["--mqtt", "mqtt://broker/front/door"], "'front/door'"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-ca", "ca.pem"], "is for mqtts:// addresses"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-prefix", "a/#"], "expected a topic"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-prefix", ""], "expected a topic"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-password-file", "none"], "none: No such file"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-password-file", "secret"], "a password needs a user"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-password-file", "three"], "three:"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-password-file", "bytes"], "is not UTF-8"),
    (["--mqtt-picture"], "needs --mqtt ADDRESS"),
    (["--mqtt-forget"], "needs --mqtt ADDRESS"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-forget"], "only removes a device"),
    (["--mqtt", "mqtt://broker/door", "--mqtt-binary", "no such class"], "'no such class'"),
    (["--mqtt", "mqtts://broker/door", "--mqtt-ca", "none"], "none: No such file"),
    (["--mqtt", "mqtts://broker/door", "--mqtt-ca", "three"], "three: it contains no PEM certificate"),
])  # fmt: skip
def test_options_that_cannot_work_are_refused_at_the_start(edgecnn, tmp_path, arguments, text):
    (tmp_path / "secret").write_text("sesame\n")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "three").write_text("a\nb\nc\n")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    result = edgecnn("classify", "synthetic:8x8?frames=1", *arguments)
    shown = " ".join(result.err.replace("│", " ").split())
    assert result.code == 2 and text in shown and "sesame" not in shown, shown


def test_a_world_readable_password_file_is_named(edgecnn, tmp_path, free_port):
    secret = tmp_path / "a secret"
    secret.write_text("ann\nsesame\n")
    said = []
    for mode in (0o644, 0o640):
        secret.chmod(mode)
        address = f"mqtt://127.0.0.1:{free_port()}/door"
        said.append(edgecnn("classify", "--mqtt", address, "--mqtt-password-file", secret, "--mqtt-forget").err)
    assert f"every user of this machine may read it. Change that: chmod o-r '{secret}'" in said[0]
    assert "every user" not in said[1] and "sesame" not in said[0]


def test_the_options_are_for_streams(edgecnn):
    result = edgecnn("classify", "photo.jpg", "--mqtt", "mqtt://broker/door")
    assert result.code == 2 and "is for streams" in result.err


@pytest.mark.needs("mosquitto", "mosquitto_passwd", package="mosquitto")
def test_no_child_program_finds_the_password(edgecnn, monkeypatch, mosquitto, watch, password_file):
    broker = mosquitto("allow_anonymous false", password_file("ann", "sesame"))
    watcher = watch(broker.port, user="ann", password="sesame")
    monkeypatch.setenv("EDGECNN_MQTT_USER", "ann")
    monkeypatch.setenv("EDGECNN_MQTT_PASSWORD", "sesame")
    result = edgecnn("classify", "synthetic:8x8?frames=20", "--mqtt", f"mqtt://127.0.0.1:{broker.port}/door")
    assert result.code == 0 and "mqtt connected to mqtt://127.0.0.1" in result.err
    assert "sesame" not in environment().values()
    watcher.until("availability", b"offline")
    assert watcher.now["edgecnn/door/state"] != b"None"


@pytest.mark.parametrize("answer", [b"", b"\x20\x02\0\x03", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_forget_with_something_that_is_not_a_broker(feed, hostile, answer):
    hostile.answer = answer
    settings = feed(hostile.port).publisher._settings
    with pytest.raises(MqttError, match=f"mqtt://127.0.0.1:{hostile.port}: "):
        forget(settings)


def test_forget_without_a_broker(edgecnn, free_port):
    port = free_port()
    result = edgecnn("classify", "--mqtt", f"mqtt://127.0.0.1:{port}/door", "--mqtt-forget")
    assert result.code == MqttError.exit_code == 29
    assert f"error: mqtt://127.0.0.1:{port}: Connection refused." in result.err


COMMON = {"ts": 0.0, "source": "", "broker": "mqtt://broker:1883"}
EVENTS = {
    "mqtt connected to mqtt://broker:1883 after 1.5 s": events.MqttConnectedEvent(
        after_s=1.5, attempts=1, dropped=0, **COMMON
    ),
    "mqtt connected to mqtt://broker:1883 after 1.5 s; states not sent meanwhile: 1,234": events.MqttConnectedEvent(
        after_s=1.5, attempts=9, dropped=1234, **COMMON
    ),
    "mqtt lost (closed): mqtt://broker:1883: it went": events.MqttLostEvent(
        reason="closed", message="it went", dropped=0, **COMMON
    ),
    "mqtt refused (tls): mqtt://broker:1883: no": events.MqttRefusedEvent(
        reason="tls", message="no", count=1, **COMMON
    ),
    "mqtt refused (tls): mqtt://broker:1883: no (3 times)": events.MqttRefusedEvent(
        reason="tls", message="no", count=3, **COMMON
    ),
    "mqtt conflict: mqtt://broker:1883: another": events.MqttConflictEvent(message="another", count=1, **COMMON),
}


@pytest.mark.parametrize("text", EVENTS)
def test_an_event_in_words_and_as_a_line(schema_of, text):
    schema = schema_of("result")
    jsonschema.Draft202012Validator(schema).validate(json.loads(event_line(EVENTS[text])))
    assert event_text(EVENTS[text]) == text


def test_the_reasons_match_the_schema(schema_of):
    connection = pytest.importorskip(
        "edgecnn.device.mqtt.publisher", reason="MQTT needs the mqtt extra", exc_type=ImportError
    )
    parts = schema_of("result")["$defs"]
    refused = parts["mqtt_refused"]["properties"]["reason"]["enum"]
    lost = parts["mqtt_lost"]["properties"]["reason"]["enum"]
    assert set(refused) == set(connection.REASONS)
    assert set(lost) - {connection.STOPPED} <= set(connection.REASONS)
