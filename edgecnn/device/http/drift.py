"""Drift: how far a camera's scores are from those of the validation images, and from a week that the board's owner has accepted.

Hourly counts are kept in a small file. Validation images are shown next to them without an alarm: a scene that stays all day or a
different mix of classes changes the scores without a fault. The alarm compares a day, and seven days, with the accepted week: see `Week`.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.bundle.evidence import BINS, BOUNDS, ValidationScores, bin_of
from edgecnn.labels import ABSTAIN, STRANGER
from edgecnn.tables import build, key

SCHEMA = "edgecnn.drift/1"

HOUR_S, DAY = 3600, 24  # seconds; hours

WEEK = 7  # days that are accepted together

LEAST_FRAMES = 60  # for an hour to count

LEAST_HOURS = 6  # for a day to count towards the week

COVERED = 0.75  # a day, or seven, is compared only with at least this share of the week's hours

MOST_HOURS = 20 * DAY  # kept while there is no week

GROUPS = 64  # classes counted separately; with more, some share a group

SET_CLOCK_S = 1.7e9  # an earlier time comes from a board whose clock is not set

FALSE_ALARMS = 0.05
"""Largest share of months (30 days) without a change in which the alarm goes off; docs/figures.md has what it does."""

LIMIT = 7.021
"""Student's t with WEEK - 1 degrees of freedom, exceeded with a probability of FALSE_ALARMS / 2 / 30 days / 2 spans."""

SPANS = {1: "24 hours", WEEK: f"{WEEK} days"}

PRIOR = 2 / DAY
"""Weight, in days, of the mean over all classes: a class that hardly occurred in the week takes that mean."""

LEAST_SPREAD = 0.05
"""Smallest standard deviation between days, in bins of the score. A week of one scene varies less, and any other scene differs more."""

EXCEEDING = 6
"""How many of the last seven days must have more strangers than any day of the week: without a change, the probability is 1/429.

This is judged once a day. Judged hourly, it would happen in three times as many months.
"""

TEXT = "the scores differ from those of the week that you accepted"


@dataclass
class Hour:
    """An hour's frames: `counts` per bin of the best score; `groups` holds the frames and the sum of their bins per best class."""

    hour: int
    frames: int = key(0, low=1)
    abstain: int = 0
    stranger: int = 0
    counts: tuple[int, ...] = key((0,) * BINS, valid=lambda counts: len(counts) == BINS, expected=f"{BINS} counts")
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not {*self.groups} <= {*map(str, range(GROUPS))}:
            raise ValueError("an hour's groups are not valid")

    def add(self, score: float, label: int, decision: str) -> None:
        number, group = bin_of(score), str(label % GROUPS)
        self.frames += 1
        self.counts = (*self.counts[:number], self.counts[number] + 1, *self.counts[number + 1 :])
        self.abstain += decision == ABSTAIN
        self.stranger += decision == STRANGER
        frames, bins = self.groups.get(group, (0, 0))
        self.groups[group] = frames + 1, bins + number


