"""Work in a separate process, so that a crash or a hang does not affect this one: one function, or one of edgecnn's helper programs.

Each program prints one JSON object, with the key `error` if it failed.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from edgecnn import files
from edgecnn.errors import EdgeCNNError, EngineError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


T = TypeVar("T")

KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux

OUT_OF_MEMORY = 101
"""The exit code of a separate process in which Python raised MemoryError."""


MEMORY_BYTES = 2 << 30
"""The most memory that a separate process may take on top of what it inherits: four times that of a Raspberry Pi Zero 2 W.

What it inherits includes memory that this process has freed but not returned to the system; the separate process may use that too.
"""


def isolated(work: Callable[[], T], limit_s: float, what: str = "this model", victim: str = "the engine") -> T:
    """Call a function in a fork of this process and return its result. This process must not have opened an engine.

    The function's output goes to stderr. EngineError, about `what` and its `victim`, if the call crashed, took longer than `limit_s`,
    exceeded MEMORY_BYTES or ended without a result.
    """
    import multiprocessing  # here, since it is slow to import and most programs here do not need it

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(work, limit_s, sender))
    process.start()
    sender.close()  # so that the wait ends when the process does
    with receiver:
        try:
            result: T = receiver.recv()
        except EOFError:
            process.join()
            raise EngineError(f"{what} {_how(process.exitcode or 0, limit_s, victim)}") from None
    process.join()
    return result


def _call(work: Callable[[], Any], limit_s: float, sender: "Connection") -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limit_s)  # without a handler, SIGALRM ends the process even inside an engine
    os.dup2(2, 1)
    _limit_memory()
    try:
        sender.send(work())
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _limit_memory() -> None:
    """Limit this process to MEMORY_BYTES more than it has, if the system reports that."""
    import resource

    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (has + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def end_with_parent() -> None:
    """End this process with its parent, however that ends."""
    import ctypes

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(library := ctypes.CDLL(None), "prctl"):
        library.prctl(KILL_WITH_PARENT, signal.SIGKILL)


def _how(code: int, limit_s: float, victim: str) -> str:
    if code == -signal.SIGALRM:
        return f"hangs {victim}: no answer in {limit_s:g} s"
    if code in (OUT_OF_MEMORY, -signal.SIGABRT):  # C++ aborts where Python raises MemoryError
        return f"ends {victim}'s process, which is limited to {MEMORY_BYTES >> 20:,} MiB of memory"
    if code < 0:
        return f"crashes {victim}: {how_ended(code)}"
    return f"ends {victim}'s process with exit code {code}"


def how_ended(code: int) -> str:
    """Return how a process ended, in words, such as "exit code 3" or, for -11, "segmentation fault (SIGSEGV)"."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else -code  # those for real time have no names
    return f"{(signal.strsignal(-code) or 'signal').lower()} ({name})"


def run_program(work: Callable[[], dict[str, Any]]) -> None:
    """Print the result of `work` and exit with 0, or print an EdgeCNNError and exit with its code; engines print to standard error."""
    files.stderr_is_ours = True
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        result, code = work(), 0
    except EdgeCNNError as error:
        result, code = {"error": str(error)}, error.exit_code
    with open(out, "wb") as file:
        file.write(json.dumps(result).encode())
    sys.exit(code)


class Finished(NamedTuple):
    """A finished command. `code` is its exit code, negative for a signal, None if it could not be run or took too long."""

    code: int | None
    out: str
    err: str

    @property
    def how(self) -> str:
        return self.err if self.code is None else how_ended(self.code)

    @property
    def table(self) -> dict[str, Any]:
        """The JSON object that it printed, or {}."""
        try:
            table = json.loads(self.out)
        except ValueError:
            return {}
        return table if type(table) is dict else {}

    @property
    def said(self) -> str:
        """The `error` that a helper program printed, else the last non-empty line of standard error."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return str(self.table.get("error") or (lines[-1] if lines else ""))

    @property
    def failure(self) -> str:
        return f"{self.how}: {self.said}" if self.said and self.code is not None else self.how
