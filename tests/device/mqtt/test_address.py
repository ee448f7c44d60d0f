"""Addresses of brokers, and where a password is allowed."""

import socket

import pytest

from edgecnn.device.mqtt.address import default_name, parse_address
from edgecnn.device.secrets import parse_secret


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
