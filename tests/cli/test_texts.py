"""What commands print about figures that are known: each number in its own column, with its own unit."""

import dataclasses
import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecnn.cli import benchmark_text
from edgecnn.cli.progress import clock
from edgecnn.cli.selftest import selftest_line
from edgecnn.cli.stream import event_text, state_text
from edgecnn.cli.update import lines_of
from edgecnn.device.benchmark.configurations import Configuration
from edgecnn.device.benchmark.figures import Percentiles, Probed, Row, Sweep
from edgecnn.device.benchmark.sustained import Sustained, Window
from edgecnn.device.sensors import Sensors
from edgecnn.device.stream import events
from edgecnn.runtime import selftest

IDLE = Sensors(mhz=None, celsius=None, throttled=None, throttle_count=None)
HOT = Sensors(mhz=1500, celsius=81.25, throttled=0b101, throttle_count=None)


def measured(threads, infer, n, **more):
    """Return a row whose parts take known times."""
    parts = {
        "decode": Percentiles(1.25, 1.5, 1.75, n),
        "preprocess": Percentiles(0.125, 0.25, 0.375, n),
        "infer": Percentiles(infer, 3.5, 4.5, n),
        "whole": Percentiles(5.5, 6.5, 7.5, n),
    }
    probed = Probed(version="2", computes="cpu", peak_mib=41.6, golden=more.pop("golden", ""))
    item = Configuration("litert", "models/int8.tflite", "int8", threads, None)
    return Row(configuration=item, probed=probed, parts=parts, gate=more.get("gate"))


def test_a_benchmarks_table_has_each_figure_in_its_column(capsys):
    slow = measured(2, 3.0, 40, gate=False)
    damaged = measured(4, 3.25, 40, golden="3 images differ")
    rows = (measured(1, 2.5, 35, gate=True), slow, damaged)
    benchmark_text.print_table(Sweep(rows, {}, False, 0.0))
    head, _, groups, columns, *table = capsys.readouterr().out.splitlines()
    assert head.endswith("; ms, n = 35 to 40; fastest first by infer p50")
    assert groups.split() == ["infer", "whole", "peak"]
    assert columns.split() == ["configuration", *["p50", "p90", "p99"] * 2, "MiB", "gate"]
    assert [" ".join(line.split()) for line in table[:3]] == [
        "litert int8, 1 thread 2.500 3.500 4.500 5.500 6.500 7.500 42 passed",
        "litert int8, 2 threads 3.000 3.500 4.500 5.500 6.500 7.500 42 FAILED",
        "litert int8, 4 threads 3.250 3.500 4.500 5.500 6.500 7.500 42 unknown; GOLDEN VECTORS FAILED: 3 images differ",
    ]
    assert table[4:6] == [
        "decode: p50 1.250, p90 1.500, p99 1.750 ms (of the first row)",
        "preprocess: p50 0.125, p90 0.250, p99 0.375 ms (of the first row)",
    ]
    assert table[6].startswith("winner: litert int8, 1 thread (")
    benchmark_text.print_table(Sweep((slow,), {}, False, 0.0))
    out = capsys.readouterr().out
    assert "; ms, n = 40; " in out and "\nwinner: none (" in out


def test_a_long_benchmark_says_from_where_to_where_the_speed_went():
    first, last = (
        Window(start, 60.0, Percentiles(p50, 9.0, 12.0, 1234), Percentiles(1.0, 2.0, 3.0, 1234), sensors)
        for start, p50, sensors in ((0.0, 8.0, IDLE), (60.0, 7.0, HOT))
    )
    assert benchmark_text.window_line(first).strip() == "0 s  p50 8.000 ms  p90 9.000 ms  n = 1,234"
    assert benchmark_text.window_line(last).strip() == (
        "60 s  p50 7.000 ms  p90 9.000 ms  n = 1,234  1,500 MHz  81.2 °C  under-voltage, throttled"
    )
    line = benchmark_text.sustained_line(Sustained(IDLE, (first, last), False))
    assert line.startswith("drift of p50: -12.5%, from 8.000 ms to 7.000 ms; throttling is unknown")
    cool = Sensors(mhz=1500, celsius=50.0, throttled=0, throttle_count=None)
    assert benchmark_text.sustained_line(Sustained(cool, (last,), False)) == (
        "the drift is unknown with fewer than two windows; it throttled: under-voltage, throttled"
    )
    calm = Window(0.0, 60.0, first.whole, first.infer, cool)
    assert benchmark_text.sustained_line(Sustained(cool, (calm, calm), False)).endswith("; it did not throttle")


def test_times_are_minutes_and_seconds_and_from_an_hour_on_hours():
    seconds = (0, 0.6, 59.4, 59.6, 600, 3599.4, 3599.6, 7384, 360_061)
    assert list(map(clock, seconds)) == [
        "0:00", "0:01", "0:59", "1:00", "10:00", "59:59", "1:00:00", "2:03:04", "100:01:01",
    ]  # fmt: skip


