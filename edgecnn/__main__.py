"""`python -m edgecnn`, and the console script: Ctrl-C is quiet from the first import on, so nothing else is imported before the `try`."""

import os
import sys

INTERRUPTED = 130


def run() -> None:
    try:
        repeat_ignored_interrupts()
        from edgecnn.cli import console_script

        console_script()
    except BaseException as error:
        # during imports, or a second one while the process ends; Python 3.11 wraps one that is raised while it names a class's fields
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        os._exit(INTERRUPTED)


def repeat_ignored_interrupts() -> None:
    """Send SIGINT again if Python ignores KeyboardInterrupt: in a destructor or a weak reference's callback, as during imports."""
    import _thread
    import signal

    main = _thread.get_ident()

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # from a thread: here it would be ignored again
            _thread.start_new_thread(signal.pthread_kill, (main, signal.SIGINT))
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


if __name__ == "__main__":
    run()
