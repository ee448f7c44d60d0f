"""A board's processor emulated by QEMU: the board's programs run as processes of this machine, without root, on its kernel."""

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE

from edgecnn.errors import EmulatorError
from edgecnn.runtime.child import Finished
from edgecnn.tables import Struct

NAMES = ("qemu-aarch64", "qemu-aarch64-static")
LIMIT_S = 3600

MEANINGS: dict[int, str] = {
    signal.SIGILL: "illegal instruction",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGBUS: "bus error",
}


def find_qemu() -> str:
    if path := next(filter(None, map(shutil.which, NAMES)), None):
        return path
    raise EmulatorError(
        f"{NAMES[0]} is not installed, but edgecnn needs it to emulate boards. Install it: apt-get install qemu-user (as root)."
    )


class Machine(Struct):
    """A processor (QEMU's name), its system's files, its Python ("3.13"), and the folders where Python looks for packages."""

    cpu: str
    root: Path
    python: str
    paths: tuple[Path, ...]

    def command(self, arguments: Sequence[str]) -> list[str]:
        python = self.root / "usr" / "bin" / f"python{self.python}"
        return [find_qemu(), "-cpu", self.cpu, "-L", str(self.root), str(python), *arguments]

    def environment(self, home: Path) -> dict[str, str]:
        """Return its environment, with nothing from the user's. `home` serves as home and as folder for temporary files."""
        return {
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
            "PATH": os.defpath,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONPATH": os.pathsep.join(map(str, self.paths)),
            "TMPDIR": str(home),
        }


class Emulations:
    """Emulated processes, started from several threads. Leaving the context ends those still running."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._over = False

    def __enter__(self) -> "Emulations":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            for process in self._running:
                with contextlib.suppress(OSError):
                    process.kill()

    def run(self, machine: Machine, arguments: Sequence[str], folder: Path) -> Finished:
        """Run the board's Python in a folder that is also its home. Raises EmulatorError on a signal or a processor unknown to QEMU."""
        command, env = machine.command(arguments), machine.environment(folder)
        with self._lock:
            if self._over:
                raise EmulatorError(f"the emulation of {machine.cpu} was stopped")
            process = subprocess.Popen(
                command, cwd=folder, env=env, text=True, errors="replace", stdin=DEVNULL, stdout=PIPE, stderr=PIPE
            )
            self._running.add(process)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            limit = f"within {LIMIT_S // 60} minutes"
            raise EmulatorError(f"the emulated process did not end {limit} on {machine.cpu}") from None
        finally:
            process.kill()
            process.wait()
            with self._lock:
                self._running.discard(process)
        if process.returncode < 0:
            raise EmulatorError(f"{meaning(-process.returncode)} on {machine.cpu}")
        if process.returncode and "unable to find CPU model" in err:
            raise EmulatorError(
                f"{command[0]} does not support the processor {machine.cpu}. Upgrade it: a newer qemu-user package may."
            )
        return Finished(process.returncode, out, err)


def meaning(number: int) -> str:
    try:
        return MEANINGS.get(number) or f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"
