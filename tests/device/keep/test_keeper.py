"""Frames kept in a folder of limited size for some days; a full disk, and two weeks of keeping."""

import errno
import io
import itertools
import json
import os
import re
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.boards import SAMPLE_FILE
from edgecnn.device.explain import frame_pictures
from edgecnn.device.keep.folder import LATE_S, Sample, kept_pictures, read_counts
from edgecnn.device.keep.keeper import GREY, INDEX, Alike, Keeper, View, make_keepers, pictures_of
from edgecnn.device.stream.events import FrameResult
from edgecnn.device.stream.pictures import encode, turn, why_no_folder
from edgecnn.device.stream.settings import Camera, Decision, Reaction, Settings
from edgecnn.errors import ImageError, OutputError
from edgecnn.region import WHOLE
from edgecnn.runtime.classifier import Classifier, Result
from edgecnn.runtime.decision import ABSTAIN, BELOW_THRESHOLD, NO_SCORE, UNFAMILIAR, Score, decide

MORNING = 1764043200.25
"""2025-11-25T04:00:00.250Z."""

DAY_S = 86400


def jpeg(size):
    """Bytes that begin like a JPEG."""
    return b"\xff\xd8\xff" + bytes(size - 3)


def frame(result, image, seq=0, ts=MORNING):
    """A frame with a classifier's result."""
    return FrameResult(
        seq=seq, ts=ts, age_ms=0.0, source="fake", image=image, top=result.top, decision=result.decision, reason=result.reason,
        lead=result.lead, state=None, state_since=None, latency_ms={}, dropped=0, features=result.features,
    )  # fmt: skip


def result(label="cat", score=0.4, reason=None):
    """The result of a two-class classifier for a frame whose other class has no score."""
    top = (Score(label, 0, score), Score("other", 1, 0.0))
    return Result(top, ABSTAIN if reason else label, reason, score, {})


def unsure(label="cat"):
    return result(label, reason=BELOW_THRESHOLD)


NO_NUMBERS = Result((), ABSTAIN, NO_SCORE, 0.0, {})


def files(folder):
    hidden = (INDEX, SAMPLE_FILE)
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name not in hidden
    )


class Unlike(Alike):
    """Treats no frame as like another."""

    def __init__(self):
        super().__init__(View(0, WHOLE, WHOLE), None)

    def look(self, result):
        return np.zeros(1)

    def seen(self, look):
        return False


def as_it_is(result, why):
    return {".jpg": result.image}


@pytest.fixture
def keeper(tmp_path):
    """Make a keeper with 1,000 bytes and no sample; each read of its clock advances it by a second."""

    def make(cap_bytes=1000, make=as_it_is, alike=None, clock=None, wall=lambda: MORNING, **settings):
        now = iter(range(10**7))
        settings = {"keep_unsure": 9000, "keep_random": 0, **settings}
        reaction = Reaction(keep_cap=cap_bytes / 2**20, **settings)
        clock = clock or (lambda: next(now))
        return Keeper(tmp_path / "kept", reaction, make, alike=alike or Unlike(), clock=clock, wall=wall)

    return make


def test_unsure_frames(keeper, tmp_path):
    one = keeper()
    one.offer(frame(result(score=0.4), jpeg(10), 0))
    one.offer(frame(result(score=0.5), jpeg(10), 1))
    one.offer(frame(result("dog", 0.9, BELOW_THRESHOLD), jpeg(10), 2))
    one.offer(frame(NO_NUMBERS, jpeg(11), 3))
    assert files(tmp_path / "kept") == [f"2025-11-25/20251125T040000.250000Z-{seq}.jpg" for seq in (0, 2, 3)]
    assert (tmp_path / "kept/2025-11-25/20251125T040000.250000Z-0.jpg").read_bytes() == jpeg(10)


def test_the_meaning_of_unsure_does_not_depend_on_the_number_of_classes(keeper, tmp_path):
    one = keeper()
    offered = (
        ((0.75, 0.25), False),  # two classes: a lead of exactly the margin counts as sure
        ((0.74, 0.26), True),
        ((0.5, 0.5), True),
        ((0.6, 0.05), False),
        ((0.45, 0.3), True),  # many classes
        ((1.0,), False),
        ((0.4,), True),
    )
    for seq, (scores, _) in enumerate(offered):
        labels = [f"class {index}" for index in range(len(scores))]
        one.offer(frame(Result(*decide(np.array(scores), labels), {}), jpeg(10), seq))
    kept = {int(name[-5]) for name in files(tmp_path / "kept")}
    assert kept == {seq for seq, (_, unsure) in enumerate(offered) if unsure}