def test_a_dry_runs_table_has_steps_milliseconds_and_times():
    pytest.importorskip("scipy", reason="the workstation side needs the train extra")
    from edgecnn.cli.dry_run import phase_table

    cost = SimpleNamespace(
        phase="float", epochs=7, steps=1250, step_s=0.0125, images_per_s=5120.4, epoch_s=15.6, total_s=109.4
    )
    heading, _, row = phase_table([cost]).splitlines()
    assert heading.split() == ["phase", "epochs", "steps", "ms", "per", "step", "images/s", "per", "epoch", "phase"]
    assert row.split() == ["float", "7", "1,250", "12.5", "5,120", "0:16", "1:49"]


def test_a_selftests_line_compares_the_largest_difference_with_what_is_allowed():
    row = functools.partial(selftest.Row, "m.tflite", "litert", "2.3", "XNNPACK", 8, 2.5, "LSB", 1.0, 3)
    assert selftest_line(row(False)) == (
        "FAILED  m.tflite on litert 2.3 (XNNPACK): 8 images, largest difference 2.5 LSB (1 allowed), top-1 changes 3"
    )
    assert selftest_line(row(True)).startswith("passed  ")
    assert selftest_line(selftest.Row("m.onnx", note="no engine")) == "-       m.onnx: no engine"


def test_progress_of_stress_counts_the_time_left(monkeypatch):
    """30 images take 60 s, so the other 70 take 140 s."""
    from edgecnn.cli import stress

    class Bars:
        disable = True

    class Shown:
        bars, lines, notes = Bars, [], []

        def working(self, what, done, total):
            self.lines.append((what, done, total))

        def note(self, text):
            self.notes.append(text)

    now = [1000.0]
    monkeypatch.setattr(stress.time, "monotonic", lambda: now[0])
    progress = stress.progress_of(Shown())
    for passed, done in ((20, 10), (60, 30)):
        now[0] = 1000.0 + passed
        progress(done, 100)
    assert Shown.lines == [
        ("stress, 3:00 left", 10, 100),
        ("stress, 2:20 left", 30, 100),
    ]
    assert Shown.notes == ["stress, 2:20 left: 30 of 100 corrupted images"]


def test_a_picture_that_is_not_kept_says_why_and_by_how_much(capfd):
    from edgecnn.cli.capture import show
    from edgecnn.device.stream.capture import Shot

    shots = (
        Shot(Path("cat/7.jpg"), None, 12.345, None),
        Shot(None, "damaged", None, None),
        Shot(None, "blurred", 3.21, None),
        Shot(None, "same", 45.6, 1.25),
    )
    for shot in shots:
        show(shot, json=False)
    kept, notes = capfd.readouterr()
    assert kept == "cat/7.jpg\n"
    assert notes.splitlines() == [
        "skipped: damaged",
        "skipped: blurred, sharpness 3.2 (see --min-sharpness)",
        "skipped: too similar to the last one, change 1.25 (see --min-change)",
    ]
    for shot in (shots[0], shots[3]):
        show(shot, json=True)
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == [
        {"path": "cat/7.jpg", "reason": None, "sharpness": 12.35, "change": None},
        {"path": None, "reason": "same", "sharpness": 45.6, "change": 1.25},
    ]


def test_events_name_what_was_counted_and_how_long_it_took():
    def text(kind, **details):
        return event_text(kind(ts=0, source="/dev/video0", **details))

    ended = {"seq": 9, "frames": 1234, "dropped": 5678, "damaged": 3}
    fields = {entry.name for entry in dataclasses.fields(events.EndedEvent)}
    ended = {name: value for name, value in ended.items() if name in fields}
    assert text(events.EndedEvent, reason="max_frames", **ended) == (
        "ended (max frames): 1,234 frames, 5,678 dropped, 3 damaged"
    )
    assert text(events.EndedEvent, reason="signal", **ended | {"frames": 1}).startswith("ended (signal): 1 frame, ")
    back = text(events.CameraBackEvent, about="640x480", after_s=2.26, attempts=7)
    assert back == "camera back after 2.3 s: /dev/video0: 640x480"
    once, thrice = (text(events.SaveFailedEvent, message="disk full", seq=5, count=count) for count in (1, 3))
    assert (once, thrice) == ("save failed: disk full", "save failed: disk full (3 times)")
    change = functools.partial(events.StateChangedEvent, ts=0, source="", previous=None, seq=3)
    assert state_text(change(state="cat", score=0.0625, reason=None)) == "cat 6.25%"
    assert state_text(change(state="abstain", score=0.5, reason="below_threshold")) == "abstain (below_threshold)"
    assert state_text(change(state=None, score=None, reason="camera_lost")) == "- (camera_lost)"


