"""A stream's state on a broker: what is published and when, and a broker that fails in every possible way."""

import io
import json
import ssl
import threading
import tracemalloc

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("paho.mqtt", reason="MQTT needs the mqtt extra")

from edgecnn.device.mqtt.address import Broker
from edgecnn.device.mqtt.connection import STOPPED, Waits
from edgecnn.device.mqtt.outbox import Outbox
from edgecnn.device.mqtt.publisher import MqttSettings, client_id
from edgecnn.device.stream.settings import Mqtt

LONG = 20.0


@pytest.fixture
def seen(eventually):
    """Wait until a payload was published on a topic."""

    def wait(small, last, payload):
        return eventually(lambda: payload in small.payloads(last), f"{last} {payload!r}")

    return wait


def test_the_state_its_score_and_attributes_are_published_before_the_device_is_online(feed, small, seen):
    fed = feed(small.port)
    fed.frame("cat", 0.75)
    assert fed.until("mqtt_connected").broker == f"mqtt://127.0.0.1:{small.port}"
    seen(small, "state", "cat")
    seen(small, "availability", "online")
    last = {topic: index for index, (topic, _) in enumerate(small.messages)}
    assert last["edgecnn/door/attributes"] < last["edgecnn/door/state"]
    greeting = [topic.rpartition("/")[2] for topic, _ in small.messages]
    greeting = greeting[: greeting.index("availability")]
    assert {"config", "model", "attributes", "state", "score", "camera"} <= set(greeting)
    assert small.payloads("score")[-1] == "0.750000" and small.payloads("camera")[-1] == "online"
    assert small.payloads("model") == ["pets"]
    attributes = json.loads(small.payloads("attributes")[-1])
    assert attributes["label"] == "cat" and attributes["since"] == "2027-01-15T08:00:00.000Z"
    assert attributes["top"] == [{"label": "cat", "score": 0.75}, {"label": "other", "score": 0.25}]
    assert attributes["client"].startswith("edgecnn-door-") and set(attributes) == {
        "label", "reason", "since", "top", "client",
    }  # fmt: skip
    config = json.loads(small.retained["homeassistant/device/edgecnn_door/config"])
    assert config["components"]["state"]["options"] == ["abstain", "cat", "dog"]


def test_the_broker_keeps_the_news_that_the_device_is_gone(feed, small):
    """The will of MQTT 3.1.1, section 3.1.2: flags of CONNECT in its eighth byte."""
    feed(small.port).until("mqtt_connected")
    (connect,) = small.connects
    will, qos, retain = connect[7] & 4, connect[7] >> 3 & 3, connect[7] & 32
    assert will and retain and qos == 1
    assert connect.endswith(b"\0\x19edgecnn/door/availability\0\x07offline")


@pytest.mark.parametrize(("steady_s", "retry_s"), [(0.0, 1.0), (60.0, 8.0)])
def test_the_wait_is_reset_after_a_steady_connection(feed, small, eventually, monkeypatch, steady_s, retry_s):
    """Waits of 1, 2 and 4 s, up to half of each random, on this test's own clock."""
    waited = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            waited.append(timeout)
            return super().wait(0.001)

    small.code = 3
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Event", Event)
        fed = feed(small.port, waits=Waits(answer_s=LONG, steady_s=steady_s, longest_retry_s=8.0))
    eventually(lambda: len(waited) >= 3)
    small.code = 0
    fed.until("mqtt_connected")
    small.code, before = 3, len(waited)
    small.drop()
    eventually(lambda: len(waited) > before)
    expected = [*[1.0, 2.0, 4.0, *[8.0] * before][:before], retry_s]
    assert all(0.5 <= wait / full <= 1 for wait, full in zip(waited, expected, strict=False))


def test_each_change_is_sent_in_order(feed, small, seen, eventually):
    fed = feed(small.port)
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    for _ in range(10):
        fed.frame("cat")
        fed.frame("dog")
    eventually(lambda: small.payloads("state").count("dog") == 10)
    assert small.payloads("state")[-20:] == ["cat", "dog"] * 10


