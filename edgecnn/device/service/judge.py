"""Judge a release and feed the watchdog: only classified frames count."""

import time
from collections.abc import Callable, Iterable

from edgecnn.device.service.notify import notify
from edgecnn.device.slots.record import GOOD
from edgecnn.device.stream.events import Event, ProblemEvent, ReleaseEvent, Seldom, StateChangedEvent
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.results import FrameResult

FEED_EVERY_S = 1.0

AGAIN_S = 60.0  # seconds until the next attempt to record a release as good, after a full disk for example


class Judge(Consumer):
    """Counts the fresh frames of a release until it is good, and feeds the watchdog with each."""

    def __init__(
        self,
        release: str,
        name: str,
        frames: int,
        approve: Callable[[], list[str]],
        *,
        tell: Callable[[str], object] = notify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`frames` is the number that makes the release good. `approve` records that, and returns any problems."""
        self._release, self._name, self._left = release, name, frames
        self._approve, self._tell = approve, tell
        self._feeds, self._tries = Seldom(FEED_EVERY_S, clock), Seldom(AGAIN_S, clock)

    def take(self, item: Item) -> Iterable[Event]:
        """Count a frame; report a change of the state to the service manager."""
        if isinstance(item, StateChangedEvent):
            self._tell(f"STATUS=state: {'none' if item.state is None else repr(item.state)}")
        if not isinstance(item, FrameResult):
            return ()
        if self._feeds.count():
            self._tell("WATCHDOG=1")
        if self._left > 1:
            self._left -= 1
        elif self._left and self._tries.count():
            if problems := self._approve():
                return [ProblemEvent(ts=item.ts, source=item.source, about="disk", message=text) for text in problems]
            self._left = 0
            what = {"release": self._release, "name": self._name, "state": GOOD}
            return [ReleaseEvent(ts=item.ts, source=item.source, **what, reason=None)]
        return ()