def test_a_review_ends_with_its_counts_and_those_of_the_board(capfd):
    from edgecnn.cli.review import report

    class Reviewing:
        def document(self):
            return {"labelled": 1234, "none": 2, "skipped": 3, "left": 5, "unreadable": 7, "more": 0}

        def field(self):
            return None

    report(Reviewing(), 11, json=False)
    assert capfd.readouterr().out == "1,234 labelled, 2 none of these, 3 skipped; 5 left, 7 damaged\n"
    report(Reviewing(), 11, json=True)
    assert json.loads(capfd.readouterr().out) == {
        "from_board": 11, "labelled": 1234, "none": 2, "skipped": 3, "left": 5, "unreadable": 7, "field": None,
    }  # fmt: skip


def test_the_list_of_releases_begins_with_the_one_in_use_then_those_before_it(capfd, tmp_path):
    from edgecnn.cli.slot import show
    from edgecnn.device.slots.record import Release, Slots
    from edgecnn.device.slots.store import Store

    def release(name, serial, state):
        return Release(name=name, serial=serial, state=state)

    old, new, other = "a" * 64, "b" * 64, "c" * 64
    releases = {old: release("cats", 3, "good"), other: release("eels", 0, "bad"), new: release("dogs", 12, "pending")}
    show(Store(tmp_path), Slots(chain=(new, old), releases=releases), json=False)
    lines = [line.partition(";")[0] for line in capfd.readouterr().out.splitlines()]
    assert lines == [
        "in use  bbbbbbbbbbbb dogs serial 12 pending",
        "before  aaaaaaaaaaaa cats serial 3 good",
        "-       cccccccccccc eels bad",
    ]


def test_a_boards_last_check_names_each_date_and_release_in_its_place():
    found = {
        "from": "https://a.example/", "channel": "door", "board": "0f" * 16, "last_check": "2026-11-28T10:00:00Z",
        "reason": "no network", "last_good": "2026-11-25T09:00:00Z", "clock": "behind", "bad": {"d" * 64: "it crashed"},
        "release": {"sha256": "e" * 64, "name": "dogs", "serial": 12, "number": 7},
        "in_use": {"sha256": "f" * 64, "name": "cats", "serial": 3, "state": "good"},
    }  # fmt: skip
    assert lines_of(found) == [
        "from     https://a.example/, channel door, board " + "0f" * 16,
        "checked  2026-11-28T10:00:00Z: no network",
        "good     2026-11-25T09:00:00Z",
        "release  eeeeeeeeeeee dogs serial 12, release 7",
        "in use   ffffffffffff cats serial 3 good",
        "clock    behind: the date is taken from the newest signed metadata",
        "bad      dddddddddddd: it crashed",
    ]
    never = lines_of(
        found | {"reason": None, "last_good": None, "release": None, "in_use": None, "clock": "", "bad": {}}
    )
    assert never[1:] == [
        "checked  2026-11-28T10:00:00Z: good",
        "good     never",
        "release  none for this board",
        "in use   none, or only root can read it",
    ]


def test_a_deployed_board_says_what_it_got_in_kilobytes():
    pytest.importorskip("tuf", reason="releases need the release extra")
    from edgecnn.cli.deploy import described
    from edgecnn.fleet.deploy import Outcome

    status = {"in_use": {"name": "cats", "serial": 7, "state": "pending"}}
    first = Outcome(
        host="pi@a",
        installed="1.2 for x",
        files=3,
        sent_bytes=2_345_678,
        received_bytes=99,
        seconds=12.34,
        status=status,
    )
    assert described(first) == ("pi@a  cats serial 7 pending; installed 1.2 for x, 3 files; sent 2,345.7 kB in 12.3 s")
    assert described(Outcome(host="b", files=1, sent_bytes=512, seconds=0.96)) == (
        "b  no release; 1 file; sent 0.5 kB in 1.0 s"
    )
    assert "; nothing new; " in described(Outcome(host="c"))


def test_a_finding_as_severe_as_the_limit_fails_and_milder_ones_pass():
    from edgecnn.cli.inspect import fail
    from edgecnn.errors import FindingsError

    def report(*severities):
        return SimpleNamespace(name="pets", findings=[SimpleNamespace(severity=one) for one in severities])

    fail(report("note", "warning", "error"), "never")
    fail(report("note", "warning"), "error")
    fail(report("note", "note"), "warning")
    for severities, limit, count in (
        (("note", "warning", "error"), "note", "3 findings of severity note or worse. "),
        (("note", "warning", "error"), "warning", "2 findings of severity warning or worse. "),
        (("warning", "error", "note"), "error", "1 finding of severity error. "),
    ):
        with pytest.raises(FindingsError, match=f"^pets: {count}"):
            fail(report(*severities), limit)