def test_an_abstention_and_a_lost_camera(feed, small, seen, eventually):
    fed = feed(small.port)
    fed.frame("abstain", 0.3)
    seen(small, "state", "abstain")
    assert json.loads(small.payloads("attributes")[-1])["label"] is None
    fed.camera("lost")
    eventually(lambda: small.payloads("state")[-1:] == ["None"])
    order = [topic.rpartition("/")[2] for topic, payload in small.messages if payload in (b"offline", b"None")]
    assert order.index("camera") < len(order) - 1 - order[::-1].index("state")
    assert small.payloads("score")[-1] == "None" and small.payloads("camera")[-1] == "offline"
    assert json.loads(small.payloads("attributes")[-1])["reason"] == "camera_lost"
    fed.camera("back")
    eventually(lambda: small.payloads("camera")[-1:] == ["online"])
    assert small.payloads("state")[-1] == "None", "the old state must not come back with the camera"
    fed.frame("dog")
    seen(small, "state", "dog")
    assert small.payloads("availability") == ["online"]


def test_a_change_of_only_the_score_is_sent_occasionally(feed, small, seen):
    now = [0.0]
    fed = feed(small.port, outbox=Outbox(refresh_s=5.0, clock=lambda: now[0]))
    seen(small, "availability", "online")
    fed.frame("cat", 0.5)
    seen(small, "score", "0.500000")
    for number in range(10):
        fed.frame("cat", 0.6 + number / 100)
    small.send("edgecnn/door/attributes", b'{"client": "other"}')
    fed.until("mqtt_conflict")  # the publisher has had time to send a score
    fed.frame("dog", 0.8)
    seen(small, "score", "0.800000")
    now[0] = 5.0
    fed.frame("dog", 0.9)
    seen(small, "score", "0.900000")
    assert small.payloads("score") == ["None", "0.500000", "0.800000", "0.900000"]
    assert small.payloads("state") == ["None", "cat", "dog"]


def test_pictures_are_jpeg_upright_and_of_the_frame_that_changed_the_state(feed, small, seen):
    fed = feed(small.port, picture=True, rotation=90)
    fed.until("mqtt_connected")
    for state, level in (("cat", 10), ("dog", 200)):
        fed.frame(state, image=np.full((24, 32, 3), level, np.uint8))
        fed.frame(state, image=np.full((24, 32, 3), 90, np.uint8))
        seen(small, "state", state)
    topics = [topic.rpartition("/")[2] for topic, _ in small.messages]
    assert topics.count("picture") == 2
    assert topics.index("picture") < topics.index("state", topics.index("picture"))
    picture = Image.open(io.BytesIO(small.retained["edgecnn/door/picture"]))
    assert picture.format == "JPEG" and picture.size == (24, 32)
    assert abs(int(np.asarray(picture).mean()) - 200) < 5


def test_a_state_that_is_not_a_class_is_not_invented(feed, small, eventually):
    fed = feed(small.port)
    fed.frame("cow")
    eventually(lambda: "cow" in small.retained.get("edgecnn/door/attributes", b"").decode())
    eventually(lambda: small.payloads("state")[-1:] == ["None"])


def test_unused_topics_are_removed_from_the_broker(feed, small, seen):
    fed = feed(small.port)
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    assert small.retained["edgecnn/door/picture"] == small.retained["edgecnn/door/binary"] == b""


def test_a_binary_sensor(feed, small, eventually):
    fed = feed(small.port, binary="dog")
    fed.until("mqtt_connected")
    for state, shown in (("cat", "OFF"), ("dog", "ON"), ("abstain", "None")):
        fed.frame(state)
        eventually(lambda shown=shown: small.payloads("binary")[-1:] == [shown])
    with pytest.raises(ValueError, match="'cow' is not a class of the model; it has cat, dog"):
        feed(small.port, binary="cow")


