"""Counts of a camera's scores, the accepted week, and the alarm."""

import copy
import json
import re
import statistics
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student

from edgecnn.bundle.validation import BINS, BOUNDS, ValidationScores
from edgecnn.device.http.drift import DAY, FALSE_ALARMS, GROUPS, LIMIT, SPANS, TEXT, WEEK, Drift, Week
from edgecnn.device.http.opening import drift_facts
from edgecnn.device.stream.settings import Camera, Decision, Settings
from edgecnn.files import write_atomic
from edgecnn.tables import to_json

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
