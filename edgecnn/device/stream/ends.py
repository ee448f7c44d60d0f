"""How a long-running command ends: on a signal, or when the reader of its standard output goes away."""

import select
import signal
import sys
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stopped(SystemExit):
    """A signal stopped the command. The exit code is 128 plus its number: 143 for SIGTERM, 130 for Ctrl-C, 129 for a closed terminal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Ends:
    """While entered, turns a signal into Stopped, raised only by `check` or within `interruptible`, never while a file is written."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.interruptible = _Interruptible(self)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Ends":
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        if self.signal is not None:
            raise Stopped(self.signal)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.signal is None
        self.signal = self.signal or number
        if first and self.interruptible.inside:
            self.interruptible.inside = False
            raise Stopped(number)


class _Interruptible:
    def __init__(self, ends: Ends) -> None:
        self.inside = False
        self._ends = ends

    def __enter__(self) -> None:
        self.inside = True
        self._ends.check()

    def __exit__(self, *_: object) -> None:
        self.inside = False


def reader_gone() -> bool:
    """Return whether standard output is a pipe or terminal whose other end is closed."""
    return bool(_poll(select.POLLERR) & (select.POLLERR | select.POLLHUP | select.POLLNVAL))


def takes_output() -> bool:
    """Return whether standard output accepts a line without waiting for its reader."""
    return bool(_poll(select.POLLOUT) & select.POLLOUT) and not reader_gone()


def _poll(events: int) -> int:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), events)
    return next((result for _, result in poll.poll(0)), 0)