def test_the_newest_state_is_sent_on_return_and_dropped_states_are_counted(feed, small, seen, eventually):
    small.code = 3  # unavailable
    fed = feed(small.port)
    fed.until("mqtt_refused")
    small.code = 0
    first = fed.until("mqtt_connected")
    assert first.attempts >= 2
    fed.frame("cat")
    seen(small, "state", "cat")
    small.code, before = 3, len(small.connects)
    small.drop()
    lost = fed.until("mqtt_lost")
    assert (lost.reason, lost.message) == ("closed", "the broker closed the connection")
    for state in ("dog", "cat", "dog", "cat", "abstain"):
        fed.frame(state)
    refused = fed.until("mqtt_refused", 2)
    assert refused.reason == "refused" and refused.count == 1
    earlier = len(small.messages)
    small.code = 0
    back = fed.until("mqtt_connected", 2)
    assert back.dropped == 4 and back.attempts == len(small.connects) - before >= 2 and back.after_s > 0
    eventually(lambda: small.payloads("state")[-1:] == ["abstain"])
    assert [payload for topic, payload in small.messages[earlier:] if topic.endswith("state")] == [b"abstain"]


@pytest.mark.parametrize(("code", "user", "text"), [
    (5, "ann", "the user or the password is wrong"),
    (4, "ann", "the user or the password is wrong"),
    (5, None, "it requires a user and a password"),
])  # fmt: skip
def test_a_refused_user_is_reported_once_and_retried_forever(feed, small, code, user, text, eventually):
    small.code = code
    waits = Waits(answer_s=LONG, retry_s=0.01, longest_retry_s=0.02, steady_s=0.0)
    fed = feed(small.port, more={"user": user, "password": "secret" if user else None}, waits=waits)
    refused = fed.until("mqtt_refused")
    assert refused.reason == "not_authorized" and text in refused.message and "secret" not in str(fed.events)
    eventually(lambda: len(small.connects) >= 5)
    assert [event.kind for event in fed.poll()] == ["mqtt_refused"]
    small.code = 0
    assert fed.until("mqtt_connected").attempts >= 5


def test_refusals_are_counted_until_the_next_report_and_another_reason_is_reported_at_once(feed, small, monkeypatch):
    monkeypatch.setattr("edgecnn.device.mqtt.publisher.AGAIN_S", 0.2)
    small.code = 3
    fed = feed(small.port, waits=Waits(answer_s=LONG, retry_s=0.01, longest_retry_s=0.02))
    refused = lambda: [event for event in fed.events if event.kind == "mqtt_refused"]  # noqa: E731
    fed.until("mqtt_refused", 2)
    first, second = refused()[:2]
    assert first.count == 1 < second.count and {first.reason, second.reason} == {"refused"}
    monkeypatch.setattr("edgecnn.device.mqtt.publisher.AGAIN_S", 600.0)
    for code, reason in ((5, "not_authorized"), (3, "refused"), (5, "not_authorized")):
        small.code = code
        newest = fed.until("mqtt_refused", len(refused()) + 1)
        while newest.reason != reason:  # it was on its way
            newest = fed.until("mqtt_refused", len(refused()) + 1)
        assert newest.count == 1
    small.code = 0
    assert fed.until("mqtt_connected").attempts == len(small.connects) > sum(event.count for event in refused())


def test_a_broker_that_accepts_and_never_answers(feed, small, eventually):
    small.code = None
    refused = (fed := feed(small.port)).until("mqtt_refused")
    assert refused.reason == "no_answer" and "did not answer within 0.5 s" in refused.message
    for number in range(1000):  # none of them waits for the broker
        fed.frame("cat" if number % 2 else "dog")
    small.code = 0
    small.drop()
    eventually(lambda: small.payloads("state")[-1:] == ["cat"])


def test_a_broker_that_stops_answering(feed, small, seen, eventually):
    fed = feed(small.port)
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    small.mute = True
    fed.frame("cat")
    lost = fed.until("mqtt_lost")
    assert lost.reason == "no_answer" and "did not acknowledge" in lost.message
    small.mute = False
    fed.until("mqtt_connected", 2)
    eventually(lambda: small.payloads("state")[-1:] == ["cat"])