def test_a_margin_of_0_keeps_only_frames_without_a_label_and_a_limit_of_0_keeps_none(keeper, tmp_path):
    one = keeper(keep_margin=0.0)
    for seq, answer in enumerate((result(score=0.01), result(score=0.0), unsure())):
        one.offer(frame(answer, jpeg(10), seq))
    assert [name[-5] for name in files(tmp_path / "kept")] == ["2"]
    keeper(keep_unsure=0).offer(frame(unsure(), jpeg(10), 3, MORNING + DAY_S))
    assert len(files(tmp_path / "kept")) == 1


def test_one_per_second(keeper, tmp_path):
    times = iter([0, 0.3, 0.6, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4])
    one = keeper(clock=lambda: next(times))
    for seq in range(9):
        one.offer(frame(unsure(), jpeg(10), seq))
    assert [name[-5] for name in files(tmp_path / "kept")] == ["0", "4"]


def test_one_evening_does_not_use_up_the_day_and_strangers_do_not_crowd_out_classes(keeper, tmp_path):
    settings = {"cap_bytes": 10**6, "keep_unsure": 30}
    one = keeper(**settings)
    for seq in range(48):
        stranger = Result(unsure().top, "stranger", UNFAMILIAR, 0.9, {})
        one.offer(frame(stranger if seq % 2 else unsure(), jpeg(10), seq, MORNING + 60 * seq))
    index = (tmp_path / "kept" / INDEX).read_text()
    assert len(files(tmp_path / "kept")) == 5 and index.count(" stranger ") == 2
    again = keeper(**settings)
    for seq in range(48, 24 * 60):
        again.offer(frame(unsure(), jpeg(10), seq, MORNING + 60 * seq))
    days = Counter(name[:10] for name in files(tmp_path / "kept"))
    assert days == {"2025-11-25": 30, "2025-11-26": 20}, (
        "an earlier run's count; four hours of the next day have passed"
    )


def test_a_picture_of_two_files_counts_once_before_and_after_a_restart(keeper, tmp_path):
    settings = {
        "cap_bytes": 10**6,
        "keep_unsure": 30,
        "make": lambda result, why: {".jpg": result.image, ".json": b"{}"},
    }
    for start in (0, 4, 8):
        one = keeper(**settings)
        for seq in range(start, start + 4):
            one.offer(frame(unsure(), jpeg(10), seq, MORNING + 60 * seq))
    kept = [int(re.search(r"Z-(\d+)\.jpg", name)[1]) for name in files(tmp_path / "kept") if name.endswith(".jpg")]
    assert kept == [0, 1, 2, 3, 4], "five an hour"


