"""The command with Debian's broker: published data, access rights, and what happens when either is killed."""

import io
import itertools
import json
import os
import signal
import time
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")

from edgecnn.errors import MqttError
from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = [
    pytest.mark.needs("mosquitto"),
    pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"),
]


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


def test_a_normal_end_says_goodbye(device, mosquitto, watch):
    broker = mosquitto()
    watcher = watch(broker.port)
    board = device(f"mqtt://127.0.0.1:{broker.port}/door", source="synthetic:8x8?frames=50")
    assert board.process.wait(60) == 0
    watcher.until("availability", b"offline")
    states = [line["state"] for line in board.events("state_changed")]
    watcher.until("state", states[-1].encode())
    assert board.events("mqtt_connected") and not board.events("mqtt_lost")


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
