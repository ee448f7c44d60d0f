"""A stream's state on a broker: what is published and when, and a broker that fails in every possible way."""

import io
import json
import ssl
import tracemalloc

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")

from edgecnn.device.address import Broker
from edgecnn.device.mqtt import publisher
from edgecnn.device.mqtt.publisher import REASONS, STOPPED, MqttSettings, client_id
from edgecnn.device.stream.settings import Mqtt

ACCEPTED = b"\x20\x02\0\0"
LONG = 20.0


@pytest.fixture
def online(fake):
    """Make a publisher whose broker has accepted the connection: `online(picture=True)`."""

    def make(**options):
        fed = fake(**options)
        fed.broker.accept()
        fed.poll()
        return fed

    return make


def last_levels(broker):
    return [topic.rpartition("/")[2] for topic, _ in broker.messages]


def test_the_state_its_score_and_attributes_are_published_before_the_device_is_online(fake):
    fed = fake()
    fed.frame("cat", 0.75)
    broker = fed.broker
    assert broker.started and broker.address[:2] == ("127.0.0.1", 1883) and not broker.messages
    broker.accept()
    assert fed.until("mqtt_connected").broker == "mqtt://127.0.0.1:1883"
    greeting = last_levels(broker)
    assert greeting.index("attributes") < greeting.index("state") and greeting[-1] == "availability"
    assert {"config", "model", "attributes", "state", "score", "camera"} <= set(greeting)
    assert broker.payloads("state") == ["cat"] and broker.payloads("availability") == ["online"]
    assert broker.payloads("score")[-1] == "0.750000" and broker.payloads("camera")[-1] == "online"
    assert broker.payloads("model") == ["pets"]
    attributes = json.loads(broker.payloads("attributes")[-1])
    assert attributes["label"] == "cat" and attributes["since"] == "2027-01-15T08:00:00.000Z"
    assert attributes["top"] == [{"label": "cat", "score": 0.75}, {"label": "other", "score": 0.25}]
    assert attributes["client"] == broker.name and broker.name.startswith("edgecnn-door-")
    assert set(attributes) == {"label", "reason", "since", "top", "client"}
    config = json.loads(broker.retained["homeassistant/device/edgecnn_door/config"])
    assert config["components"]["state"]["options"] == ["abstain", "cat", "dog"]


def test_the_broker_keeps_the_news_that_the_device_is_gone(fake):
    assert fake().broker.will == ("edgecnn/door/availability", "offline", 1, True)


def test_waits_are_random_and_grow_until_a_connection_is_steady(fake, monkeypatch):
    """paho doubles the wait after each failed attempt; a broker that accepts and hangs up at once must not be called every second."""
    now = [0.0]
    monkeypatch.setattr("edgecnn.device.mqtt.publisher.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "edgecnn.device.mqtt.publisher.random.uniform", lambda low, high: (low, high) == (0.5, 1) and 0.75
    )
    broker = fake(waits={"LONGEST_RETRY_S": 8.0}).broker
    for lasted in (4.9, 4.9, 4.9, 4.9, 5.0):
        broker.accept()
        now[0] += lasted
        broker.drop()
    broker.refuse()
    assert broker.delays == [(0.75 * wait, 8.0) for wait in (1, 2, 4, 8, 8, 1)], "refusals are left to paho"


def test_each_change_is_sent_in_order(online):
    fed = online()
    for _ in range(10):
        fed.frame("cat")
        fed.frame("dog")
    for _ in range(40):
        fed.poll()
    assert fed.broker.payloads("state") == ["None", *["cat", "dog"] * 10]


def test_an_abstention_and_a_lost_camera(online):
    fed = online()
    broker = fed.broker
    fed.frame("abstain", 0.3)
    assert broker.payloads("state")[-1] == "abstain"
    assert json.loads(broker.payloads("attributes")[-1])["label"] is None
    broker.messages.clear()
    fed.camera("lost")
    fed.poll()
    assert broker.payloads("state") == broker.payloads("score") == ["None"] and broker.payloads("camera") == ["offline"]
    assert last_levels(broker).index("camera") < last_levels(broker).index("state")
    assert json.loads(broker.payloads("attributes")[-1])["reason"] == "camera_lost"
    fed.camera("back")
    fed.poll()
    assert broker.payloads("camera")[-1] == "online"
    assert broker.payloads("state")[-1] == "None", "the old state must not come back with the camera"
    fed.frame("dog")
    assert broker.payloads("state")[-1] == "dog" and not broker.payloads("availability")


