"""The board's state, and drift."""

import asyncio
import copy
import io
import json
import re
import statistics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t as student

from edgecnn.bundle.evidence import BINS, BOUNDS, ValidationScores
from edgecnn.device.http.board import Board
from edgecnn.device.http.drift import DAY, FALSE_ALARMS, GROUPS, LIMIT, SPANS, TEXT, WEEK, Drift, Week
from edgecnn.device.http.link import EVENT, RESULT, UNSURE, UNSURES, Opening, Shared
from edgecnn.device.http.live import drift_facts, kept_facts
from edgecnn.device.stream.events import rfc3339
from edgecnn.device.stream.settings import Camera, Decision, Settings
from edgecnn.files import write_atomic
from edgecnn.tables import to_json

NOW = 1_800_000_000.0


def event(kind, after_s=0.0, **fields):
    return json.dumps({"event": kind, "ts": rfc3339(NOW + after_s), "source": "cam", **fields})


def result(dropped, state=None, after_s=0.0, reason=None, **late):
    since = state and rfc3339(NOW + after_s)
    line = {
        "seq": 9, "ts": rfc3339(NOW), "source": "cam", "top": [], "latency_ms": {"infer": 2.5}, "dropped": dropped,
        "state": state, "state_since": since, "reason": reason,
    }  # fmt: skip
    return RESULT + json.dumps([[64, 48], late]).encode() + b"\n" + json.dumps(line).encode()


def make(now, **opening):
    return Board(Opening(port=0, **opening), clock=lambda: now[0])


def test_counts_go_on_after_a_restart_and_dropped_frames_are_a_total():
    opened = event("camera_opened", about="a camera")
    board = make([NOW], decisions={"cat": 5, "dog": 2}, replay=(opened, event("frame_damaged", count=3)))
    for message in (result(7, cat=2, dog=1), result(9, cat=1)):
        board.receive(message)
    for line in (
        event("frame_damaged", count=4),
        event("camera_lost", message="gone"),
        event("camera_back", about="x"),
    ):
        board.receive(EVENT + line.encode())
    document = board.document()
    assert document["counts"] == {
        "frames": 11, "dropped": 9, "damaged": 7, "reconnects": 1, "decisions": {"cat": 8, "dog": 3},
    }  # fmt: skip
    frame = {"seq": 9, "ts": NOW, "width": 64, "height": 48, "inference_ms": 2.5}
    assert document["frame"] == frame and document["source"] == "cam" and document["time"] == NOW


def test_a_board_is_ready_for_ten_seconds_after_a_frame_of_a_camera_that_is_there():
    now = [NOW]
    board = make(now, replay=(event("camera_opened", about="a camera"),))
    assert not board.is_ready()
    board.receive(result(0))
    ready = []
    for now[0] in (NOW, NOW + 9.9, NOW + 10.0):
        ready.append(board.is_ready())
    assert ready == [True, True, False]
    now[0] = NOW
    board.receive(EVENT + event("camera_lost", message="gone").encode())
    assert not board.is_ready() and board.document()["camera_message"] == "gone"
    board.receive(EVENT + event("camera_back", 7.5, about="the same camera").encode())
    document = board.document()
    assert board.is_ready() and (document["camera_since"], document["camera_message"]) == (NOW + 7.5, "the same camera")


def test_the_last_hour_begins_with_the_state_an_hour_ago():
    now = [NOW + 100]
    board = make(now)
    for after_s, state in ((0.0, "cat"), (0.5, "dog"), (1.5, "cat"), (60.0, "owl"), (60.5, "cat")):
        board.receive(EVENT + event("state_changed", after_s, state=state, reason=None).encode())
    assert board.document()["hour"] == [(NOW, "dog"), (NOW + 1.5, "cat")], "changes within a second are one"
    assert (board.document()["state"], board.document()["since"]) == ("cat", NOW + 60.5)
    shown = []
    for now[0] in (NOW + 3600, NOW + 3601, NOW + 3601.5, NOW + 9000):
        shown.append(board.document()["hour"])
    assert shown == [
        [(NOW, "dog"), (NOW + 1.5, "cat")], [(NOW + 1, "dog"), (NOW + 1.5, "cat")], [(NOW + 1.5, "cat")], [(NOW + 5400, "cat")],
    ]  # fmt: skip


