"""Wheels for a board's Python and processor, downloaded by this machine's pip."""

import contextlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from edgecnn.boards.targets import RELEASES
from edgecnn.emulate.debian import Progress
from edgecnn.errors import EmulatorError

GLIBC = {"bookworm": 36, "trixie": 41}
"""The minor version of each release's GNU C library."""

BASE = {"numpy": ">=1.23.2", "Pillow": ">=10.1", "typer": ">=0.15,<0.29"}
EXTRAS = {
    "tuf": ">=5.1",
    "urllib3": ">=2.2",
    "paho-mqtt": ">=2,<3",
    "starlette": ">=0.46",
    "uvicorn": ">=0.32",
    "prometheus-client": ">=0.21",
}
"""Additional packages for a board's extras: update, mqtt and http."""

ENGINES = {
    "litert": ("ai-edge-litert", ">=2.0.2"),
    "tflite_runtime": ("tflite-runtime", "==2.14.0"),
    "onnxruntime": ("onnxruntime", ">=1.22"),
}

ONLY = {"tflite_runtime": ("3.11",)}

NUMPY_1 = {"tflite_runtime": "<2"}


def package_name(engine: str) -> str:
    return ENGINES[engine][0].replace("-", "_")


class Requirements(NamedTuple):
    """Packages for pip: `needs`, with their dependencies, and engines `alone`, whose dependencies are large and unused except for numpy."""

    needs: tuple[str, ...]
    alone: tuple[str, ...]


class Platform(NamedTuple):
    """The platform of wheels: a Python ("3.13"), the GNU C library's minor version, and a processor as named by `uname -m`."""

    python: str
    glibc: int
    machine: str = "aarch64"

    def __str__(self) -> str:
        return f"Python {self.python} on {self.machine}"

    @property
    def tags(self) -> list[str]:
        """The platform's wheel tags. pip accepts only the tags it is given, so older ones, from glibc 2.17 on, are listed too."""
        names = ("2014", *(f"_2_{minor}" for minor in range(17, self.glibc + 1)))
        return [f"manylinux{name}_{self.machine}" for name in names]


def platform_of(release: str, machine: str = "aarch64") -> Platform:
    return Platform(RELEASES[release], GLIBC[release], machine)


def engines_on(python: str) -> list[str]:
    return [engine for engine in ENGINES if python in ONLY.get(engine, (python,))]


def requirements(engine: str, python: str, more: Mapping[str, str] = MappingProxyType({})) -> Requirements:
    """Return the requirements of a board with an engine and a Python ("3.13"), plus `more` like BASE, in this machine's versions.

    Raises:
        EmulatorError: if the engine has no wheel for that Python.
    """
    if engine not in engines_on(python):
        releases = ", ".join(release for release, its in RELEASES.items() if its in ONLY[engine])
        raise EmulatorError(f"{engine} has no wheel for Python {python}. Choose another engine, or Debian {releases}.")
    needs = tuple(
        _requirement(name, versions, NUMPY_1.get(engine, "") if name == "numpy" else "")
        for name, versions in {**BASE, **more}.items()
    )
    return Requirements(needs, (_requirement(*ENGINES[engine]),))


def _requirement(name: str, versions: str, limit: str = "") -> str:
    """Return the requirement for pip: the version installed here, or the newest older one that has a wheel for the board."""
    limits = [versions, limit]
    if not versions.startswith("=="):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            limits.append(f"<={importlib.metadata.version(name).partition('+')[0]}")
    return name + ",".join(filter(None, limits))


def install(
    packages: Requirements, platform: Platform, folder: Path, progress: Progress = lambda what, done, total: None
) -> dict[str, str]:
    """Install wheels for a board into a folder, without running their code. Returns versions by name, with "_" for "-"."""
    python = platform.python
    shared = [
        *pip(), "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile", "--no-warn-conflicts",
        "--target", str(folder), "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
    ]  # fmt: skip
    shared += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    shared += [f"--platform={tag}" for tag in platform.tags]
    for names, options in ((packages.needs, []), (packages.alone, ["--no-deps"])):
        progress(f"wheels for {platform}", 0, 0)
        done = subprocess.run([*shared, *options, *names], capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr.strip()]
            raise EmulatorError(
                f"pip cannot download {', '.join(names)} for {platform}: {lines[-1].removeprefix('ERROR: ')}"
            )
    return dict(path.stem.split("-", 1) for path in sorted(folder.glob("*.dist-info")))


def pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if path := shutil.which("pip3") or shutil.which("pip"):
        return [path]
    raise EmulatorError(
        f"this machine has no pip, which downloads a board's wheels. Install it: {sys.executable} -m ensurepip"
    )