def test_a_missing_broker(feed, small):
    small.close()
    refused = feed(small.port).until("mqtt_refused")
    assert (refused.reason, refused.message) == ("unreachable", "Connection refused")


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=() if seed == 16 else pytest.mark.slow) for seed in range(8, 20))]
)
def test_garbage_is_an_event(feed, small, seed):
    generator = np.random.default_rng(seed)
    kind = [0x20, 0x30, 0x32, 0x40, 0x62, 0x90, 0xB0, 0xD0][seed % 8]
    small.garbage = bytes([kind, 20]) + generator.bytes(20) if seed < 16 else generator.bytes(64)
    fed = feed(small.port)
    refused = fed.until("mqtt_refused")
    assert refused.reason in ("garbage", "closed", "no_answer", "refused", "not_authorized")
    small.garbage = None
    small.drop()
    fed.until("mqtt_connected")


def test_home_assistant_comes_online(feed, small, seen, eventually):
    fed = feed(small.port, prefix="ha")
    fed.frame("cat")
    seen(small, "availability", "online")
    config = "ha/device/edgecnn_door/config"
    for count, topic in enumerate(("homeassistant/status", "ha/status"), 2):
        small.send(topic, b"offline")
        small.send(topic, b"online")
        eventually(lambda count=count: [topic for topic, _ in small.messages].count(config) == count)
        eventually(lambda count=count: small.payloads("state").count("cat") == count)


def test_the_will_of_an_earlier_connection_is_answered(feed, small, seen, eventually):
    fed = feed(small.port)
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    small.send("edgecnn/door/availability", b"offline")
    eventually(lambda: small.payloads("availability") == ["online", "online"])


def test_another_program_with_the_same_name_is_an_event(feed, small, seen, eventually):
    fed = feed(small.port)
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    own = small.retained["edgecnn/door/attributes"]
    small.send("edgecnn/door/attributes", b'{"client": "edgecnn-door-1"}', retained=True)  # from an earlier run
    small.send("edgecnn/door/attributes", own)
    for _ in range(5):
        small.send("edgecnn/door/attributes", b'{"client": "edgecnn-door-2"}')
    conflict = fed.until("mqtt_conflict")
    assert "edgecnn-door-2 also publishes as 'door'" in conflict.message
    small.send("edgecnn/door/availability", b"offline")  # its answer shows that everything before it was read
    eventually(lambda: small.payloads("availability").count("online") == 2)
    assert [event.kind for event in fed.poll()].count("mqtt_conflict") == 1


@pytest.mark.parametrize("payload", [
    b"", b"[]", b"[" * 60_000, b'{"client": {"a": 1}}', b"\xff\xfe", b'{"client": "a\\u001b[2J\\nforged"}', b"x" * 100_000,
])  # fmt: skip
def test_messages_of_other_publishers_do_no_harm(feed, small, seen, eventually, payload):
    fed = feed(small.port, waits=Waits(answer_s=LONG))
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    for topic in ("edgecnn/door/attributes", "homeassistant/status", "edgecnn/door/else"):
        small.send(topic, payload)
    small.send("edgecnn/door/availability", payload)
    eventually(lambda: small.payloads("availability").count("online") == 2 or len(payload) > 65536)
    fed.frame("cat")
    seen(small, "state", "cat")
    assert not [event for event in fed.poll() if event.kind == "mqtt_lost"]
    for event in fed.events:
        assert event.kind != "mqtt_conflict" or event.message.startswith("another program also publishes as 'door'")


def test_a_message_of_64_kib_is_read_and_a_longer_one_is_not(feed, small, seen, eventually):
    fed = feed(small.port, waits=Waits(answer_s=LONG))
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    for count, size in ((2, 65536), (2, 65537), (3, 1)):
        small.send("edgecnn/door/availability", b"x" * size)
        fed.frame("cat" if size % 2 else "dog")
        eventually(lambda count=count: small.payloads("availability").count("online") == count)
        eventually(lambda size=size: small.payloads("state")[-1:] == ["cat" if size % 2 else "dog"])
    assert not [event for event in fed.poll() if event.kind == "mqtt_lost"]


