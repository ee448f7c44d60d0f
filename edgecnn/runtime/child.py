"""edgecnn's helper programs, which run in a separate process. Each prints one JSON object, with the key `error` if it failed."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from edgecnn import files
from edgecnn.errors import EdgeCNNError
from edgecnn.runtime.isolated import signal_words


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
        """How it ended, in words, such as "illegal instruction (SIGILL)" or "exit code 3"."""
        if self.code is None:
            return self.err
        return signal_words(-self.code) if self.code < 0 else f"exit code {self.code}"

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
