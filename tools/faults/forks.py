"""Runs pytest in forks of a process that has imported pytest and large libraries, since thousands of short runs would mostly import them.

Reads one JSON list per line: a file for the output, then pytest's arguments. Writes the fork's process ID, which is also its process
group, and its exit code.
"""

import importlib
import json
import os
import sys

import pytest

LIBRARIES = ("anyio.pytest_plugin", "hypothesis", "numpy", "PIL.Image", "scipy.stats", "typer.testing", "xdist.plugin")


def child(output: str, *arguments: str) -> int:
    os.setsid()
    with open(os.devnull) as nothing, open(output, "w") as file:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return int(pytest.main(list(arguments)))


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if not process:
            sys.exit(child(*json.loads(line)))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
