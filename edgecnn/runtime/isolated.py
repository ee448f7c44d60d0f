"""Run a function in a separate process: a crash or a hang there does not affect this one."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from edgecnn.errors import EngineError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
OUT_OF_MEMORY = 101
"""The exit code of a separate process that Python's own memory was refused to."""


MEMORY_BYTES = 2 << 30
"""The most memory that a separate process may take beyond what it has of this one: four times what a Raspberry Pi Zero 2 W has."""


def isolated(work: Callable[[], T], limit_s: float, what: str = "this model", victim: str = "the engine") -> T:
    """Call a function in a fork of this process, which must not have opened an engine, and return its result; its output goes to stderr.

    EngineError, about `what` and its `victim`, if it crashed, took more than `limit_s`, ran out of MEMORY_BYTES or ended without a result.
    """
    import multiprocessing  # here, since `signal_words` alone does not need it, and it is slow to import

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(work, limit_s, sender))
    process.start()
    sender.close()  # so that the end of the process ends the wait
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
    signal.setitimer(
        signal.ITIMER_REAL, limit_s
    )  # SIGALRM, without a handler, ends the process in an engine's code too
    os.dup2(2, 1)
    _limit_memory()
    try:
        sender.send(work())
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _limit_memory() -> None:
    """Let this process take MEMORY_BYTES more, if the system says what it has."""
    import resource

    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (has + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _how(code: int, limit_s: float, victim: str) -> str:
    if code == -signal.SIGALRM:
        return f"hangs {victim}: no answer in {limit_s:g} s"
    if code in (OUT_OF_MEMORY, -signal.SIGABRT):  # C++ aborts where Python raises MemoryError
        return f"ends {victim}'s process, which may take {MEMORY_BYTES >> 20:,} MiB of memory"
    if code < 0:
        return f"crashes {victim}: {signal_words(-code)}"
    return f"ends {victim}'s process with exit code {code}"


def signal_words(number: int) -> str:
    """Return a signal for people: "segmentation fault (SIGSEGV)"."""
    return f"{(signal.strsignal(number) or 'signal').lower()} ({signal.Signals(number).name})"
