"""The machine as the checks see it: files under a root and commands through a runner, so that tests can simulate any board."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from edgecnn.cpu import read_cpu
from edgecnn.runtime.child import Finished


class Space(NamedTuple):
    """A file system's free space, and whether it is mounted read-only."""

    free_bytes: int
    read_only: bool


def packages() -> dict[str, str]:
    """Return the versions of the installed packages by name, in lower case with `-`."""
    versions: dict[str, str] = {}
    for item in importlib.metadata.distributions():
        if name := item.metadata["Name"]:  # a half-removed package has no name
            versions.setdefault(name.lower().replace("_", "-"), item.version)
    return versions


@dataclass(frozen=True, kw_only=True)
class System:
    """This machine, or one simulated by a test. `machine` is the kernel's, `bits` are Python's, `model` is the requested bundle, if any."""

    root: Path = Path("/")
    python: tuple[int, ...] = tuple(sys.version_info[:3])
    machine: str = field(default_factory=platform.machine)
    bits: int = 64 if sys.maxsize > 2**32 else 32
    libc: tuple[str, str] = field(default_factory=platform.libc_ver)
    packages: Mapping[str, str] = field(default_factory=packages)
    cwd: str = field(default_factory=os.getcwd)
    model: str = ""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def read(self, absolute: str) -> str:
        """Return a small text file, stripped of zeros and white space; "" if it cannot be read."""
        try:
            return (self.root / absolute.lstrip("/")).read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
        except OSError:
            return ""

    def glob(self, pattern: str) -> list[str]:
        """Return the absolute paths that match, sorted."""
        return sorted(f"/{path.relative_to(self.root)}" for path in self.root.glob(pattern.lstrip("/")))

    def which(self, name: str) -> str | None:
        return shutil.which(name, path=self.environ.get("PATH"))

    def run(self, command: Sequence[str], timeout: float | None = 10.0) -> Finished:
        """Run a command and wait for it; kill it after `timeout` seconds."""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=dict(self.environ)
            )
        except subprocess.TimeoutExpired:
            return Finished(None, "", f"no answer in {timeout:g} s")
        except OSError as error:
            return Finished(None, "", f"cannot be run: {error.strerror or error}")
        return Finished(done.returncode, *(output.decode(errors="replace") for output in (done.stdout, done.stderr)))

    def space(self, absolute: str) -> Space:
        """Return the file system that a path is on, or would be on."""
        path = self.root / absolute.lstrip("/")
        while not path.exists() and path != path.parent:
            path = path.parent
        state = os.statvfs(path)
        return Space(state.f_bavail * state.f_frsize, bool(state.f_flag & os.ST_RDONLY))

    @property
    def board(self) -> str:
        """The kernel's name for the board, such as "Raspberry Pi 4 Model B Rev 1.4", or ""."""
        return self.read("/proc/device-tree/model")

    @property
    def is_pi(self) -> bool:
        return self.board.startswith("Raspberry Pi")

    @property
    def cpu_flags(self) -> frozenset[str]:
        return read_cpu(self.root).flags

    def now(self) -> float:
        return time.time()