def test_changes_a_second_apart_are_two_and_a_camera_that_is_lost_has_no_state():
    board = make([NOW + 9], replay=(event("state_changed", state="cat", reason=None),))
    for after_s, state, reason in ((1.0, "dog", None), (2.5, None, "camera_lost")):
        board.receive(EVENT + event("state_changed", after_s, state=state, reason=reason).encode())
    document = board.document()
    assert document["hour"] == [(NOW, "cat"), (NOW + 1, "dog"), (NOW + 2.5, None)]
    assert (document["state"], document["since"], document["reason"]) == (None, NOW + 2.5, "camera_lost")


def test_the_state_is_that_of_the_frame_before_its_event_arrives_and_a_late_frame_of_a_lost_camera_brings_none():
    board = make([NOW + 9], replay=(event("camera_opened", about="a camera"),))
    shown = []
    for message in (
        result(0, "cat", 1.0),
        result(0, "abstain", 2.0, "below_threshold"),
        EVENT + event("camera_lost", 3.0, message="gone").encode(),
        EVENT + event("state_changed", 3.0, state=None, reason="camera_lost").encode(),
        result(0, "cat", 2.5),
    ):
        board.receive(message)
        document = board.document()
        shown.append((document["state"], document["since"], document["reason"]))
    lost = (None, NOW + 3, "camera_lost")
    assert shown[:2] == [("cat", NOW + 1, None), ("abstain", NOW + 2, "below_threshold")]
    assert shown[3:] == [lost, lost]


def test_a_reader_of_the_lines_that_falls_a_thousand_behind_gets_no_more_and_the_others_do(monkeypatch):
    """Its connection ends, so that it asks again. All lines that wait come together; none, if nothing happens for a while."""

    async def read():
        board = make([NOW])
        slow, quick = board.lines(), board.lines()
        first = [asyncio.create_task(anext(lines)) for lines in (slow, quick)]
        await asyncio.sleep(0)
        lines = [event("frame_damaged", count=count) for count in range(1003)]
        for part in (lines[:2], lines[2:1002]):
            for line in part:
                board.receive(EVENT + line.encode())
            assert await (first.pop() if first[1:] else anext(quick)) == part
        board.receive(EVENT + lines[1002].encode())
        assert await anext(quick) == lines[1002:]
        monkeypatch.setattr("edgecnn.device.http.board.QUIET_S", 0.001)
        assert await anext(quick) == []
        board.receive(EVENT + lines[7].encode())
        assert await anext(quick) == lines[7:8]
        return [await first[0], [line async for line in slow]]

    first, later = asyncio.run(read())
    assert len(first) == 2 and later == []


def test_only_a_listed_unsure_picture_is_shown(tmp_path):
    for name in ("listed.png", "other.png"):
        Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / name)
    board = make([NOW], unsure=str(tmp_path), kept=({"name": "listed.png"}, {"name": "gone.png"}))
    picture = Image.open(io.BytesIO(board.unsure_picture("listed.png")))
    assert (picture.format, picture.size) == ("JPEG", (8, 6))
    assert board.unsure_picture("other.png") is board.unsure_picture("gone.png") is None


def test_an_earlier_runs_unsure_frame_has_its_best_class_and_score(keep_pictures, tmp_path):
    (kept,) = keep_pictures(tmp_path, scenes=1)
    name = str(kept.path.relative_to(tmp_path))
    assert kept_facts(tmp_path, name) == {
        "name": name, "ts": 1795860902.5, "guess": "cat", "reason": "below_threshold", "score": 0.5
    }  # fmt: skip
    kept.path.unlink()
    assert kept_facts(tmp_path, name) is None


def test_the_newest_unsure_frames_come_first():
    board = make([NOW], kept=tuple({"name": str(number)} for number in range(3)))
    assert [item["name"] for item in board.document()["unsure"]] == ["2", "1", "0"]
    for number in range(3, 15):
        board.receive(UNSURE + json.dumps({"name": str(number)}).encode())
    assert [item["name"] for item in board.document()["unsure"]] == [str(number) for number in range(14, 2, -1)]
    assert len(board.unsure) == UNSURES


def test_the_last_two_frames_are_shared_and_older_ones_are_gone():
    writer = Shared.create()
    reader = Shared(writer.file)
    frames = [np.full((4, 6, 3), level, np.uint8) for level in (1, 2, 3)]
    frames[2][0, 5] = 200
    places = [writer.write(frame, NOW, number) for number, frame in enumerate(frames)]
    assert reader.read(places[0]) is None
    assert [np.array_equal(reader.read(place), frame) for place, frame in zip(places[1:], frames[1:], strict=True)] == [
        True, True,
    ]  # fmt: skip
    large = writer.write(b"j" * 1000, NOW, 3)
    assert reader.read(large) == b"j" * 1000 and reader.read(places[1]) is None


