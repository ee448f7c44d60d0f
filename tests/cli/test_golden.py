"""Each command prints what its file in golden/ says: its help, and lines about results that are written here by hand.

    pytest tests/cli/test_golden.py --rewrite

writes the files again. Read their differences before you commit: each figure stays in its column, with its unit.
"""

import functools
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecnn.cli import COMMANDS

GOLDEN = Path(__file__).parent / "golden"
SAMPLES = defaultdict(list)
"""The functions that print known results, by command."""


def prints(command):
    """Register a function that prints lines of a command."""

    def register(function):
        SAMPLES[command].append(function)
        return function

    return register


@pytest.mark.parametrize("command", ["edgecnn", *COMMANDS])
def test_a_command_prints_what_its_golden_file_says(command, edgecnn, capfd, monkeypatch, request):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("edgecnn.device.benchmark.hardware", lambda: "a machine, 2 CPUs")
    text = edgecnn(*[command] * (command != "edgecnn"), "--help").out
    for sample in SAMPLES[command]:
        sample()
        out, err = capfd.readouterr()
        text += f"\n== {sample.__name__.replace('_', ' ')}\n{out}" + "".join(
            f"stderr: {line}\n" for line in err.splitlines()
        )
    path = GOLDEN / f"{command}.txt"
    if request.config.getoption("rewrite"):
        path.write_text(text, encoding="utf-8")
    assert path.exists() and text.splitlines() == path.read_text(encoding="utf-8").splitlines(), (
        "if this is what it should print, run: pytest tests/cli/test_golden.py --rewrite"
    )


def test_each_golden_file_has_a_command():
    assert {path.stem for path in GOLDEN.iterdir()} == {"edgecnn", *COMMANDS}


def benchmark_row(threads, infer, n, golden="", gate=None):
    from edgecnn.device.benchmark import BenchmarkRow, Configuration, Percentiles, Probed

    parts = {
        "decode": Percentiles(1.25, 1.5, 1.75, n),
        "preprocess": Percentiles(0.125, 0.25, 0.375, n),
        "infer": Percentiles(infer, 3.5, 4.5, n),
        "whole": Percentiles(5.5, 6.5, 7.5, n),
    }
    item = Configuration("litert", "models/int8.tflite", "int8", threads, None)
    probed = Probed(version="2", computes="cpu", peak_mib=41.6, golden=golden)
    return BenchmarkRow(configuration=item, probed=probed, parts=parts, gate=gate)


@prints("benchmark")
def a_table():
    from edgecnn.cli.doctor import print_table
    from edgecnn.device.benchmark import Sweep

    slow = benchmark_row(2, 3.0, 40, gate=False)
    damaged = benchmark_row(4, 3.25, 40, golden="3 images differ")
    print_table(Sweep((benchmark_row(1, 2.5, 35, gate=True), slow, damaged), {}, False, 0.0))


@prints("benchmark")
def a_table_without_a_winner():
    from edgecnn.cli.doctor import print_table
    from edgecnn.device.benchmark import Sweep

    print_table(Sweep((benchmark_row(2, 3.0, 40, gate=False),), {}, False, 0.0))


@prints("benchmark")
def windows_and_the_drift_between_them():
    from edgecnn.cli.doctor import sustained_line, window_line
    from edgecnn.device.benchmark import Percentiles, Sustained, Window
    from edgecnn.device.system import Sensors

    idle = Sensors(mhz=None, celsius=None, throttled=None, throttle_count=None)
    hot = Sensors(mhz=1500, celsius=81.25, throttled=0b101, throttle_count=None)
    cool = Sensors(mhz=1500, celsius=50.0, throttled=0, throttle_count=None)
    first, last = (
        Window(start, 60.0, Percentiles(p50, 9.0, 12.0, 1234), Percentiles(1.0, 2.0, 3.0, 1234), sensors)
        for start, p50, sensors in ((0.0, 8.0, idle), (60.0, 7.0, hot))
    )
    calm = Window(0.0, 60.0, first.whole, first.infer, cool)
    print(window_line(first), window_line(last), sep="\n")
    for start, windows in ((idle, (first, last)), (cool, (last,)), (cool, (calm, calm))):
        print(sustained_line(Sustained(start, windows, False)))


