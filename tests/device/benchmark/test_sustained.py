"""Minutes of one configuration, on a clock that each call advances."""

from pathlib import Path

import pytest

from edgecnn.device.benchmark import sustained
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.device.sensors import Sensors
from edgecnn.device.system import System
from edgecnn.tables import to_json

IMAGES = BenchImages("", ("a", "b"), ("a", "b"), "")


@pytest.fixture
def run(monkeypatch, fake_classifier):
    """Run with calls of given durations in seconds, and sensors read at the start and after each window."""

    def call(seconds, sensors, minutes, stop=None):
        passed = [0.0]
        lengths, readings = iter(seconds), iter(sensors)

        def time_call(classifier, image):
            classifier.classify(image)
            length = next(lengths, None)
            if length is None:
                raise KeyboardInterrupt
            passed[0] += length
            return {"whole": length * 1000, "infer": length * 500}

        monkeypatch.setattr(sustained, "time_call", time_call)
        monkeypatch.setattr(sustained, "read_sensors", lambda system: next(readings))
        seen = []
        done = sustained.sustain(
            fake_classifier,
            IMAGES,
            minutes=minutes,
            warmup=1,
            system=System(root=Path("/none"), packages={}),
            report=seen.append,
            clock=lambda: passed[0],
        )
        assert tuple(seen) == done.windows[: len(seen)]
        return done

    return call


def sensors(throttled=None, count=None):
    return Sensors(mhz=1500, celsius=50.0, throttled=throttled, throttle_count=count)


def test_drift_and_windows(run):
    done = run([10] * 6 + [12] * 5 + [15] * 4, [sensors()] * 4, 3)
    assert [(window.start_s, window.seconds, window.whole.n) for window in done.windows] == [
        (0, 60, 6),
        (60, 60, 5),
        (120, 60, 4),
    ]
    assert done.drift == pytest.approx(0.5)
    assert done.windows[2].infer.p50_ms == 7500
    assert done.throttled is None and not done.interrupted
    assert to_json(done)["windows"][1]["sensors"]["mhz"] == 1500


def test_less_than_two_minutes_are_two_windows(run):
    assert [window.seconds for window in run([1] * 60, [sensors()] * 3, 0.5).windows] == [15, 15]


def test_earlier_throttling_does_not_count(run):
    calls = [30] * 4
    assert run(calls, [sensors(0x50000), sensors(0x50000), sensors(0x50000)], 2).throttled == []
    assert run(calls, [sensors(0x10000), sensors(0x10000), sensors(0x50000)], 2).throttled == ["throttled"]
    assert run(calls, [sensors(0), sensors(0x20002), sensors(0x20000)], 2).throttled == ["frequency capped"]
    assert run(calls, [sensors(count=3), sensors(count=3), sensors(count=3)], 2).throttled == []
    assert run(calls, [sensors(count=3), sensors(count=4), sensors(count=4)], 2).throttled == ["throttled"]


def test_an_interruption_keeps_the_measurements(run):
    done = run([20] * 5, [sensors()] * 3, 10)
    assert done.interrupted and [window.seconds for window in done.windows] == [60, 40]
    nothing = run([], [sensors()], 10)
    assert nothing.interrupted and nothing.windows == () and nothing.drift is None