def test_a_change_of_only_the_score_is_sent_every_ten_seconds_and_is_that_of_a_frame_that_shows_the_state(
    online, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(publisher.time, "monotonic", lambda: now[0])
    fed = online()
    fed.frame("cat", 0.5)
    for number in range(10):
        fed.frame("cat", 0.6 + number / 100)
    fed.frame("dog", 0.8)
    now[0] = 9.9
    fed.frame("dog", 0.9)
    now[0] = 10.0
    fed.frame("cat", 0.99, state="dog")
    assert fed.broker.payloads("score") == ["None", "0.500000", "0.800000", "0.900000"]
    assert fed.broker.payloads("state") == ["None", "cat", "dog"]
    fed.frame("dog", 0.95)
    fed.broker.drop()
    fed.broker.accept()
    fed.poll()
    assert fed.broker.payloads("score")[4:] == ["0.950000"], "a connection begins with the newest"
    now[0] = 20.0
    fed.frame("dog", 0.96)
    assert fed.broker.payloads("score")[5:] == ["0.960000"]


def test_pictures_are_jpeg_upright_and_of_the_frame_that_changed_the_state(online):
    fed = online(picture=True, rotation=90)
    for state, level in (("cat", 10), ("dog", 200)):
        fed.frame(state, image=np.full((24, 32, 3), level, np.uint8))
        fed.frame(state, image=np.full((24, 32, 3), 90, np.uint8))
    levels = last_levels(fed.broker)
    assert levels.count("picture") == 2
    assert levels.index("picture") < levels.index("state", levels.index("picture"))
    picture = Image.open(io.BytesIO(fed.broker.retained["edgecnn/door/picture"]))
    assert picture.format == "JPEG" and picture.size == (24, 32)
    assert abs(int(np.asarray(picture).mean()) - 200) < 5


def test_a_state_that_is_not_a_class_is_not_invented(online):
    fed = online()
    fed.frame("cow")
    assert "cow" in fed.broker.payloads("attributes")[-1] and fed.broker.payloads("state")[-1] == "None"


def test_unused_topics_are_removed_from_the_broker(online):
    broker = online().broker
    assert broker.retained["edgecnn/door/picture"] == broker.retained["edgecnn/door/binary"] == b""


def test_a_binary_sensor(online):
    fed = online(binary="dog")
    for state, shown in (("cat", "OFF"), ("dog", "ON"), ("abstain", "None")):
        fed.frame(state)
        assert fed.broker.payloads("binary")[-1] == shown
    with pytest.raises(ValueError, match="'cow' is not a class of the model; it has cat, dog"):
        online(binary="cow")


def test_the_newest_state_is_sent_on_return_and_dropped_states_are_counted(fake):
    fed = fake()
    broker = fed.broker
    broker.refuse()
    broker.refuse()
    broker.accept()
    assert fed.until("mqtt_connected").attempts == 3
    fed.frame("cat")
    broker.drop()
    lost = fed.until("mqtt_lost")
    assert (lost.reason, lost.message) == ("closed", "the broker closed the connection")
    for state in ("dog", "cat", "dog", "cat", "abstain"):
        fed.frame(state)
    broker.refuse()
    refused = fed.until("mqtt_refused", 2)
    assert refused.reason == "refused" and refused.count == 1
    broker.messages.clear()
    broker.accept()
    back = fed.until("mqtt_connected", 2)
    assert back.dropped == 4 and back.attempts == 2 and back.after_s >= 0
    assert broker.payloads("state") == ["abstain"] and broker.payloads("availability") == ["online"]


@pytest.mark.parametrize(("why", "user", "text"), [
    ("Not authorized", "ann", "the user or the password is wrong"),
    ("Bad user name or password", "ann", "the user or the password is wrong"),
    ("Not authorized", None, "it requires a user and a password"),
])  # fmt: skip
def test_a_refused_user_is_reported_once(fake, why, user, text):
    fed = fake(more={"user": user, "password": "secret" if user else None})
    assert fed.broker.user == (("ann", "secret") if user else None)
    for _ in range(5):
        fed.broker.refuse(why)
    refused = fed.until("mqtt_refused")
    assert refused.reason == "not_authorized" and text in refused.message and "secret" not in str(fed.events)
    assert [event.kind for event in fed.poll()] == ["mqtt_refused"]
    fed.broker.accept()
    assert fed.until("mqtt_connected").attempts == 6


def test_refusals_are_counted_until_the_next_report_and_another_reason_is_reported_at_once(fake, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(publisher, "RateLimiter", lambda every_s: RateLimiter(every_s, lambda: now[0]))
    from edgecnn.device.stream.events import RateLimiter

    fed = fake()
    for now[0] in (0.0, 1.0, 599.0, 600.0):
        fed.broker.refuse()
        fed.poll()
    fed.broker.refuse("Not authorized")
    fed.broker.refuse()
    fed.poll()
    reported = [(event.reason, event.count) for event in fed.events]
    assert reported == [("refused", 1), ("refused", 3), ("not_authorized", 1), ("refused", 1)]
    fed.broker.accept()
    assert fed.until("mqtt_connected").attempts == 7


def test_a_broker_that_accepts_and_never_answers(fake):
    fed = fake()
    fed.broker.drop("Keep alive timeout")
    refused = fed.until("mqtt_refused")
    assert refused.reason == "no_answer" and "was silent for 1 s" in refused.message
    for number in range(1000):
        fed.frame("cat" if number % 2 else "dog")
    fed.broker.accept()
    fed.poll()
    assert fed.broker.payloads("state") == ["cat"]


def test_a_broker_that_stops_answering_gets_no_more_and_the_newest_state_when_it_is_back(online):
    fed = online()
    fed.broker.mute = True
    fed.frame("cat")
    for number in range(100):
        fed.frame("cat" if number % 2 else "dog")
    assert fed.broker.payloads("state") == ["None", "cat"]
    fed.broker.acknowledge()
    fed.poll()
    assert fed.broker.payloads("state")[2:] == ["dog"], "the oldest of the 64 that wait"
    fed.broker.drop("Keep alive timeout")
    lost = fed.until("mqtt_lost")
    assert lost.reason == "no_answer" and "was silent for 2 s" in lost.message and lost.dropped == 100 - 1
    fed.broker.mute = False
    fed.broker.accept()
    fed.poll()
    assert fed.broker.payloads("state")[3:] == ["cat"]


def not_tls():
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@pytest.mark.parametrize(("error", "reason", "text"), [
    (ConnectionRefusedError(111, "Connection refused"), "unreachable", "Connection refused"),
    (TimeoutError("timed out"), "no_answer", "no answer within 0.5 s"),
    (ConnectionResetError(104, "reset"), "closed", "is this a port with TLS?"),
    (not_tls(), "tls", "is this a port without TLS?"),
])  # fmt: skip
def test_a_failed_connection_is_explained(fake, error, reason, text):
    fed = fake()
    fed.broker.fail(error)
    refused = fed.until("mqtt_refused")
    assert refused.reason == reason and text in refused.message


def test_a_missing_broker(feed, free_port):
    refused = feed(free_port()).until("mqtt_refused")
    assert (refused.reason, refused.message) == ("unreachable", "Connection refused")


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=() if seed == 16 else pytest.mark.slow) for seed in range(8, 20))]
)
def test_garbage_is_an_event_and_the_next_connection_works(feed, hostile, seed):
    generator = np.random.default_rng(seed)
    kind = [0x20, 0x30, 0x32, 0x40, 0x62, 0x90, 0xB0, 0xD0][seed % 8]
    hostile.answer = bytes([kind, 20]) + generator.bytes(20) if seed < 16 else generator.bytes(64)
    fed = feed(hostile.port)
    refused = fed.until("mqtt_refused")
    assert refused.reason in REASONS
    hostile.answer = ACCEPTED
    hostile.drop()
    fed.until("mqtt_connected")