def test_strangers_get_a_tenth_of_the_day_and_an_hour_a_sixth_each_rounded_up(keeper, tmp_path):
    """Of 35 frames a day, 4 may be strangers, and 6 may come from one hour. The last hour of a day does not count for the next."""
    one, stranger = keeper(keep_unsure=35, cap_bytes=10**6), Result(unsure().top, "stranger", UNFAMILIAR, 0.9, {})
    late = MORNING + 19 * 3600  # 23:00
    for minute in range(0, 180, 2):
        ordinary = 20 <= minute % 60 < 40
        one.offer(frame(unsure() if ordinary else stranger, jpeg(10), minute, late + 60 * minute))
    found = Counter()
    for line in (tmp_path / "kept" / INDEX).read_text().splitlines():
        minute = int(re.search(r"Z-(\d+)", line)[1])
        found[minute // 60, " stranger " in line] += 1
    assert found == {(0, True): 4, (0, False): 2, (1, True): 4, (1, False): 2, (2, False): 6}


def test_the_oldest_are_removed_when_there_are_too_many(keeper, tmp_path):
    one = keeper()
    for seq in range(9):
        one.offer(frame(unsure(), jpeg(300), seq))
    assert [name[-5] for name in files(tmp_path / "kept")] == ["6", "7", "8"]
    again = keeper()
    again.offer(frame(unsure(), jpeg(700), 9))
    assert [name[-5] for name in files(tmp_path / "kept")] == ["8", "9"], (
        "files of an earlier run count and are removed too"
    )


def test_the_index_stays_small(keeper, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the slow part
    one = keeper()
    for seq in range(500):
        one.offer(frame(unsure(), jpeg(300), seq))
    assert len((tmp_path / "kept" / INDEX).read_text().split()) < 300
    keeper().offer(frame(unsure(), jpeg(990), 500))
    assert len(files(tmp_path / "kept")) == 1


def test_expired_files_leave_the_index_unless_they_cannot_be_removed(keeper, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder, lines = tmp_path / "kept", []

    def of_day(day):
        clock = itertools.count(0, 4000).__next__
        return keeper(10**6, keep_days=1, keep_unsure=600, clock=clock, wall=lambda: MORNING + day * DAY_S)

    for day in range(9):  # each with a restart
        one = of_day(day)
        for seq in range(30):
            one.offer(frame(unsure(), jpeg(300), seq, MORNING + day * DAY_S + seq * 600))
        assert list(one.poll()) == []
        lines.append(len((folder / INDEX).read_text().splitlines()))
    assert len(files(folder)) == 60 and max(lines) < 150, lines

    last, there = of_day(20), set(files(folder))
    # as on a disk that has become read-only
    monkeypatch.setattr(Path, "unlink", lambda path: os.open(tmp_path, os.O_WRONLY))
    assert [event.message for event in last.poll()] and set(files(folder)) == there
    monkeypatch.undo()
    assert list(last.poll()) == [] and files(folder) == []


def test_other_files_stay(keeper, tmp_path):
    folder = tmp_path / "kept"
    day = folder / "2025-11-25"
    one = keeper(keep_days=1)
    for seq in range(3):
        one.offer(frame(unsure(), jpeg(300), seq))
    (day / "mine.jpg").write_bytes(jpeg(5000))
    (day / "20251125T040000.250000Z-77.jpg").write_bytes(jpeg(300))
    (day / "20251125T040000.250000Z-0.jpg").rename(folder / "sorted.jpg")
    (day / "20251125T040000.250000Z-1.jpg").write_bytes(b"edited")
    for seq in range(3, 9):
        one.offer(frame(unsure(), jpeg(300), seq))
    mine = {"sorted.jpg", *(f"2025-11-25/{name}" for name in ("mine.jpg", "20251125T040000.250000Z-77.jpg"))}
    mine.add("2025-11-25/20251125T040000.250000Z-1.jpg")
    assert mine < set(files(folder)) and len(files(folder)) == len(mine) + 3
    later = keeper(keep_days=1, wall=lambda: MORNING + 2 * DAY_S)
    assert list(later.poll()) == [] and set(files(folder)) == mine


@pytest.mark.parametrize(
    "name", ["../victim.jpg", "2025-11-25/../../victim.jpg", "2025-11-25/victim.jpg", "/victim.jpg", "."]
)
def test_an_index_that_leads_elsewhere_removes_nothing(keeper, tmp_path, name):
    (tmp_path / "kept/2025-11-25").mkdir(parents=True)
    victims = [tmp_path / "victim.jpg", tmp_path / "kept/victim.jpg", tmp_path / "kept/2025-11-25/victim.jpg"]
    for victim in victims:
        victim.write_bytes(jpeg(300))
    (tmp_path / "kept" / INDEX).write_text(f"\n300 unsure {name}\n² unsure {name}\n300 {name}\n300")
    one = keeper(cap_bytes=310)
    for seq in range(3):
        one.offer(frame(unsure(), jpeg(300), seq))
    assert all(victim.exists() for victim in victims) and len(files(tmp_path / "kept")) == 3


def test_an_index_that_cannot_be_read_is_named(keeper, tmp_path):
    keeper().offer(frame(unsure(), jpeg(300), 0))
    (tmp_path / "kept" / INDEX).write_bytes(b"\n300 unsure \xff")
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "kept" / INDEX))):
        keeper()


def test_a_line_cut_short_by_a_full_disk_spoils_no_other(keeper, tmp_path):
    keeper().offer(frame(unsure(), jpeg(300), 0))
    with (tmp_path / "kept" / INDEX).open("a") as index:
        index.write("300 uns")
    keeper().offer(frame(unsure(), jpeg(300), 1))
    keeper().offer(frame(unsure(), jpeg(1000), 2))
    assert [name[-5] for name in files(tmp_path / "kept")] == ["2"]


def test_pictures_expire_even_after_a_wrong_clock(keeper, tmp_path):
    one = keeper(keep_days=2)
    for seq, day in enumerate((3650, 0, 1, 2, 3)):
        one.offer(frame(unsure(), jpeg(10), seq, MORNING + day * DAY_S))
    list(keeper(keep_days=2, wall=lambda: MORNING + 3 * DAY_S + 1).poll())
    assert [name[-5] for name in files(tmp_path / "kept")] == ["3", "4", "0"]