LABELS = ("cat", "dog", "owl")
START = 1_800_000_000 // 3600 * 3600


class House:
    """A camera's hours of 80 frames each: scenes draw their class's usual scores, and each day has its own mix of classes."""

    def __init__(self, drift, seed=1):
        self.drift, self.random, self.hour = drift, np.random.default_rng(seed), 0
        self.mix = None

    def pass_(self, hours, darker=0.0, strangers=0.0):
        for _ in range(hours):
            if self.hour % DAY == 0:
                self.mix = self.random.dirichlet([1.0] * 3)
            for scene in range(20):
                label = int(self.random.choice(3, p=self.mix))
                score = float(np.clip(self.random.beta(8, 1 + label) - darker, 0.34, 1))
                decision = "stranger" if self.random.random() < strangers else LABELS[label]
                line = {"top": [{"label": LABELS[label], "score": score}], "decision": decision}
                for frame in range(4):
                    self.drift.take(line, START + self.hour * 3600 + scene * 60 + frame)
            self.hour += 1
        return self

    def save(self):
        write_atomic(self.drift.file, self.drift.dumped())


def test_limit_is_students():
    assert pytest.approx(student.isf(FALSE_ALARMS / 2 / 30 / len(SPANS) / 2, WEEK - 1), abs=1e-3) == LIMIT


def test_a_week_is_accepted_and_a_different_score_is_an_alarm_that_outlives_a_restart(tmp_path):
    file = tmp_path / "state" / "drift.json"
    make = lambda key="model": Drift(LABELS, key, file, clock=lambda: START + house.hour * 3600)  # noqa: E731
    house = House(Drift(LABELS, "model", file, clock=lambda: START + house.hour * 3600))
    house.pass_(6 * DAY + 5)
    with pytest.raises(ValueError, match="after 7 days of 6 hours or more; so far: 6"):
        house.drift.accept()
    house.pass_(3 * DAY).save()
    house.drift = make()
    assert house.drift.document()["can_accept"] and house.drift.document()["accepted"] is None
    house.drift.accept()
    state = house.drift.document()
    assert state["accepted"]["n"] == WEEK * DAY * 80 and sum(state["accepted"]["histogram"]) == pytest.approx(1)
    assert len(state["bins"]) == len(state["today"]["histogram"]) + 1 == len(BOUNDS) + 2
    assert state["today"]["n"] == 24 * 80 and not state["can_accept"]

    house.pass_(4 * DAY)
    assert house.drift.document()["alarm"] is None, "days with a different mix of classes are not drift"
    house.pass_(DAY, darker=0.3).save()
    alarm = make().document()["alarm"]
    assert alarm["message"] == f"{TEXT}: over the last 24 hours they are lower"
    assert START + 13 * DAY * 3600 < alarm["since"] < START + (house.hour + 1) * 3600
    assert len(file.read_bytes()) < 200_000
    house.pass_(7 * DAY, darker=0.3)
    assert house.drift.document()["alarm"]["since"] == alarm["since"], "it is still the same alarm"
    house.drift.accept()
    house.pass_(DAY, darker=0.3)
    assert house.drift.document()["alarm"] is None, "the last week was accepted instead"
    house.pass_(7 * DAY, darker=0.3, strangers=0.3)
    more = "on 6 of the last 7 days, more frames were strangers"
    assert house.drift.document()["alarm"]["message"].startswith(f"{TEXT}: {more}")
    assert make("another model").document()["accepted"] is None


def test_a_damaged_file_is_ignored(tmp_path):
    no_day = b'{"schema":"edgecnn.drift/1","key":"model","week":[[]],"hours":[],"accepted":1,"alarm":null}'
    for damage in (b"", b"{", b"[]", no_day):
        (tmp_path / "drift.json").write_bytes(damage)
        drift = Drift(LABELS, "model", tmp_path / "drift.json")
        assert drift.document()["today"] is None and not drift.document()["can_accept"], damage
        House(drift).pass_(1).save()
        assert json.loads((tmp_path / "drift.json").read_text())["hours"][0]["frames"] == 80