def test_messages_that_a_lost_connection_did_not_deliver_are_outdated_and_not_sent_again(feed, hostile, eventually):
    hostile.answer = ACCEPTED
    fed = feed(hostile.port, waits={"RETRY_S": 0.5})
    fed.until("mqtt_connected")
    eventually(lambda: fed.poll() and b"online" in hostile.received[0])
    assert b"edgecnn/door/state" in hostile.received[0] and b"sent again" not in hostile.received[0]
    hostile.drop()
    fed.until("mqtt_lost")
    fed.frame("dog")
    fed.until("mqtt_connected", 2)
    eventually(lambda: b"online" in hostile.received[1].rpartition(b"dog")[2])
    assert hostile.received[1].count(b"edgecnn/door/state\0") == 1


def test_home_assistant_comes_online(online):
    fed = online(prefix="ha")
    broker = fed.broker
    fed.frame("cat")
    assert {topic for topic, _ in broker.topics} == {
        "homeassistant/status", "ha/status", "edgecnn/door/availability", "edgecnn/door/attributes",
    }  # fmt: skip
    config = "ha/device/edgecnn_door/config"
    for count, topic in enumerate(("homeassistant/status", "ha/status"), 2):
        for payload, retained in ((b"offline", False), (b"online", True)):
            broker.send(topic, payload, retained)
            fed.poll()
        assert [topic for topic, _ in broker.messages].count(config) == count - 1
        broker.send(topic, b"online")
        fed.poll()
        assert [topic for topic, _ in broker.messages].count(config) == count
        assert broker.payloads("state").count("cat") == count