def keep_until_killed(folder, make, step):
    """Keep a frame every two seconds of its clock; kill -9 this process before a step of a write, counted from 0."""
    now, steps = [time.time() + 1000 * step], itertools.count()
    settings = Reaction(keep_cap=0.01, keep_unsure=9000, keep_random=9000)
    one = Keeper(folder, settings, make, alike=Unlike(), clock=lambda: now[0], wall=lambda: now[0])
    for name, do in (("fsync", bool), ("replace", os.replace)):  # a kill needs no fsync, which is the slow part

        def do_or_die(*arguments, do=do):
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            do(*arguments)

        setattr(os, name, do_or_die)
    for seq in itertools.count():
        now[0] += 2
        one.offer(frame(unsure(), encode(noisy(1))[0], seq, now[0]))


def test_a_killed_process_leaves_nothing_permanent(root, tmp_path):
    """kill -9 at any moment: every picture is complete, the folder stays within its size, and no time of the sample is due twice."""
    make = pictures_of(Classifier.load(root / "models/digits/digits.edgecnn"), View(0, WHOLE, WHOLE))
    for step in range(16):
        child = os.fork()
        if child == 0:
            try:
                keep_until_killed(tmp_path / "kept", make, step)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    found = kept_pictures(tmp_path / "kept")
    assert len(found) > 3 and all(kept.read() for kept in found)
    counts = read_counts(tmp_path / "kept")
    begun = len(re.findall(r" random \S+\.jpg", (tmp_path / "kept" / INDEX).read_text()))
    Keeper(tmp_path / "kept", Reaction(keep_cap=0.01), as_it_is, alike=Unlike())  # removes what was left half-written
    there = {
        str(path.relative_to(tmp_path / "kept")): path.stat().st_size
        for path in (tmp_path / "kept").rglob("*")
        if path.is_file()
    }
    assert sum(size for name, size in there.items() if name not in (INDEX, SAMPLE_FILE)) <= 0.01 * 2**20
    later = Keeper(
        tmp_path / "kept", Reaction(keep_days=1), as_it_is, wall=lambda: time.time() + 99 * DAY_S, alike=Unlike()
    )
    assert list(later.poll()) == [] and files(tmp_path / "kept") == [], (
        "a file that is not in the index would stay forever"
    )
    assert 3 < begun <= counts.kept


def test_names_use_utc(keeper, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        keeper().offer(frame(unsure(), jpeg(10), ts=1764086399.0625))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert files(tmp_path / "kept") == ["2025-11-25/20251125T155959.062500Z-0.jpg"]


def test_a_frame_larger_than_the_cap(keeper, tmp_path):
    with pytest.raises(OutputError, match=r"limit for all kept frames, 1,000 bytes\. Allow more with --keep-cap\."):
        keeper().offer(frame(unsure(), jpeg(1001)))
    assert not (tmp_path / "kept").exists()


def test_a_full_disk(keeper, tmp_path, monkeypatch):
    """At every write of a picture: nothing stays half written, and everything continues once there is space again."""
    now = [0.0]
    one = keeper(make=lambda result, why: {".jpg": result.image, ".json": b"{}"}, clock=lambda: now[0])
    one.offer(frame(unsure(), jpeg(10), 0))
    for writes in range(3):
        now[0] += 60
        with monkeypatch.context() as patch:
            left, fsync = iter(range(writes)), os.fsync

            def full(descriptor, left=left, fsync=fsync):
                if next(left, None) is None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fsync(descriptor)

            patch.setattr(os, "fsync", full)
            (event,) = one.take(frame(unsure(), jpeg(10), 1 + writes)) or (None,)
            assert writes or (event.kind == "save_failed" and "No space left on device" in event.message)
            assert len(files(tmp_path / "kept")) == 2
    now[0] += 60
    one.offer(frame(unsure(), jpeg(10), 9))
    assert len(files(tmp_path / "kept")) == 4


def test_a_frame_that_cannot_be_encoded_is_an_event_and_the_next_attempt_follows_after_ten_seconds(keeper, tmp_path):
    tried, now = [], [100.0]

    def write(result, why):
        tried.append(result.seq)
        raise ImageError("the model's scores are not numbers")

    one = keeper(make=write, clock=lambda: now[0])
    (event,) = one.take(frame(NO_NUMBERS, jpeg(10), 7))
    assert (event.kind, event.source, event.seq, event.count, event.ts) == ("save_failed", "fake", 7, 1, MORNING)
    assert "not numbers" in event.message and not (tmp_path / "kept").exists()
    for seq, now[0] in ((8, 101.0), (9, 109.9), (10, 110.0)):
        events = list(one.take(frame(NO_NUMBERS, jpeg(10), seq)))
    assert tried == [7, 10] and [(event.seq, event.count) for event in events] == [(10, 1)]


def not_encoded(result, why):
    if len(result.image) > 1000:
        raise ImageError("this frame cannot be encoded")
    return as_it_is(result, why)


@pytest.mark.parametrize("make", [as_it_is, not_encoded])
def test_a_sampled_frame_that_cannot_be_written_is_missed(keeper, tmp_path, make):
    plan = {"2025-11-25": {"kept": 4, "missed": 2, "due": [MORNING, MORNING + 1, MORNING + 2]}}
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / SAMPLE_FILE).write_text(json.dumps({"schema": "edgecnn.sample/1", "days": plan}))
    one = keeper(keep_random=3, make=make)
    for seq, size in enumerate((10, 1001, 10)):
        assert len(one.take(frame(result(score=0.9), jpeg(size), seq, MORNING + seq))) == (size > 1000)
    assert read_counts(tmp_path / "kept") == (9, 6), (
        "four and two of earlier, three of three times now, one of them missed"
    )