@prints("train")
def a_dry_runs_phases():
    pytest.importorskip("scipy", reason="the workstation side needs the train extra")
    from edgecnn.cli.recipes import phase_table

    print(
        phase_table(
            [
                SimpleNamespace(
                    phase="float", epochs=7, steps=1250, step_s=0.0125, images_per_s=5120.4, epoch_s=15.6, total_s=109.4
                )
            ]
        )
    )


@prints("train")
def the_last_line():
    """With folds, 90 % of 300 images and 50 % of 100 are 80 % of 400."""
    from edgecnn.cli.train import result_text

    run = SimpleNamespace(path=Path("runs/pets"))
    folds = (SimpleNamespace(images=300, int8_accuracy=0.9), SimpleNamespace(images=100, int8_accuracy=0.5))
    for method, some, head in (("qat", folds, False), ("qat", (), False), ("ptq", (), False), ("qat", (), True)):
        int8 = SimpleNamespace(method=method, epoch=0, validation=SimpleNamespace(n=320))
        info = SimpleNamespace(int8=int8, folds=some, validation_accuracy=0.9375, head_ships=head)
        print(result_text(run, info, None))
    print(result_text(None, info, SimpleNamespace(index=2)))


@prints("train")
def epochs():
    pytest.importorskip("rich", reason="the workstation side needs the train extra")
    from edgecnn.cli.progress import ProgressReporter

    epoch = SimpleNamespace(
        phase="qat", epoch=3, epochs=12, loss=0.5, accuracy=0.8125, images_per_s=1234.4, seconds_left=83.2, images=6400,
        total_images=6400, validation_accuracy=0.75, int8_accuracy=None, int8_agreement=None,
    )  # fmt: skip
    with ProgressReporter() as reporter:
        reporter.training(epoch)
        epoch.int8_accuracy, epoch.int8_agreement = 0.0, 0.9375
        reporter.training(epoch)


@prints("inspect")
def findings():
    pytest.importorskip("jinja2", reason="the workstation side needs the train extra")
    pytest.importorskip("scipy", reason="the workstation side needs the train extra")
    from edgecnn.cli.inspect import print_report

    found = [
        SimpleNamespace(severity=one, text=f"fault {number}", advice="Fix it.")
        for number, one in enumerate(("error", "warning", "warning", "warning", "note", "note"))
    ]
    splits = {"train": 1000, "validation": 0, "test": 234}
    report = SimpleNamespace(name="pets", images=1234, classes=("cat", "dog"), splits=splits, findings=found)
    for full in (False, True):
        print_report(report, full)


@prints("selftest")
def models():
    from edgecnn.cli.doctor import selftest_line
    from edgecnn.runtime import selftest

    row = functools.partial(selftest.SelftestRow, "m.tflite", "litert", "2.3", "XNNPACK", 8, 2.5, "LSB", 1.0, 3)
    for one in (row(False), row(True), selftest.SelftestRow("m.onnx", note="no engine")):
        print(selftest_line(one))


@prints("capture")
def kept_and_skipped_pictures():
    from edgecnn.cli.capture import show
    from edgecnn.device.stream.pictures import Shot

    for as_json in (False, True):
        show(Shot(Path("cat/7.jpg"), None, 12.345, None), json=as_json)
        show(Shot(None, "damaged", None, None), json=as_json)
        show(Shot(None, "blurred", 3.21, None), json=as_json)
        show(Shot(None, "same", 45.6, 1.25), json=as_json)