def test_the_will_of_an_earlier_connection_is_answered(online):
    fed = online()
    fed.broker.send("edgecnn/door/availability", b"offline")
    fed.poll()
    assert fed.broker.payloads("availability") == ["online", "online"]


def test_another_program_with_the_same_name_is_an_event(online):
    fed = online()
    own = fed.broker.payloads("attributes")[-1].encode()
    fed.broker.send("edgecnn/door/attributes", b'{"client": "edgecnn-door-1"}', True)  # from an earlier run
    fed.broker.send("edgecnn/door/attributes", own)
    assert [event.kind for event in fed.poll()] == ["mqtt_connected"]
    for _ in range(5):
        fed.broker.send("edgecnn/door/attributes", b'{"client": "edgecnn-door-2"}')
    conflict = fed.until("mqtt_conflict")
    assert "edgecnn-door-2 also publishes as 'door'" in conflict.message
    assert [event.kind for event in fed.poll()].count("mqtt_conflict") == 1


@pytest.mark.parametrize("payload", [
    b"", b"[]", b"[" * 60_000, b'{"client": {"a": 1}}', b"\xff\xfe", b'{"client": "a\\u001b[2J\\nforged"}', b"x" * 100_000,
])  # fmt: skip
def test_messages_of_other_publishers_do_no_harm(online, payload):
    fed = online()
    for topic in ("edgecnn/door/attributes", "homeassistant/status", "edgecnn/door/else"):
        fed.broker.send(topic, payload)
    fed.broker.send("edgecnn/door/availability", payload)
    fed.poll()
    fed.frame("cat")
    assert fed.broker.payloads("state")[-1] == "cat"
    for event in fed.events:
        assert event.kind != "mqtt_conflict" or event.message.startswith("another program also publishes as 'door'")


def test_a_message_of_64_kib_is_read_and_a_longer_one_is_not(online):
    fed = online()
    for count, size in ((2, 65536), (2, 65537), (3, 1)):
        fed.broker.send("edgecnn/door/availability", b"x" * size)
        fed.poll()
        assert fed.broker.payloads("availability").count("online") == count