@pytest.mark.parametrize("number", ["Infinity", "NaN", '"80"', "80.5", "true", "[80]", "null"])
@pytest.mark.parametrize("field", ["frames", "stranger", "counts", "groups"])
def test_an_hour_with_a_count_that_is_no_whole_number_is_ignored(tmp_path, field, number):
    House(Drift(LABELS, "model", tmp_path / "drift.json")).pass_(1).save()
    text = (tmp_path / "drift.json").read_text()
    damaged, count = re.subn(rf'("{field}":(?:\[|{{"\d+":\[)?)\d+', rf"\g<1>{number}", text, count=1)
    assert count == 1
    for content, n in ((text, 80), (damaged, None)):
        (tmp_path / "drift.json").write_text(content)
        today = Drift(LABELS, "model", tmp_path / "drift.json", clock=lambda: START + 3600).document()["today"]
        assert (today and today["n"]) == n


@pytest.mark.parametrize("strangers", [True, False])
def test_without_strangers_their_share_is_unknown_and_not_zero(tmp_path, strangers):
    drift = Drift(LABELS, "model", strangers=strangers, clock=lambda: START + 10 * DAY * 3600)
    House(drift).pass_(9 * DAY + 1, strangers=float(strangers))
    drift.accept()
    for of in ("today", "accepted"):
        share = drift.document()[of]["stranger"]
        assert share == (1.0 if strangers else None)
        assert drift.document()[of]["abstain"] == 0


def test_a_clock_that_was_wrong_does_not_stop_the_counting(tmp_path):
    drift = Drift(LABELS, "model", clock=lambda: START + 3600)
    line = {"top": [{"label": "owl", "score": 0.5}], "decision": "owl"}
    for ts in (0.0, START + 1e6, START):
        for _ in range(100):
            drift.take(line, ts)
    drift.take({"top": [], "decision": "abstain"}, START)
    assert drift.document()["today"]["n"] == 100


