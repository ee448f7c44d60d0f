"""The MQTT options of `edgecnn classify`: refusals at the start, with the reasons."""

import pytest

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")

from edgecnn.device.mqtt.publisher import forget
from edgecnn.device.secrets import environment
from edgecnn.errors import MqttError


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
