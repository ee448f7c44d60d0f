"""Run a function in a separate process: a crash or a hang there does not affect this one."""

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from edgecnn.errors import EngineError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")


def isolated(work: Callable[[], T], limit_s: float) -> T:
    """Call a function in a fork of this process and return what it returned.

    Args:
        work: opens an engine, so this process must not have opened one. Its standard output goes to standard error.
        limit_s: seconds after which the process ends itself, even if this one is gone.

    Raises:
        EngineError: if the process crashed, hung or ended without a result; the message says how.
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
            raise EngineError(_how(process.exitcode or 0, limit_s)) from None
    process.join()
    return result


def _call(work: Callable[[], Any], limit_s: float, sender: "Connection") -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.setitimer(
        signal.ITIMER_REAL, limit_s
    )  # SIGALRM has no handler: it ends the process, also inside an engine's code
    os.dup2(2, 1)
    sender.send(work())


def _how(code: int, limit_s: float) -> str:
    if code == -signal.SIGALRM:
        return f"this model hangs the engine: no answer in {limit_s:g} s"
    if code < 0:
        return f"this model crashes the engine: {signal_words(-code)}"
    return f"this model ends the engine's process with exit code {code}"


def signal_words(number: int) -> str:
    """Return a signal for people: "segmentation fault (SIGSEGV)"."""
    return f"{(signal.strsignal(number) or 'signal').lower()} ({signal.Signals(number).name})"