def test_an_hour_of_60_frames_and_a_day_of_six_hours_count_with_their_shares():
    clock = [START + 3600.0]
    drift = Drift(LABELS, "model", clock=lambda: clock[0])

    def pass_(hour, frames):
        decisions = ["abstain"] * (frames // 4) + ["stranger"] * (frames // 10)
        for number, decision in enumerate(decisions + ["owl"] * (frames - len(decisions))):
            line = {"top": [{"label": "owl", "score": 0.5}], "decision": decision}
            drift.take(line, START + 3600 * hour + number)

    for hour, frames in enumerate((60, 59, 60, 60, 60, 60)):
        pass_(hour, frames)
    pass_(DAY, 60)
    today = drift.document()["today"]
    assert (today["n"], today["abstain"], today["stranger"], today["since"]) == (360, 0.25, 0.1, START)
    assert drift.document()["days"] == 0, "an hour of 59 frames does not count, so there are five"
    for hour in range(DAY + 1, DAY + 5):
        pass_(hour, 60)
    pass_(2 * DAY - 1, 60)
    assert drift.document()["days"] == 0, "the day has not ended"
    pass_(2 * DAY, 60)
    assert drift.document()["days"] == 1, "this one has six hours"
    counts = []
    for hour in (2 * DAY, 2 * DAY + 1):
        clock[0] = START + hour * 3600.0
        counts.append(drift.document()["today"]["n"])
    assert counts == [420, 360], "the hour that has begun and the 24 before it"


def test_brighter_scores_are_an_alarm_too_and_it_ends_with_them():
    house = House(Drift(LABELS, "model"))
    house.pass_(7 * DAY + 1).drift.accept()
    house.pass_(DAY, darker=-0.5)
    assert house.drift.document()["alarm"]["message"] == f"{TEXT}: over the last 24 hours they are higher"
    house.pass_(2 * DAY)
    assert house.drift.document()["alarm"] is None


def test_a_day_is_compared_with_the_interval_of_students_further_observation():
    """One class: t = (day - mean) / (s * sqrt(1/7 + 1/days)), with s from the statistics module; two classes: their mix does not count."""
    days = [7.0, 7.5, 6.0, 7.25, 8.0, 6.5, 7.75]

    def alone(level, share=1.0):
        return np.eye(1, GROUPS, 5)[0] * share, np.eye(1, GROUPS, 5)[0] * level

    shares, levels = map(np.array, zip(*map(alone, days), strict=True))
    strangers = np.array([0.0, 0.1, 0.02, 0.0, 0.3, 0.0, 0.1])
    week = Week(shares, levels, strangers)
    for level, over in ((9.0, 1), (5.5, 3.5), (7.25, 7)):
        expected = (level - statistics.mean(days)) / (statistics.stdev(days) * (1 / 7 + 1 / over) ** 0.5)
        assert float(week.t(*alone(level), over)) == pytest.approx(expected)
    same = Week(shares, shares * 7.0, strangers)
    assert float(same.t(*alone(7.25), 7)) == pytest.approx(0.25 / (0.05 * (2 / 7) ** 0.5)), "the smallest spread"
    more = [[0.31] * 6 + [0.3], [0.31] * 5 + [0.3] * 2, [0.31] * 7]
    assert week.has_more_strangers(np.array(more)).tolist() == [True, False, True]


def test_a_small_change_is_an_alarm_after_three_quarters_of_a_week_and_a_large_one_of_a_day():
    """Each hour has 60 frames: a number of them in the bin that ends at 0.9, the others in the one below, or all in the lowest."""
    high, low, lowest = ({"top": [{"label": "owl", "score": score}], "decision": "owl"} for score in (0.85, 0.75, 0.05))
    accepted = Drift(LABELS, "model", clock=lambda: START + 3600.0)

    def pass_(drift, hour, lines):
        for number, line in enumerate(lines):
            drift.take(line, START + 3600 * hour + 59 * number)

    for day, count in enumerate((22, 30, 38, 27, 33, 30, 30)):
        for hour in range(day * DAY, (day + 1) * DAY):
            pass_(accepted, hour, [high] * count + [low] * (60 - count))
    pass_(accepted, WEEK * DAY, [low])
    accepted.accept()
    found = {}
    for name, lines in (("small", [high] * 6 + [low] * 54), ("large", [lowest] * 60)):
        drift = copy.deepcopy(accepted)
        for hour in range(WEEK * DAY, 2 * WEEK * DAY + (name == "small")):
            pass_(drift, hour, lines)
        found[name] = drift.document()
    after_s = START + WEEK * DAY * 3600
    message = f"{TEXT}: over the last 7 days they are lower"
    assert found["small"]["alarm"] == {"since": after_s + 126 * 3600, "message": message}
    assert found["large"]["alarm"]["since"] == after_s + 18 * 3600
    assert [found[name]["days"] for name in found] == [7, 6], "the seventh day has not ended"
    assert [found[name]["can_accept"] for name in found] == [True, False]
    assert found["small"]["accepted_at"] == START + 3600


def test_validation_images_are_counted_with_this_devices_threshold_and_another_view_starts_from_scratch():
    """20 images: 3 abstentions, and 5 strangers, 2 of which would be abstentions on a device that does not recognise strangers."""
    counts = (0, 1, 2, *[0] * (BINS - 4), 17)
    scores = ValidationScores(
        model="m", model_sha256="", validation_sha256="", temperature=1.0, threshold=0.7, limit=0.5, images=20, bounds=BOUNDS,
        counts=counts, below=3, strangers=5, strangers_below=2,
    )  # fmt: skip
    files = {"validation.json": json.dumps(to_json(scores)).encode()}
    classifier = SimpleNamespace(
        model_sha256="a", region=(0, 0, 1, 1), threshold=0.7, strangers=object(), bundle=SimpleNamespace(files=files)
    )
    plain = drift_facts(classifier, Settings(), "/dev/video0")
    shown = plain["validation"]
    assert (shown["n"], shown["abstain"], shown["stranger"], shown["since"]) == (20, 0.15, 0.25, None)
    assert shown["histogram"] == [count / 20 for count in counts]

    def changed(camera="/dev/video0", of=classifier, rotation=0, **decision):
        settings = replace(Settings(), camera=Camera(rotation=rotation), decision=Decision(**decision))
        return drift_facts(of, settings, camera)

    without = changed(of=SimpleNamespace(**{**vars(classifier), "strangers": None}))
    assert plain["strangers"] and not without["strangers"]
    without = without["validation"]
    assert (without["abstain"], without["stranger"]) == (0.25, None)
    assert changed(threshold=0.7) == changed() == plain
    assert changed(threshold=0.0)["validation"]["abstain"] is None, "0 is a threshold too"
    other = SimpleNamespace(**{**vars(classifier), "region": (0, 0, 1, 0.5)})
    views = [changed(), changed(rotation=180), changed(fit="stretch"), changed(of=other)]
    assert len({view["key"] for view in views}) == 4 and len({view["file"] for view in views}) == 1
    assert changed("/dev/video1")["file"] != plain["file"] and changed("/dev/video1")["key"] == plain["key"]