def test_a_message_of_200_mb_takes_no_memory_and_the_connection_stays(feed, small, seen, eventually):
    fed = feed(small.port, waits=Waits(answer_s=LONG))
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    head = b"\0\x14homeassistant/status"
    size = 200_000_000
    length = bytes([128 | size & 127, 128 | size >> 7 & 127, 128 | size >> 14 & 127, size >> 21])
    small.client.sendall(b"\x31" + length + head)
    part, left = bytes(1 << 20), size - len(head)
    tracemalloc.start()
    try:
        while left:
            left -= small.client.send(part[:left])
        fed.frame("cat")
        seen(small, "state", "cat")
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert not [event for event in fed.poll() if event.kind == "mqtt_lost"]


def test_no_two_clients_share_an_identifier():
    names = {client_id("a-name-of-a-good-length") for _ in range(100)}
    assert len(names) == 100 and {len(name) for name in names} == {23}
    assert {name.rpartition("-")[0] for name in names} == {"edgecnn-a-name"}
    assert client_id("door").startswith("edgecnn-door-")


def test_the_end_sends_waiting_messages_and_goes_offline(feed, small, eventually):
    fed = feed(small.port, waits=Waits(keepalive_s=15, answer_s=LONG))
    fed.frame("cat")
    fed.frame("dog")
    fed.finish()
    assert small.payloads("state")[-1] == "dog" and small.payloads("availability")[-1] == "offline"
    assert [event.kind for event in fed.events] == ["mqtt_connected"]
    eventually(lambda: small.goodbyes == 1)
    assert threading.active_count() < 20


def test_a_change_during_the_connection_is_not_lost_at_the_end(feed, small):
    fed_first = threading.Event()

    class Late(Outbox):
        def connected(self):
            assert fed_first.wait(LONG)
            fed.frame("dog")
            return super().connected()

    fed = feed(small.port, outbox=Late(), waits=Waits(keepalive_s=15, answer_s=LONG))
    fed.frame("cat")
    fed_first.set()
    fed.finish()
    assert small.payloads("state")[-1] == "dog"
    assert [(event.kind, event.dropped) for event in fed.events] == [("mqtt_connected", 1)]


def test_an_immediate_end_does_not_wait_and_leaves_the_goodbye_to_the_broker(feed, small, seen, eventually):
    fed = feed(small.port, waits=Waits(keepalive_s=15, answer_s=LONG))
    fed.until("mqtt_connected")
    seen(small, "availability", "online")
    small.mute = True
    fed.frame("cat")
    fed.finish(0)
    assert fed.events[-1].kind == "mqtt_connected", "nobody waited for the broker, which acknowledges nothing"
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "mqtt"])
    assert small.goodbyes == 0, "without a goodbye the broker publishes the will"


def test_states_unsent_at_the_end_are_counted(feed, small):
    small.close()
    fed = feed(small.port)
    fed.until("mqtt_refused")
    fed.frame("cat")
    fed.frame("dog")
    fed.finish(0.5)
    assert (fed.events[-1].kind, fed.events[-1].reason, fed.events[-1].dropped) == ("mqtt_lost", STOPPED, 2)


def test_a_password_is_shown_nowhere(feed, small):
    fed = feed(small.port, more={"user": "ann", "password": "open sesame"})
    fed.until("mqtt_connected")
    assert b"open sesame" in small.connects[0]
    broker = Broker(host="127.0.0.1", port=small.port, tls=False, user="ann", password="open sesame")
    assert "sesame" not in repr(MqttSettings(broker=broker, name="door")) + repr(fed.events)


def test_a_broker_with_tls_is_always_verified(tmp_path):
    broker = Broker(host="broker.local", port=8883, tls=True)
    tls = MqttSettings(broker=broker, name="door").tls
    assert tls.verify_mode == ssl.CERT_REQUIRED and tls.check_hostname
    with pytest.raises(OSError, match="No such file"):
        MqttSettings(broker=broker, name="door", options=Mqtt(ca=tmp_path / "none"))
