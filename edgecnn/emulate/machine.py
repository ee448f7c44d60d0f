"""An emulated board: QEMU's processor, and the board's system files, made once and cached.

The board's programs run as processes of this machine, without root, on its kernel. The system files are Debian's Python, and the
packages that pip installs there for an engine.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, NamedTuple

from edgecnn.boards import RELEASES
from edgecnn.errors import EmulatorError
from edgecnn.files import cache_home
from edgecnn.packages import (
    MADE,
    Progress,
    fetch_debs,
    install_wheels,
    keep,
    release_platform,
    requirements,
    unpack_debs,
)
from edgecnn.runtime.child import Finished, how_ended
from edgecnn.tables import Struct

NAMES = ("qemu-aarch64", "qemu-aarch64-static")
LIMIT_S = 3600


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
            raise EmulatorError(f"{how_ended(process.returncode)} on {machine.cpu}")
        if process.returncode and "unable to find CPU model" in err:
            raise EmulatorError(
                f"{command[0]} does not support the processor {machine.cpu}. Upgrade it: a newer qemu-user package may."
            )
        return Finished(process.returncode, out, err)


PACKAGES = ("python{python}-minimal", "libpython{python}-stdlib", "libstdc++6")

LEFT_OUT = ("debconf", "dpkg", "tar", "tzdata")
"""Dependencies that are needed only during installation."""


class System(NamedTuple):
    """A release's `root`, the folder `site` with pip's packages, and the versions of both by name."""

    release: str
    python: str
    root: Path
    site: Path
    versions: Mapping[str, str]

    def machine(self, cpu: str, paths: Sequence[Path] = ()) -> Machine:
        return Machine(cpu=cpu, root=self.root, python=self.python, paths=(*paths, self.site))


def boards_home() -> Path:
    return cache_home() / "boards"


def make_system(
    release: str,
    engine: str,
    progress: Progress = lambda what, done, total: None,
    *,
    packages: Sequence[str] = (),
    home: Path | None = None,
) -> System:
    """Make a release's files, with an engine and Debian packages, in `home` unless present. An EmulatorError leaves nothing half-made."""
    home = home or boards_home()
    root = make_root(release, progress, packages, home)
    site = make_site(release, engine, root, progress, home)
    of_site, of_root = (json.loads((folder / MADE).read_text())["versions"] for folder in (site, root))
    return System(release, RELEASES[release], root, site, of_site | of_root)


def make_root(release: str, progress: Progress, packages: Sequence[str], home: Path) -> Path:
    python = RELEASES[release]
    names = sorted({name.format(python=python) for name in PACKAGES} | set(packages))

    def make(folder: Path) -> dict[str, Any]:
        debs = fetch_debs(names, release, home, progress)
        debs = [deb for deb in debs if deb.name.partition("_")[0] not in {*LEFT_OUT} - set(names)]
        for number, deb in enumerate(debs):
            progress(f"unpack Debian {release}", number, len(debs))
            unpack_debs([deb], folder)
        progress(f"unpack Debian {release}", len(debs), len(debs))
        compile_all(folder / "usr" / "lib", folder, python, progress)
        described = [deb.name.removesuffix(".deb").split("_") for deb in debs]
        return {"versions": {name: version.replace("%3a", ":") for name, version, _ in described}}

    return keep(home / f"root-{release}", {"release": release, "packages": names}, make)


def make_site(release: str, engine: str, root: Path, progress: Progress, home: Path) -> Path:
    """Make a folder with the packages that pip installs on a board: an engine and the runtime's imports. Errors as in `make_system`."""
    needed = requirements(engine, RELEASES[release])

    def make(folder: Path) -> dict[str, Any]:
        versions = install_wheels(needed, release_platform(release), folder, progress)
        compile_all(folder, root, RELEASES[release], progress)
        return {"versions": versions}

    ingredients = {"release": release, "needs": needed.needs, "alone": needed.alone}
    return keep(home / f"site-{release}-{engine.replace('_', '-')}", ingredients, make)


def compile_all(folder: Path, root: Path, python: str, progress: Progress) -> None:
    """Compile a folder's Python files with this machine's Python of that version, else with the board's, emulated."""
    progress(f"compile for Python {python}", 0, 0)
    options = "-m compileall -q -f --invalidation-mode unchecked-hash -x /(tests?|idlelib)/"
    arguments = [*options.split(), str(folder)]
    if host := host_python(python):
        # Files that this Python cannot compile, such as tests, do not matter: imported files are compiled at import.
        subprocess.run([host, "-I", *arguments], capture_output=True)
        return
    machine = Machine(cpu="max", root=root, python=python, paths=())
    with Emulations() as emulations, tempfile.TemporaryDirectory() as home:
        emulations.run(machine, arguments, Path(home))


def host_python(python: str) -> str | None:
    if python == ".".join(map(str, sys.version_info[:2])):
        return sys.executable
    if path := shutil.which(f"python{python}"):
        code = "import sys; print(*sys.version_info[:2], sep='.')"
        done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True)
        return path if done.stdout.strip() == python else None
    return None