def test_a_message_of_200_mb_takes_no_memory_and_the_connection_stays(feed, hostile, eventually):
    hostile.answer = ACCEPTED
    fed = feed(hostile.port, waits={})
    fed.until("mqtt_connected")
    head = b"\0\x19edgecnn/door/availability"
    size = 200_000_000
    length = bytes([128 | size & 127, 128 | size >> 7 & 127, 128 | size >> 14 & 127, size >> 21])
    part, left = bytes(1 << 20), size - len(head)
    tracemalloc.start()
    try:
        hostile.client.sendall(b"\x31" + length + head)
        while left:
            left -= hostile.client.send(part[:left])
        hostile.client.sendall(b"\x31\x20" + head + b"short")
        eventually(lambda: fed.publisher._greet_again)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert [event.kind for event in fed.poll()] == ["mqtt_connected"]


def test_no_two_clients_share_an_identifier():
    names = {client_id("a-name-of-a-good-length") for _ in range(100)}
    assert len(names) == 100 and {len(name) for name in names} == {23}
    assert {name.rpartition("-")[0] for name in names} == {"edgecnn-a-name"}
    assert client_id("door").startswith("edgecnn-door-")


def test_the_end_sends_waiting_messages_and_goes_offline(online):
    fed = online()
    for state in ("cat", "dog", "cat"):
        fed.frame(state)
    fed.broker.mute = True
    fed.frame("dog")
    fed.frame("cat")
    fed.broker.acknowledge()
    fed.broker.mute = False
    fed.finish()
    assert fed.broker.payloads("state") == ["None", "cat", "dog", "cat", "dog", "cat"]
    assert fed.broker.payloads("availability") == ["online", "offline"] and fed.broker.goodbyes == 1
    assert [event.kind for event in fed.events] == ["mqtt_connected"]


def test_the_end_waits_for_a_connection_that_is_being_opened(fake, monkeypatch):
    fed = fake()
    fed.frame("cat")
    fed.frame("dog")
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            fed.broker.accept()

    monkeypatch.setattr(publisher.time, "sleep", pause)
    fed.finish()
    assert fed.broker.payloads("state") == ["dog"] and fed.broker.payloads("availability") == ["online", "offline"]
    assert [(event.kind, event.dropped) for event in fed.events] == [("mqtt_connected", 1)]


def test_an_immediate_end_does_not_wait_and_still_goes_offline(online, monkeypatch):
    monkeypatch.setattr(publisher.time, "sleep", lambda seconds: pytest.fail("it waited"))
    fed = online()
    fed.broker.mute = True
    fed.frame("cat")
    fed.finish(0)
    assert fed.events[-1].kind == "mqtt_connected", "nobody waited for the broker, which acknowledges nothing"
    assert fed.broker.messages[-1] == ("edgecnn/door/availability", b"offline") and fed.broker.goodbyes == 1


def test_a_connection_that_opens_after_the_end_is_closed(fake):
    fed = fake()
    fed.finish(0)
    fed.broker.accept()
    assert not fed.broker.connected and not fed.broker.messages


def test_states_unsent_at_the_end_are_counted(fake, monkeypatch):
    monkeypatch.setattr(publisher.time, "sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    fed = fake()
    fed.broker.fail(ConnectionRefusedError(111, "Connection refused"))
    fed.frame("cat")
    fed.frame("dog")
    fed.finish(0.5)
    assert (fed.events[-1].kind, fed.events[-1].reason, fed.events[-1].dropped) == ("mqtt_lost", STOPPED, 2)


def test_a_password_is_shown_nowhere():
    broker = Broker(host="127.0.0.1", port=1883, tls=False, user="ann", password="open sesame")
    assert "sesame" not in repr(MqttSettings(broker=broker, name="door"))


def test_a_broker_with_tls_is_always_verified(tmp_path):
    broker = Broker(host="broker.local", port=8883, tls=True)
    tls = MqttSettings(broker=broker, name="door").tls
    assert tls.verify_mode == ssl.CERT_REQUIRED and tls.check_hostname
    with pytest.raises(OSError, match="No such file"):
        MqttSettings(broker=broker, name="door", options=Mqtt(ca=tmp_path / "none"))
