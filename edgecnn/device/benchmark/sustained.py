"""Does the speed hold? Run one configuration for minutes, and record times, clock, temperature and throttling."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from edgecnn.device.benchmark.figures import Percentiles, percentiles
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.device.benchmark.sweep import time_call
from edgecnn.device.sensors import SINCE_START, Sensors, read_sensors, throttle_words
from edgecnn.device.system import System
from edgecnn.runtime.classifier import Classifier

WINDOW_S = 60.0  # a window's length, or half of the whole run if that is shorter


@dataclass(frozen=True)
class Window:
    """A minute or less: the times of whole calls and of inference, and the sensors at the end."""

    start_s: float
    seconds: float
    whole: Percentiles
    infer: Percentiles
    sensors: Sensors


@dataclass(frozen=True)
class Sustained:
    """All windows in order. `before` has the sensor readings at the start."""

    before: Sensors
    windows: tuple[Window, ...]
    interrupted: bool

    @property
    def drift(self) -> float | None:
        """The last window's p50 of the whole call over the first's, minus 1; None with fewer than two windows."""
        return self.windows[-1].whole.p50_ms / self.windows[0].whole.p50_ms - 1 if len(self.windows) > 1 else None

    @property
    def throttled(self) -> list[str] | None:
        """What slowed the machine: flags set at the end of a window or since the start; None without such a sensor."""
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
    """Classify without a pause for some minutes, and `report` each window. Ctrl-C ends the run and keeps the measurements so far."""
    for index in range(warmup):
        classifier.classify(images.at(index))
    before = read_sensors(system)
    length = min(WINDOW_S, minutes * 30)
    count = max(2, round(minutes * 60 / length))
    windows: list[Window] = []
    times: list[dict[str, float]] = []
    start = began = clock()
    interrupted = False

    def end_window() -> None:
        whole, infer = (percentiles([call[part] for call in times]) for part in ("whole", "infer"))
        windows.append(Window(start - began, clock() - start, whole, infer, read_sensors(system)))

    try:
        for index in itertools.count():
            times.append(time_call(classifier, images.at(index)))
            if clock() - start >= length:
                end_window()
                report(windows[-1])
                if len(windows) == count:
                    break
                times, start = [], clock()
    except KeyboardInterrupt:
        interrupted = True
        if times:
            end_window()
    return Sustained(before, tuple(windows), interrupted)
