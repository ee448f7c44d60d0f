"""Does the speed hold? One configuration for minutes, with its times, the clock, the temperature and throttling."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from edgecnn.device.benchmark.figures import Percentiles, percentiles
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.device.benchmark.sweep import time_call
from edgecnn.device.sensors import SINCE_START, Sensors, read_sensors, throttle_words
from edgecnn.device.system import System
from edgecnn.runtime.classifier import Classifier

WINDOW_S = 60.0
"""A window's length; half of the whole where that is shorter."""


class Window(NamedTuple):
    """A minute or less: its start in seconds, the times of the whole call and of the inference, the sensors at its end."""

    start_s: float
    seconds: float
    whole: Percentiles
    infer: Percentiles
    sensors: Sensors

    def to_json(self) -> dict[str, Any]:
        """Return the window as plain JSON values."""
        return {
            "start_s": self.start_s,
            "seconds": self.seconds,
            "whole": self.whole._asdict(),
            "infer": self.infer._asdict(),
            "sensors": self.sensors._asdict(),
        }


class Sustained(NamedTuple):
    """All windows in order. `before` are the sensors at the start."""

    before: Sensors
    windows: tuple[Window, ...]
    interrupted: bool

    @property
    def drift(self) -> float | None:
        """The last window's p50 of the whole by the first's, less 1; None with fewer than two windows."""
        if len(self.windows) < 2:
            return None
        return self.windows[-1].whole.p50_ms / self.windows[0].whole.p50_ms - 1

    @property
    def throttled(self) -> list[str] | None:
        """What slowed the machine: flags that were set at the end of a window, or since the start; None without such a sensor."""
        slowed_by: list[str] = []
        known = False
        for sensors in (self.before, *(window.sensors for window in self.windows)):
            if sensors.throttled is not None and self.before.throttled is not None:
                known = True
                now, since = throttle_words(sensors.throttled & ~(self.before.throttled >> SINCE_START << SINCE_START))
                slowed_by += now + since
            if sensors.throttle_count is not None and self.before.throttle_count is not None:
                known = True
                slowed_by += ["throttled"] if sensors.throttle_count > self.before.throttle_count else []
        return list(dict.fromkeys(slowed_by)) if known else None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        return {
            "before": self.before._asdict(),
            "windows": [window.to_json() for window in self.windows],
            "drift": self.drift,
            "throttled": self.throttled,
            "interrupted": self.interrupted,
        }


def sustain(
    classifier: Classifier,
    images: BenchImages,
    *,
    minutes: float,
    warmup: int,
    system: System,
    report: Callable[[Window], object],
    clock: Callable[[], float] = time.monotonic,
) -> Sustained:
    """Classify without a pause for some minutes. An interruption (Ctrl-C) ends it with what was measured so far.

    Args:
        classifier: as opened.
        images: each call takes the next one.
        minutes: how long, above 0.
        warmup: calls before.
        system: whose sensors are read.
        report: called with each complete window.
        clock: seconds.
    """
    for index in range(warmup):
        classifier.classify(images.at(index))
    before = read_sensors(system)
    length = min(WINDOW_S, minutes * 30)
    count = max(2, round(minutes * 60 / length))
    windows: list[Window] = []
    whole: list[float] = []
    infer: list[float] = []
    start = began = clock()
    index = 0
    interrupted = False
    try:
        while len(windows) < count:
            times = time_call(classifier, images.at(index))
            whole.append(times["whole"])
            infer.append(times["infer"])
            index += 1
            now = clock()
            if now - start >= length:
                windows.append(_window(start - began, now - start, whole, infer, system))
                report(windows[-1])
                whole, infer, start = [], [], clock()
    except KeyboardInterrupt:
        interrupted = True
        if whole and infer:
            windows.append(_window(start - began, clock() - start, whole, infer, system))
    return Sustained(before, tuple(windows), interrupted)


def _window(start: float, seconds: float, whole: list[float], infer: list[float], system: System) -> Window:
    return Window(start, seconds, percentiles(whole), percentiles(infer), read_sensors(system))