@prints("classify")
def events():
    from edgecnn.cli.classify_stream import event_text, state_text
    from edgecnn.device.stream import events

    def text(kind, **details):
        return event_text(kind(ts=0, source="/dev/video0", **details))

    for frames in (1234, 1):
        counts = {"frames": frames, "dropped": 5678, "damaged": 3}
        print(text(events.EndedEvent, reason="max_frames", **counts))
    print(text(events.CameraOpenedEvent, about="a script", live=True))
    print(text(events.CameraLostEvent, reason="stall", message="no frame for 5.0 s."))
    print(text(events.CameraBackEvent, about="640x480", after_s=2.26, attempts=7))
    for count in (1, 3):
        print(text(events.SaveFailedEvent, message="disk full", seq=5, count=count))
    change = functools.partial(events.StateChangedEvent, ts=0, source="", previous=None, seq=3)
    print(state_text(change(state="cat", score=0.0625, reason=None)))
    print(state_text(change(state="abstain", score=0.5, reason="below_threshold")))
    print(state_text(change(state=None, score=None, reason="camera_lost")))


@prints("review")
def the_end():
    from edgecnn.cli.review import report

    counts = {"labelled": 1234, "none": 2, "skipped": 3, "left": 5, "unreadable": 7, "more": 0}
    for as_json in (False, True):
        report(SimpleNamespace(document=lambda: counts, field=lambda: None), 11, json=as_json)


@prints("slot")
def releases():
    from edgecnn.cli.slot import show
    from edgecnn.device.slots.record import Release, Slots
    from edgecnn.device.slots.store import Store

    old, new, other = "a" * 64, "b" * 64, "c" * 64
    known = {
        digest: Release(name=name, serial=serial, state=state)
        for digest, name, serial, state in (
            (old, "cats", 3, "good"),
            (other, "eels", 0, "bad"),
            (new, "dogs", 12, "pending"),
        )
    }
    show(Store(Path("slots")), Slots(chain=(new, old), releases=known), json=False)


@prints("update")
def the_status_of_a_board_and_of_one_that_never_had_a_release():
    from edgecnn.cli.update import lines_of

    found = {
        "from": "https://a.example/", "channel": "door", "board": "0f" * 16, "last_check": "2026-11-28T10:00:00Z",
        "reason": "no network", "last_good": "2026-11-25T09:00:00Z", "clock": "behind", "bad": {"d" * 64: "it crashed"},
        "release": {"sha256": "e" * 64, "name": "dogs", "serial": 12, "number": 7},
        "in_use": {"sha256": "f" * 64, "name": "cats", "serial": 3, "state": "good"},
    }  # fmt: skip
    held = {"name": "cats", "serial": 4, "number": 9, "sha256": "c" * 64, "reason": "rolled back by hand"}
    print(*lines_of(found | {"held_back": held}), "", sep="\n")
    never = {"reason": None, "last_good": None, "release": None, "in_use": None, "clock": "", "bad": {}}
    print(*lines_of(found), "", *lines_of(found | never), sep="\n")


@prints("update")
def the_end_with_a_release_with_none_that_is_new_and_with_none():
    from edgecnn.cli.update import outcome_text

    entry = SimpleNamespace(sha256="ab" * 32, name="cats", terms=SimpleNamespace(serial=12, number=7))
    newer = SimpleNamespace(name="cats", terms=SimpleNamespace(serial=13, number=8))
    for installed, given, held in ((True, entry, None), (False, entry, newer), (False, None, None)):
        outcome = SimpleNamespace(entry=given, installed=installed, note="nothing new", held=held, why="it crashed")
        print(outcome_text(outcome))


@prints("deploy")
def boards():
    pytest.importorskip("tuf", reason="releases need the release extra")
    from edgecnn.cli.deploy import board_outcome_text
    from edgecnn.fleet.deploy import DeployOutcome

    status = {"in_use": {"name": "cats", "serial": 7, "state": "pending"}}
    sent = {"files": 3, "sent_bytes": 2_345_678, "received_bytes": 99, "seconds": 12.34}
    for outcome in (
        DeployOutcome(host="pi@a", installed="1.2 for x", status=status, **sent),
        DeployOutcome(host="b", files=1, sent_bytes=512, seconds=0.96),
        DeployOutcome(host="c"),
    ):
        print(board_outcome_text(outcome))


@prints("targets")
def all_targets():
    from edgecnn.cli.networks import targets

    targets()
