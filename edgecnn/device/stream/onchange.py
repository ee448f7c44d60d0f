"""Run a command when the state changes, one at a time and without waiting for it. The newest state comes last."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable

from edgecnn.device.secrets import environment
from edgecnn.device.stream.events import CommandFailedEvent, Event, StateChangedEvent
from edgecnn.device.stream.loop import Consumer, Item

LIMIT_S = 60.0

GRACE_S = 0.1


class OnChange(Consumer):
    """Runs a user's command, without a shell, for each change of the state. While one runs, only the newest change is kept."""

    def __init__(self, command: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Split the command as a shell would; ValueError if it is empty, its quotes are not closed or its program does not exist."""
        import shutil

        try:
            self.arguments = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"{command!r} cannot be split into words: {error}") from None
        if not self.arguments or shutil.which(self.arguments[0]) is None:
            program = self.arguments[0] if self.arguments else command
            raise ValueError(f"program {program!r} not found; for shell syntax, write sh -c '…'")
        self._clock = clock
        self._source = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._next: dict[str, str] | None = None

    def take(self, item: Item) -> Iterable[Event]:
        self._source = item.source
        if isinstance(item, StateChangedEvent):
            self._next = {
                "EDGECNN_STATE": item.state or "",
                "EDGECNN_PREVIOUS": item.previous or "",
                "EDGECNN_SCORE": "" if item.score is None else f"{item.score:.6f}",
            }
        return ()

    def poll(self) -> list[Event]:
        """Reap a finished command and start a waiting one; return the failures."""
        failures: list[Event] = []
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                if self._clock() - self._started < LIMIT_S:
                    return []
                self._end()
                failures.append(self._failed(f"still running after {LIMIT_S:.0f} s, terminated"))
            elif code:
                how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
                failures.append(self._failed(how))
            self._process = None
        if self._next is not None:
            variables, self._next = self._next, None
            try:
                variables = {**environment(), **variables}
                self._process = subprocess.Popen(
                    self.arguments, env=variables, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
                )
            except (OSError, ValueError) as error:  # ValueError: a zero in a label, which no environment can hold
                failures.append(self._failed(getattr(error, "strerror", None) or str(error)))
            self._started = self._clock()
        return failures

    def finish(self, wait_s: float) -> list[Event]:
        """Let the running and the waiting command finish within `wait_s` seconds (neither if 0), then terminate any that still runs."""
        failures: list[Event] = []
        deadline = time.monotonic() + wait_s
        if not wait_s:
            self._next = None
        while wait_s:
            failures += self.poll()
            if self._process is None:
                break
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                failures.append(self._failed("still running at the end, terminated"))
                break
        self._end()
        return failures

    def _failed(self, what: str) -> CommandFailedEvent:
        return CommandFailedEvent(ts=time.time(), source=self._source, message=f"{self.arguments[0]}: {what}")

    def _end(self) -> None:
        if self._process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_S)
                break
        self._process = None