def means_of(hours: Sequence[Hour]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the share of each group and its bins per frame, (GROUPS,), and the share of strangers, (): each hour has the same weight."""
    sums = np.zeros((len(hours), GROUPS, 2))
    for number, hour in enumerate(hours):
        for group, values in hour.groups.items():
            sums[number, int(group)] = np.array(values) / hour.frames
    mean = sums.mean(axis=0)
    return mean[:, 0], mean[:, 1], np.array(np.mean([hour.stranger / hour.frames for hour in hours]))


class Week:
    """Compares hours with an accepted week of days.

    The score is compared as a frame's bin minus its best class's mean in the week, so that a different mix of classes changes little. It
    is averaged over a day, because scenes persist, nights are dark and days differ. Each day of the week is compared with the other six in
    the same way. These seven numbers give the spread of a day without drift, whatever makes days differ. With it, t = mean / (spread *
    sqrt(1/7 + 1/days)) approximately follows Student's distribution with 6 degrees of freedom. Permuting hours would treat a day's hours
    as independent. Strangers are rare until one stays all day, which has no such distribution, so days are compared by rank.

    Sources: prediction interval of a further observation, Student 1908; leaving out each day once, Stone 1974; exceedances, Rosenbaum
    1954 (Annals of Mathematical Statistics 25).
    """

    def __init__(self, shares: np.ndarray, levels: np.ndarray, strangers: np.ndarray) -> None:
        """Take `means_of` each day: (WEEK, GROUPS), (WEEK, GROUPS) and (WEEK,)."""
        self._means, self._most = self._of(shares, levels), strangers.max()
        days = range(WEEK)
        others = [self._of(np.delete(shares, day, axis=0), np.delete(levels, day, axis=0)) for day in days]
        left = [self._less(shares[day], levels[day], others[day]) for day in days]
        self._spread = max(math.sqrt((WEEK - 1) / WEEK * np.mean(np.square(left))), LEAST_SPREAD)

    def t(self, shares: np.ndarray, levels: np.ndarray, days: float) -> np.ndarray:
        """Return t of the score, (...), for means over `days` days, each (..., GROUPS)."""
        return self._less(shares, levels, self._means) / (self._spread * math.sqrt(1 / WEEK + 1 / days))

    def has_more_strangers(self, strangers: np.ndarray) -> np.ndarray:
        """Return whether days, (..., WEEK), have more strangers than the week: bool (...)."""
        more: np.ndarray = np.sum(strangers > self._most, axis=-1) >= EXCEEDING
        return more

    @staticmethod
    def _of(shares: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Return the mean bin of each group over days, (GROUPS,)."""
        means: np.ndarray = (levels.sum(axis=0) + PRIOR * levels.sum() / shares.sum()) / (shares.sum(axis=0) + PRIOR)
        return means

    @staticmethod
    def _less(shares: np.ndarray, levels: np.ndarray, means: np.ndarray) -> np.ndarray:
        less: np.ndarray = levels.sum(axis=-1) - shares @ means
        return less


class Drift:
    """Counts the scores of a camera's frames, and detects when they change.

    `key` identifies what the scores depend on, such as the model: with another key, counting starts from scratch. `file` stores the
    counts; None stores them nowhere.
    """

    def __init__(
        self, labels: Iterable[str], key: str, file: Path | None = None, validation: Mapping[str, Any] | None = None,
        strangers: bool = True, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """Continue with the counts in `file`, unless it is damaged. `validation` comes from `shown_validation`.

        `strangers` is whether a frame may be a stranger; if not, their share is None.
        """
        self.file, self.validation, self._strangers = file, validation, strangers
        self._labels = {label: number for number, label in enumerate(labels)}
        self._key, self._clock = key, clock
        self.hours: list[Hour] = []
        self.week: list[list[Hour]] = []
        self.accepted: float | None = None
        self.alarm: dict[str, Any] | None = None
        self._compared: Week | None = None
        if file is not None and file.exists():
            self._read(file)

    def take(self, line: Mapping[str, Any], ts: float) -> None:
        """Count a frame's result, in the form of `--json`; `ts` is in seconds since the epoch."""
        hour = int(ts // HOUR_S)
        if ts < SET_CLOCK_S or not line["top"]:
            return
        while self.hours and self.hours[-1].hour > hour:  # the clock was set back
            self.hours.pop()
        if not self.hours or hour > self.hours[-1].hour:
            self._begin(hour)
        best = line["top"][0]
        self.hours[-1].add(best["score"], self._labels[best["label"]], line["decision"])

    def accept(self) -> None:
        """Accept the first week as normal, or the last one if a week was accepted before; ValueError if the week is not complete."""
        days = self._days()
        if len(days) < WEEK:
            raise ValueError(
                f"a week can be accepted after {WEEK} days of {LEAST_HOURS} hours or more; so far: {len(days)}"
            )
        self.week, self.accepted, self.alarm = days, self._clock(), None
        self._compare()

    def _days(self) -> list[list[Hour]]:
        """Return up to WEEK days that could be accepted now: the first ones, or after an accepted week the last ones."""
        if self.week and self.accepted is None:
            return self.week
        last = self.week[-1][-1].hour if self.week else -1
        later = [hour for hour in self.hours[:-1] if hour.hour > last]
        return days_of(later, self.hours[-1].hour)[-WEEK:] if later else []

    def document(self) -> dict[str, Any]:
        """Return the object `drift` of /v1/state."""
        since = int(self._clock() // HOUR_S) - DAY
        return {
            "bins": [0.0, *BOUNDS, 1.0],
            "today": figures([hour for hour in self.hours if hour.hour >= since], self._strangers),
            "validation": self.validation,
            "accepted": None if self.accepted is None else figures([*itertools.chain(*self.week)], self._strangers),
            "accepted_at": self.accepted,
            "days": len(days := self._days()),
            "can_accept": len(days) == WEEK,
            "alarm": self.alarm,
            "false_alarms_per_month": FALSE_ALARMS,
        }  # fmt: skip

    def dumped(self) -> str:
        kept: dict[str, Any] = {"schema": SCHEMA, "key": self._key, "accepted": self.accepted, "alarm": self.alarm}
        kept |= {
            "week": [[vars(hour) for hour in day] for day in self.week],
            "hours": [vars(hour) for hour in self.hours],
        }
        return json.dumps(kept, separators=(",", ":"))

    def _read(self, file: Path) -> None:
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if (kept["schema"], kept["key"]) != (SCHEMA, self._key):
                return
            week = [[build(Hour, table, ValueError, exact=True) for table in day] for day in kept["week"]]
            hours = [build(Hour, table, ValueError, exact=True) for table in kept["hours"]]
            accepted, alarm = kept["accepted"], kept["alarm"]
            if len(week) not in (0, WEEK) or not all(week):
                return
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
        self.week, self.hours, self.accepted, self.alarm = week, hours, accepted, alarm
        self._compare()

    def _begin(self, hour: int) -> None:
        if self.hours and self.hours[-1].frames < LEAST_FRAMES:
            self.hours.pop()
        if not self.week and len(days := days_of(self.hours, hour)) >= WEEK:
            self.week = days[:WEEK]
        self._judge(hour)
        oldest = hour - ((WEEK + 1) * DAY if self.week else MOST_HOURS)
        self.hours = [*(item for item in self.hours if item.hour >= oldest), Hour(hour)]

    def _compare(self) -> None:
        if self.accepted is not None:
            self._compared = Week(*map(np.stack, zip(*map(means_of, self.week), strict=True)))

    def _judge(self, now: int) -> None:
        """Compare the last day, and the last seven, with the accepted week; for strangers, the last whole days since it."""
        if self._compared is None:
            return
        start, per_day, found = self.week[-1][-1].hour + 1, sum(map(len, self.week)) / WEEK, None
        for days, over in SPANS.items():
            hours = [hour for hour in self.hours if hour.hour >= max(start, now - days * DAY)]
            covered = len(hours) / per_day
            if covered >= COVERED * days:
                t = float(self._compared.t(*means_of(hours)[:2], min(covered, days)))
                if abs(t) > LIMIT:
                    found = found or f"over the last {over} they are {'higher' if t > 0 else 'lower'}"
        end = start + (now - start) // DAY * DAY
        last = [[hour for hour in self.hours if 0 <= end - 1 - hour.hour - day * DAY < DAY] for day in range(WEEK)]
        whole = end >= start + WEEK * DAY and min(map(len, last)) >= COVERED * per_day
        if whole and self._compared.has_more_strangers(np.array([means_of(day)[2] for day in last])):
            more = f"on {EXCEEDING} of the last {WEEK} days, more frames were strangers than on any day of that week"
            found = found or more
        if found is None:
            self.alarm = None
        else:
            self.alarm = {"since": self.alarm["since"] if self.alarm else now * HOUR_S, "message": f"{TEXT}: {found}"}


def days_of(hours: list[Hour], now: int) -> list[list[Hour]]:
    """Return the 24-hour days, counted from the first hour, that have LEAST_HOURS or more and have ended by the hour `now`."""
    days: dict[int, list[Hour]] = {}
    for hour in hours:
        days.setdefault((hour.hour - hours[0].hour) // DAY, []).append(hour)
    return [
        day for number, day in days.items() if len(day) >= LEAST_HOURS and hours[0].hour + (number + 1) * DAY <= now
    ]


def figures(hours: list[Hour], strangers: bool) -> dict[str, Any] | None:
    """Summarise hours in the form of /v1/state; None without frames. `strangers` is as in `Drift`."""
    frames = sum(hour.frames for hour in hours)
    if not frames:
        return None
    counts = np.sum([hour.counts for hour in hours], axis=0)
    abstain, stranger = (sum(getattr(hour, name) for hour in hours) / frames for name in (ABSTAIN, STRANGER))
    return drift_figures(frames, counts.tolist(), abstain, stranger if strangers else None, hours[0].hour * HOUR_S)


def drift_figures(
    n: int, counts: Iterable[int], abstain: float | None, stranger: float | None, since: int | None
) -> dict[str, Any]:
    histogram = [count / n for count in counts]
    return {"n": n, "histogram": histogram, "abstain": abstain, "stranger": stranger, "since": since}


def shown_validation(scores: ValidationScores | None, threshold: float, strangers: bool) -> dict[str, Any] | None:
    """Summarise a bundle's validation images in the form of /v1/state; `threshold` and `strangers` are the device's own."""
    if scores is None:
        return None
    abstain, stranger = scores.shares(threshold, strangers)
    return drift_figures(scores.images, scores.counts, abstain, stranger if strangers else None, None)
