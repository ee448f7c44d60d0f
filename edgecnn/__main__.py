"""`python -m edgecnn`, and the console script: the command line, with Ctrl-C quiet from the first import on.

Nothing else is imported here before the `try`.
"""

import os

INTERRUPTED = 130


def run() -> None:
    """Run the command line in a process of its own."""
    try:
        from edgecnn.cli import console_script

        console_script()
    except KeyboardInterrupt:  # while modules are imported, or a second one while the process ends
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    run()
