"""State names, payloads, Home Assistant's description, and the queue, all without a broker."""

import json

import numpy as np
import pytest

from edgecnn import __version__
from edgecnn.device.mqtt import discovery
from edgecnn.device.mqtt.outbox import MOST_WAITING, REFRESH_S, Outbox
from edgecnn.device.mqtt.topics import Snapshot, state_names, values
from edgecnn.device.stream.results import FrameResult
from edgecnn.device.stream.settings import Mqtt
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
    config = json.loads(discovery.config("door", "pets", state_names(HOSTILE), Mqtt(picture=True, binary="None")))
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
    bare = json.loads(discovery.config("door", "pets", state_names(HOSTILE), Mqtt()))["components"]
    assert bare["picture"] == {"platform": "image"} and bare["binary"] == {"platform": "binary_sensor"}


def test_topics_of_home_assistant():
    assert discovery.config_topic("door") == "homeassistant/device/edgecnn_door/config"
    assert discovery.birth_topics() == {"homeassistant/status"}
    assert discovery.birth_topics("ha") == {"homeassistant/status", "ha/status"}


def result(state, score, decision=None):
    return FrameResult(
        seq=1, ts=0.0, age_ms=0.0, source="", image=b"", top=(Score(decision or state, 0, score),),
        decision=decision or state, reason=None, lead=1.0, state=state, state_since=0.0, latency_ms={}, dropped=0,
    )  # fmt: skip


def snapshot(state):
    return Snapshot(camera=True, state=state)


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_without_a_connection_only_the_newest_waits(clock):
    outbox = Outbox(clock=clock)
    for number in range(1000):
        outbox.change(snapshot(str(number)), np.zeros((4, 4, 3), np.uint8))
    assert outbox.connected().state == "999" and outbox.dropped() == 999
    assert outbox.image() is not None and outbox.image() is None
    outbox.delivered()
    assert outbox.next() is None and outbox.undelivered() == 0


def test_a_slow_broker_gets_the_last_changes_in_order(clock):
    outbox = Outbox(clock=clock)
    outbox.connected()
    for number in range(1000):
        outbox.change(snapshot(str(number)))
    states = []
    while item := outbox.next():
        states.append(item.state)
        outbox.delivered()
    assert states == [str(number) for number in range(1000 - MOST_WAITING, 1000)]
    assert outbox.dropped() == 1000 - MOST_WAITING


def test_an_unacknowledged_message_is_resent_if_it_is_the_newest(clock):
    outbox = Outbox(clock=clock)
    outbox.connected()
    outbox.change(snapshot("cat"))
    assert outbox.next().state == "cat"
    outbox.disconnected()
    assert outbox.undelivered() == 1 and outbox.connected().state == "cat"
    outbox.disconnected()
    outbox.change(snapshot("dog"))
    assert outbox.connected().state == "dog" and outbox.dropped() == 1


def test_delivered_messages_are_not_counted(clock):
    outbox = Outbox(clock=clock)
    outbox.connected()
    outbox.change(snapshot("cat"))
    outbox.next()
    outbox.delivered()
    outbox.disconnected()
    outbox.change(snapshot("dog"))
    outbox.connected()
    outbox.delivered()
    assert outbox.dropped() == 0 == outbox.undelivered()


def test_a_camera_that_comes_and_goes_does_not_change_the_state(clock):
    outbox = Outbox(clock=clock)
    for camera in (True, False, True):
        outbox.change(Snapshot(camera=camera))
    assert outbox.dropped() == 0 == outbox.undelivered()


def test_a_new_connection_starts_with_the_newest_score_and_the_next_one_is_ten_seconds_later(clock):
    outbox = Outbox(clock=clock)
    outbox.change(Snapshot(camera=True, state="cat", top=(Score("cat", 0, 0.5),)))
    outbox.score(result("cat", 0.6))
    clock.now = 100.0
    assert outbox.connected().score == 0.6
    outbox.delivered()
    outbox.score(result("cat", 0.7))
    for clock.now, score in ((109.99, None), (110.0, 0.7)):
        sent = outbox.next()
        assert (sent and sent.score) == score
    clock.now = 115.0
    outbox.change(Snapshot(camera=True, state="dog", top=(Score("dog", 1, 0.9),)))
    assert outbox.undelivered() == 1 and outbox.next().score == 0.9 and outbox.undelivered() == 1
    outbox.score(result("dog", 0.8))
    clock.now = 124.9
    assert outbox.next() is None, "a change counts as a message too"
    clock.now = 125.0
    assert outbox.next().score == 0.8


def test_the_score_belongs_to_the_state_and_is_sent_rarely(clock):
    outbox = Outbox(clock=clock)
    outbox.change(snapshot("cat"))
    outbox.connected()
    outbox.delivered()
    outbox.score(result("cat", 0.8))
    assert outbox.next().score == 0.8, "there was no score"
    outbox.score(result("cat", 0.9))
    assert outbox.next() is None, "too early"
    clock.now = REFRESH_S - 0.01
    assert outbox.next() is None
    clock.now = REFRESH_S
    outbox.score(result("cat", 0.99, decision="dog"))
    assert outbox.next().score == 0.9, "the state's score, not that of a frame that shows something else"
    assert outbox.next() is None
    outbox.score(result("dog", 0.8))
    clock.now *= 2
    assert outbox.next() is None, "its change has not arrived yet"
    outbox.score(result("cat", 0.7))
    assert outbox.next().score == 0.7 and outbox.latest.score == 0.7
