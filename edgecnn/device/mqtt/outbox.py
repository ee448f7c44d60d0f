"""A bounded queue of updates to publish."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgecnn.device.mqtt.topics import Snapshot
from edgecnn.device.stream.results import FrameResult
from edgecnn.runtime.decision import Score

MOST_WAITING = 64  # maximum number of changes that wait during a connection; without one, only the newest waits

REFRESH_S = 10.0  # minimum time between two messages for a new score without a new state


class Outbox:
    """Changes in order, the newest score and the newest picture. A state replaced before delivery counts as dropped."""

    def __init__(self, *, refresh_s: float = REFRESH_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._refresh_s = refresh_s
        self._clock = clock
        self._latest = Snapshot()
        self._waiting: deque[Snapshot] = deque()
        self._sent: Snapshot | None = None
        self._connected = False
        self._dropped = 0
        self._score: tuple[str | None, tuple[Score, ...]] = (None, ())
        self._refreshed = -math.inf
        self._image: bytes | np.ndarray | None = None

    def change(self, snapshot: Snapshot, image: bytes | np.ndarray | None = None) -> None:
        """Add a change, with its frame if the frame is to be published."""
        self._latest = snapshot
        self._waiting.append(snapshot)
        if image is not None:
            self._image = image
        self._limit()

    def score(self, result: FrameResult) -> None:
        """Note a frame's scores. Those of the newest frame whose decision is the state are published from time to time."""
        if result.decision == result.state:
            self._score = (result.state, result.top)

    @property
    def latest(self) -> Snapshot:
        state, top = self._score
        return replace(self._latest, top=top) if state is not None and state == self._latest.state else self._latest

    @property
    def empty(self) -> bool:
        """Whether no change waits or is on its way."""
        return not self._waiting and self._sent is None

    def connected(self) -> Snapshot:
        """Begin a connection: return the snapshot to publish first, which replaces all that wait."""
        self._connected = True
        self._sent = self._waiting[-1] if self._waiting else None
        self._waiting.clear()
        self._refreshed = self._clock()
        self._latest = self.latest
        return self._latest

    def disconnected(self) -> None:
        self._connected = False
        if self._sent is not None:
            self._waiting.appendleft(self._sent)
            self._sent = None
        self._limit()

    def next(self) -> Snapshot | None:
        """Return the snapshot to publish now, or None. Then call `delivered` or `disconnected`."""
        now = self._clock()
        if self._waiting:
            self._sent, self._refreshed = self._waiting.popleft(), now
            return self._sent
        fresh = self.latest
        early = bool(self._latest.top) and now - self._refreshed < self._refresh_s
        if early or fresh.top == self._latest.top:
            return None
        self._latest, self._refreshed = fresh, now
        return fresh

    def delivered(self) -> None:
        self._sent = None

    def image(self) -> bytes | np.ndarray | None:
        image, self._image = self._image, None
        return image

    def dropped(self) -> int:
        count, self._dropped = self._dropped, 0
        return count

    def undelivered(self) -> int:
        """Return how many states have not reached the broker, including those that wait."""
        waiting = [self._sent, *self._waiting] if self._sent is not None else self._waiting
        return self._dropped + sum(snapshot.state is not None for snapshot in waiting)

    def _limit(self) -> None:
        limit = MOST_WAITING if self._connected else 1
        while len(self._waiting) > limit:
            state = self._waiting.popleft().state
            self._dropped += state is not None and state != self._waiting[0].state
