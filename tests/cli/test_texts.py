"""What commands print about figures that are known: each number in its own column, with its own unit."""

import functools

import pytest

from edgecnn.cli import benchmark_text
from edgecnn.cli.progress import clock
from edgecnn.cli.selftest import selftest_line
from edgecnn.device.benchmark.configurations import Configuration
from edgecnn.device.benchmark.figures import Percentiles, Probed, Row, Sweep
from edgecnn.device.benchmark.sustained import Sustained, Window
from edgecnn.device.sensors import Sensors
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
    return Row(configuration=item, probed=probed, parts=parts, gate=more.get("gate"), cold=more.get("cold"))


def test_a_benchmarks_table_has_each_figure_in_its_column(capsys):
    slow = measured(2, 3.0, 40, gate=False)
    damaged = measured(4, 3.25, 40, golden="3 images differ")
    rows = (measured(1, 2.5, 35, gate=True, cold=Percentiles(310.4, 320.0, 330.0, 5)), slow, damaged)
    benchmark_text.print_table(Sweep(rows, {}, False, 0.0))
    head, _, groups, columns, *table = capsys.readouterr().out.splitlines()
    assert head.endswith("; ms, n = 35 to 40; fastest first by infer p50")
    assert groups.split() == ["infer", "whole", "peak", "cold"]
    assert columns.split() == ["configuration", *["p50", "p90", "p99"] * 2, "MiB", "ms", "gate"]
    assert [" ".join(line.split()) for line in table[:3]] == [
        "litert int8, 1 thread 2.500 3.500 4.500 5.500 6.500 7.500 42 310 passed",
        "litert int8, 2 threads 3.000 3.500 4.500 5.500 6.500 7.500 42 - FAILED",
        "litert int8, 4 threads 3.250 3.500 4.500 5.500 6.500 7.500 42 - unknown; GOLDEN VECTORS FAILED: 3 images differ",
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
    cool = HOT._replace(throttled=0) if hasattr(HOT, "_replace") else Sensors(1500, 50.0, 0, None)
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
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.cli.dry_run import phase_table
    from edgecnn.train.dry_run import PhaseCost

    cost = PhaseCost("float", epochs=7, steps=1250, step_s=0.0125, images_per_s=5120.4, epoch_s=15.6, total_s=109.4)
    heading, _, row = phase_table([cost]).splitlines()
    assert heading.split() == "phase epochs steps ms per step images/s per epoch phase".split()
    assert row.split() == ["float", "7", "1,250", "12.5", "5,120", "0:16", "1:49"]


def test_a_selftests_line_compares_the_largest_difference_with_what_is_allowed():
    row = functools.partial(selftest.Row, "m.tflite", "litert", "2.3", "XNNPACK", 8, 2.5, "LSB", 1.0, 3)
    assert selftest_line(row(False)) == (
        "FAILED  m.tflite on litert 2.3 (XNNPACK): 8 images, largest difference 2.5 LSB (1 allowed), top-1 changes 3"
    )
    assert selftest_line(row(True)).startswith("passed  ")
    assert selftest_line(selftest.Row("m.onnx", note="no engine")) == "-       m.onnx: no engine"


def test_progress_of_stress_counts_the_time_left_from_where_an_earlier_run_ended(monkeypatch):
    """60 of 100 images were there at the start. Ten more take 50 s, so the other 30 take 150 s."""
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
    for passed, done in ((0, 60), (29, 66), (50, 70)):
        now[0] = 1000.0 + passed
        progress(done, 100)
    assert Shown.lines == [
        ("stress", 60, 100),
        ("stress, 2:44 left", 66, 100),
        ("stress, 2:30 left", 70, 100),
    ]
    assert Shown.notes == ["stress, 2:30 left: 70 of 100 corrupted images"]