def test_new_pictures_are_announced_and_listed_newest_last_without_the_random_sample(keeper, tmp_path):
    """As the page shows them."""
    plan = {"2025-11-25": {"kept": 0, "missed": 0, "due": [MORNING + 15]}}
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / SAMPLE_FILE).write_text(json.dumps({"schema": "edgecnn.sample/1", "days": plan}))
    one = keeper(make=lambda result, why: {".jpg": result.image, ".json": b"{}"}, keep_random=1)
    told = []
    one.on_kept = lambda name, result: told.append((name, result.seq))
    for seq in range(4):
        one.offer(frame(unsure(), jpeg(10), seq, MORNING + 10 * seq))
    names = [f"2025-11-25/20251125T0400{second}.250000Z-{seq}.jpg" for seq, second in ((0, "00"), (1, "10"), (3, "30"))]
    assert told == list(zip(names, (0, 1, 3), strict=True)) and len(files(tmp_path / "kept")) == 8
    assert one.newest(99) == names and one.newest(2) == names[1:]


def test_the_cap_holds_over_two_weeks_and_pictures_expire(keeper, tmp_path, monkeypatch):
    """A frame per minute, half of them unsure, with a daily restart and a full disk on the sixth day."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the slow part
    folder, now = tmp_path / "kept", [MORNING]
    random, largest, failed = np.random.default_rng(1), 0, 0
    sizes = random.integers(500, 1500, 14 * 1600)

    def make():
        return keeper(
            20_000,
            make=with_json,
            clock=lambda: now[0],
            wall=lambda: now[0],
            keep_unsure=12,
            keep_random=6,
            keep_days=3,
        )

    def with_json(result, why):
        if 5 <= (now[0] - MORNING) / DAY_S < 6:
            raise OutputError("no space")
        return {".jpg": result.image, ".json": json.dumps({"why": why}).encode()}

    for seq in range(14 * 1600):
        if seq % 1600 == 0:
            one = make()
        answer = unsure() if random.random() < 0.5 else result(score=0.9)
        failed += len(list(one.take(frame(answer, jpeg(int(sizes[seq])), seq, now[0]))))
        list(one.poll())
        if seq % 400 == 0:
            sizes_now = [path.stat().st_size for path in folder.rglob("2*T*") if path.is_file()]
            largest = max(largest, sum(sizes_now))
        now[0] += 54 * random.uniform(0.9, 1.1)
    days = sorted(path.name for path in folder.glob("2*-*-*"))
    whys = Counter(json.loads(path.read_text())["why"] for path in folder.rglob("*.json") if path.name != SAMPLE_FILE)
    counts = read_counts(folder)
    print(f"largest {largest} bytes, {days}, {whys}, {counts}, {failed} failures")
    assert 15_000 < largest <= 20_000 and failed > 1
    assert len(days) <= 4, "the last three days, and today"
    assert whys["random"] and whys["unsure"] > whys["random"]
    assert 70 <= counts.planned <= 90 and 0.9 * counts.planned - 12 < counts.kept < counts.planned - 1


class TestSample:
    """Times drawn in advance that survive restarts."""

    def test_each_time_is_due_once_and_missed_without_a_frame(self, tmp_path):
        taken, day = [], 86400 * 20_000
        first = Sample(tmp_path, 20)
        first.is_due(day + 0.0)
        due = json.loads((tmp_path / SAMPLE_FILE).read_text())["days"]["2024-10-04"]["due"]
        assert due == sorted(due) and len(due) == 20 and all(day < one < day + 86400 for one in due)
        assert np.std(np.diff(due)) > 300, "random, not evenly spaced"
        awake = [ts for ts in np.arange(day + 1.0, day + 2 * 86400, 5) if not 10 <= ts % 86400 / 3600 < 16]
        for number, ts in enumerate(awake):
            if number % 1000 == 0:
                sample = Sample(tmp_path, 20)  # as after kill -9
            if sample.is_due(ts):
                sample.take()
                taken.append(ts)
        asleep = sum(10 <= one % 86400 / 3600 < 16 - LATE_S / 3600 for one in due)
        of_first = [ts for ts in taken if ts < day + 86400]
        assert 20 - asleep - 1 <= len(of_first) <= 20 - asleep
        assert all(any(0 <= ts - one <= LATE_S for one in due) for ts in of_first)
        counts = read_counts(tmp_path)
        assert counts.kept == len(taken) and 39 <= counts.planned <= 40

    def test_the_first_day_begins_now_and_a_night_off_is_missed(self, tmp_path):
        day = 86400 * 20_000
        Sample(tmp_path, 100).is_due(day + 43200.0)
        drawn = len(json.loads((tmp_path / SAMPLE_FILE).read_text())["days"]["2024-10-04"]["due"])
        assert 25 < drawn < 75
        sample = Sample(tmp_path, 100)
        sample.is_due(day + 86400 + 43200.0)
        table = json.loads((tmp_path / SAMPLE_FILE).read_text())["days"]
        assert table["2024-10-04"]["missed"] == drawn
        sample.take() if sample.is_due(day + 2 * 86400.0 - 1) else None
        assert not Sample(tmp_path, 0).is_due(day + 2 * 86400.0), "nothing is due without a sample"

    def test_a_clock_set_back_takes_no_time_twice(self, tmp_path):
        sample, day = Sample(tmp_path, 50, draw=iter(np.linspace(0, 0.9999, 100)).__next__), 86400 * 20_000
        taken = 0
        for start, end in ((0, 40_000), (0, 40_000), (30_000, 86400)):
            for ts in np.arange(day + start, day + end, 10.0):
                if sample.is_due(ts):
                    sample.take()
                    taken += 1
        assert taken == 50

    def test_a_board_that_starts_with_an_old_clock_continues_the_days_plan(self, tmp_path):
        day = 86400 * 20_000
        sample = Sample(tmp_path, 50)
        for ts in (day + 9000 * 86400.0, day + 0.0):
            sample.is_due(ts)
        old = [
            ts
            for ts in np.arange(day - 9 * 86400, day - 9 * 86400 + 20_000, 10.0)
            if sample.is_due(ts) and not sample.take()
        ]
        new = [ts for ts in np.arange(day, day + 86400, 10.0) if sample.is_due(ts) and not sample.take()]
        assert 3 < len(old) < 25 and len(new) >= 48

    def test_a_damaged_file_is_reported_with_advice(self, tmp_path):
        for text in (
            "{",
            "[]",
            '{"schema": "edgecnn.sample/2", "days": {}}',
            '{"schema": "edgecnn.sample/1", "days": {"x": 1}}',
        ):
            (tmp_path / SAMPLE_FILE).write_text(text)
            with pytest.raises(OutputError, match="Remove it to begin a new sample"):
                Sample(tmp_path, 1)
            assert read_counts(tmp_path) == (0, 0)


def noisy(seed, height=48, width=64):
    return (
        np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )


def test_no_two_unsure_frames_are_alike_and_nothing_filters_the_sample(keeper, tmp_path):
    scenes = [noisy(seed) for seed in range(3)]
    settings = {"cap_bytes": 10**6, "make": lambda result, why: {".jpg": encode(result.image)[0]}, "keep_random": 150}
    one = keeper(alike=Alike(View(0, WHOLE, WHOLE), None), **settings)
    random = np.random.default_rng(1)
    for seq in range(400):
        scene = np.clip(scenes[seq // 40 % 3] + random.normal(0, 5, (48, 64, 3)), 0, 255).astype(np.uint8)
        one.offer(frame(unsure(), scene, seq, MORNING + 200 * seq))
    index = (tmp_path / "kept" / INDEX).read_text()
    # frames come every 200 s, and a time of the sample waits 60 s for one: 40 of 150 get one, with a standard deviation of 5
    assert index.count(" unsure ") <= 3 and index.count(" random ") > 15


def test_features_decide_similarity_if_there_are_any():
    """A frame is like another within 0.3 of the usual distance 0.5: at a cosine of 0.86 but not of 0.84, whatever the lengths."""
    alike = Alike(View(0, WHOLE, WHOLE), 0.5)

    def look(cosine, length):
        features = length * np.array([cosine, (1 - cosine**2) ** 0.5, 0], np.float32)
        return alike.look(frame(unsure()._replace(features=features), noisy(0)))

    assert not alike.seen(look(1, 3))
    alike.remember(look(1, 3))
    assert [alike.seen(look(cosine, 0.2)) for cosine in (1, 0.86, 0.84, -0.9)] == [True, True, False, False]


def test_near_is_three_tenths_of_the_models_usual_distance(tmp_path):
    """At a median similarity of 0.8, frames are alike from a cosine of 0.94. The first of two is of the random sample."""
    limit = SimpleNamespace(similarities=(0.2, 0.8, 0.9))
    manifest = SimpleNamespace(stranger=limit, input=SimpleNamespace(region=WHOLE))
    model = SimpleNamespace(engine=SimpleNamespace(features="a tensor"))
    for cosine, kept in ((0.93, 2), (0.95, 1)):
        folder = tmp_path / str(cosine)
        folder.mkdir()
        plan = {"2025-11-25": {"kept": 0, "missed": 0, "due": [MORNING]}}
        (folder / SAMPLE_FILE).write_text(json.dumps({"schema": "edgecnn.sample/1", "days": plan}))
        classifier = SimpleNamespace(
            bundle=SimpleNamespace(manifest=manifest), model=model, region=WHOLE, name="pets", model_sha256="0" * 64
        )
        (one,) = make_keepers(Settings(reaction=Reaction(keep=folder, keep_random=1)), classifier)
        assert classifier.gives_features
        for seq, features in enumerate(([2.0, 0.0], [cosine, (1 - cosine**2) ** 0.5])):
            found = unsure()._replace(features=np.array(features, np.float32))
            one.offer(frame(found, noisy(seq, 9, 12), seq, MORNING + seq))
        assert [picture.why for picture in kept_pictures(folder)] == ["random", "unsure"][:kept]


def test_without_features_thumbnails_of_the_seen_region_differ_by_at_least_5_levels_and_200_are_remembered():
    """The region is the right half of the frame turned clockwise, hence the upper half before."""

    def half(level, other):
        pixels = np.full((48, 64, 3), other, np.uint8)
        pixels[:24] = level
        return alike.look(frame(unsure(), pixels))

    alike = Alike(View(90, (0.5, 0.0, 0.5, 1.0), WHOLE), None)
    alike.remember(half(100, 0))
    assert [alike.seen(half(level, 255)) for level in (96, 104, 95, 105)] == [True, True, False, False]
    for _ in range(199):
        alike.remember(half(200, 0))
    assert alike.seen(half(100, 0))
    alike.remember(half(200, 0))
    assert not alike.seen(half(100, 0)) and alike.seen(half(200, 0))


REGION = (0.125, 0.5, 0.25, 0.375)


@pytest.mark.parametrize("rotation", [0, 90])
def test_only_the_region_is_kept_and_training_sees_what_the_model_saw(root, tmp_path, rotation):
    """A model without a region that is given one, as for cropped photos; and a model trained with a region."""
    frame_ = noisy(4, 64, 96)
    upright = np.rot90(frame_, -rotation // 90)
    height, width = upright.shape[:2]
    rows, columns = slice(height // 2, height * 7 // 8), slice(width // 8, width * 3 // 8)
    cut = upright[rows, columns]
    for own, image in ((WHOLE, png(frame_)), (REGION, frame_)):
        classifier = Classifier.load(root / "models/digits/digits.edgecnn", region=REGION)
        manifest = classifier.bundle.manifest
        classifier.bundle = replace(
            classifier.bundle, manifest=replace(manifest, input=replace(manifest.input, region=own))
        )
        settings = Settings(
            reaction=Reaction(keep=tmp_path / str(own[0]), keep_random=0), camera=Camera(rotation=rotation)
        )
        (one,) = make_keepers(settings, classifier)
        found = classifier.classify(image, rotation=rotation, threshold=1)
        one.offer(frame(found, image))
        (kept,) = kept_pictures(tmp_path / str(own[0]))
        pixels = np.asarray(Image.open(io.BytesIO(kept.read()))).astype(int)
        assert (kept.picture.width, kept.picture.height) == pixels.shape[1::-1]
        answers = [(score.label, pytest.approx(score.score, abs=5e-7)) for score in found.top]
        assert [(score.label, score.score) for score in kept.scores] == answers
        assert (kept.label, kept.reason, kept.why, kept.source) == (None, BELOW_THRESHOLD, "unsure", "fake")
        if own == REGION:
            assert kept.region == REGION and pixels.shape == upright.shape
            outside = pixels.copy()
            outside[rows, columns] = GREY
            assert np.abs(outside - GREY).max() < 50 and np.abs(outside - GREY).mean() < 1, (
                "grey, except for JPEG artefacts at the edge"
            )
            pixels = pixels[rows, columns]
        else:
            assert kept.region is None
        assert np.abs(pixels - cut).mean() < 3


def test_unsure_frames_are_explained_as_they_were_classified_and_the_sample_is_not(root, tmp_path):
    classifier = Classifier.load(root / "models" / "digits" / "digits.edgecnn")
    settings = Settings(
        reaction=Reaction(keep=tmp_path / "kept", explain=tmp_path / "maps", keep_random=7), camera=Camera(rotation=90),
        decision=Decision(fit="stretch"),
    )  # fmt: skip
    image = noisy(5, 30, 50)
    for one in make_keepers(settings, classifier):
        one.offer(frame(unsure(), image))
    (name,) = files(tmp_path / "maps")
    assert (tmp_path / "maps" / name).read_bytes() == frame_pictures(classifier, "stretch")(image, 90)
    assert len(files(tmp_path / "kept")) == 2, "a picture and its description"
    assert (tmp_path / "kept" / SAMPLE_FILE).exists() and not (tmp_path / "maps" / SAMPLE_FILE).exists()


def test_a_picture_has_the_place_and_size_of_the_models_region_and_a_jpeg_that_was_seen_whole_is_unchanged():
    seen = noisy(4, 24, 48)
    data, width, height = View(0, (0.5, 0.0, 0.5, 1.0), REGION).jpeg(np.concatenate([255 - seen, seen], axis=1))
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert (width, height) == (192, 64) and pixels.shape == (64, 192, 3)
    assert np.abs(pixels[32:56, 24:72] - seen).mean() < 5
    pixels[32:56, 24:72] = GREY
    assert np.abs(pixels - GREY).mean() < 1
    whole, _ = encode(noisy(4, 48, 64))
    assert View(0, WHOLE, WHOLE).jpeg(whole) == (whole, 64, 48)
    turned, width, height = View(90, WHOLE, WHOLE).jpeg(whole)
    assert (width, height) == Image.open(io.BytesIO(turned)).size == (48, 64)
    assert View(0, (0.5, 0.25, 0.5, 0.5), WHOLE).jpeg(whole)[1:] == (32, 24), "only what the model saw"
    corner = (0.0, 0.0, 0.5, 0.5)
    grey = np.asarray(Image.open(io.BytesIO(View(0, corner, corner).jpeg(whole)[0]))).astype(int)
    assert np.abs(grey[24:] - GREY).mean() < 1 < np.abs(grey[:24, :32] - GREY).mean(), "grey around the model's region"


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_rotating_bytes_equals_rotating_pixels():
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    encoded = png(pixels)
    right = pixels[::-1].transpose(1, 0, 2)  # clockwise: the bottom row becomes the left column
    for rotation, turned in ((0, pixels), (90, right), (180, pixels[::-1, ::-1]), (270, right[::-1, ::-1])):
        assert np.array_equal(np.asarray(turn(encoded, rotation)), turned)
        assert np.array_equal(turn(pixels, rotation), turned)
        data, suffix = encode(encoded, rotation)
        assert (suffix, data == encoded) == ((".png", True) if not rotation else (".jpg", False))


def test_labels_that_cannot_be_folder_names():
    for label, why in (
        ("red fox", ""),
        ("Füchse", ""),
        ("", "empty"),
        (".git", "hidden"),
        ("..", "hidden"),
        ("a/b", "slash"),
        ("a\\b", "slash"),
        ("a\nb", "control character"),
        ("a\u200db", "unprintable"),
        ("abstain", "unsure"),
        (" a", "space"),
        *((split, "splits") for split in ("Val", "valid", "validation", "train", "test")),
        ("ü" * 99, "longer"),
    ):
        assert why in why_no_folder(label) and bool(why) == bool(why_no_folder(label))
