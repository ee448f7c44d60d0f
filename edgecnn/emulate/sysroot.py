"""A board's system files, made once and cached: Debian's Python, and the packages that pip installs there for an engine."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgecnn.boards.targets import RELEASES
from edgecnn.emulate import debian, wheels
from edgecnn.emulate.qemu import Emulations, Machine
from edgecnn.errors import EdgeCNNError, OutputError
from edgecnn.files import cache_home, canonical_json, sha256, write_atomic

FORMAT = 1
"""Part of the folder names. Change it when this module makes their content differently."""

MADE = "made.json"
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
    progress: debian.Progress = lambda what, done, total: None,
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


def make_root(release: str, progress: debian.Progress, packages: Sequence[str], home: Path) -> Path:
    python = RELEASES[release]
    names = sorted({name.format(python=python) for name in PACKAGES} | set(packages))

    def make(folder: Path) -> dict[str, Any]:
        debs = debian.fetch(names, release, home, progress)
        debs = [deb for deb in debs if deb.name.partition("_")[0] not in {*LEFT_OUT} - set(names)]
        for number, deb in enumerate(debs):
            progress(f"unpack Debian {release}", number, len(debs))
            debian.unpack([deb], folder)
        progress(f"unpack Debian {release}", len(debs), len(debs))
        compile_all(folder / "usr" / "lib", folder, python, progress)
        described = [deb.name.removesuffix(".deb").split("_") for deb in debs]
        return {"versions": {name: version.replace("%3a", ":") for name, version, _ in described}}

    return keep(home / f"root-{release}", {"release": release, "packages": names}, make)


def make_site(release: str, engine: str, root: Path, progress: debian.Progress, home: Path) -> Path:
    """Make a folder with the packages that pip installs on a board: an engine and the runtime's imports. Errors as in `make_system`."""
    requirements = wheels.requirements(engine, RELEASES[release])

    def make(folder: Path) -> dict[str, Any]:
        versions = wheels.install(requirements, wheels.platform_of(release), folder, progress)
        compile_all(folder, root, RELEASES[release], progress)
        return {"versions": versions}

    ingredients = {"release": release, "needs": requirements.needs, "alone": requirements.alone}
    return keep(home / f"site-{release}-{engine.replace('_', '-')}", ingredients, make)


def keep(prefix: Path, ingredients: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]) -> Path:
    """Return a folder made from some ingredients, named `prefix` and their hash. The first process makes it; others wait.

    It is made in a temporary folder and moved into place when complete. `make` fills an empty folder and returns what its `made.json`
    records in addition to `ingredients`.
    """
    import fcntl  # imported here because Windows has no fcntl

    path = prefix.with_name(f"{prefix.name}-{sha256(canonical_json({'format': FORMAT, **ingredients}).encode())[:12]}")
    if (path / MADE).exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / MADE).exists():
                for old in (path, *path.parent.glob(f".{path.name}.*.tmp")):  # left by a killed process
                    shutil.rmtree(old, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
                    fresh = Path(folder) / path.name
                    fresh.mkdir()
                    write_atomic(fresh / MADE, canonical_json({**ingredients, **make(fresh)}))
                    fresh.rename(path)
    except EdgeCNNError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write the board's files to {path.parent}: {error.strerror or error}. "
            "Free some space, or set XDG_CACHE_HOME to another folder."
        ) from error
    return path


def compile_all(folder: Path, root: Path, python: str, progress: debian.Progress) -> None:
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
