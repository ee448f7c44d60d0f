"""Packages for a board: Debian's, by an apt that keeps all its files in one folder and needs no root, and wheels, downloaded by this
machine's pip.

The sources, their keys and the proxies are the host's. Only the release differs, since Debian 12 and 13 share an archive.
"""

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from edgecnn.boards import RELEASES
from edgecnn.errors import EdgeCNNError, EmulatorError, OutputError
from edgecnn.files import canonical_json, folder_lock, sha256, write_atomic
from edgecnn.labels import plural

Progress = Callable[[str, int, int], None]

SUITE = re.compile(
    "(?:bullseye|bookworm|trixie|forky|duke|(?:|old|oldold)stable|testing|sid|unstable)(-updates|-security|)"
)
KEYRINGS = tuple(f"/usr/share/keyrings/debian-archive-keyring.{kind}" for kind in ("pgp", "gpg"))
FRESH_S = 3600
"""Package lists younger than this are not downloaded again."""

ARCHITECTURE = "arm64"


class Source(NamedTuple):
    """A component of an archive's suite, and the keyring that verifies it ("" for apt's own)."""

    origin: str
    suite: str
    uri: str
    component: str
    signed_by: str


class Package(NamedTuple):
    name: str
    version: str
    file: str


def fetch_debs(
    packages: Sequence[str], release: str, cache: Path, progress: Progress = lambda what, done, total: None
) -> list[Path]:
    """Return the .deb files of packages and their dependencies, from the cache or Debian's archive. Raises EmulatorError on failure."""
    with private_apt(release, cache, progress) as apt:
        return apt.download(apt.resolve(packages), progress)


def unpack_debs(debs: Sequence[Path], root: Path) -> None:
    for name in ("bin", "lib", "sbin"):  # before any package, because since Debian 12 they are below usr/
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    # If a Debian 12 package has files in /lib, dpkg-deb -x would replace the link with a folder.
    into = [tool("tar"), "--extract", "--keep-directory-symlink", f"--directory={root}"]
    for deb in debs:
        reader = subprocess.Popen(
            [tool("dpkg-deb"), "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with reader:
            done = subprocess.run(into, stdin=reader.stdout, capture_output=True, text=True)
            output = reader.stderr.read().decode(errors="replace") if reader.stderr else ""
        if reader.returncode or done.returncode:
            raise EmulatorError(
                f"cannot unpack {deb.name}: {_reason(output or done.stderr)}. Delete it, so that it is downloaded again: {deb}"
            )


def tool(name: str) -> str:
    """Return the path of one of Debian's tools. Raises EmulatorError if it is missing, as on hosts other than Debian."""
    path = shutil.which(name)
    if path is None:
        raise EmulatorError(
            f"{name} is not installed. edgecnn makes an emulated board from Debian's packages, with Debian's own tools. "
            "Use a machine or a container with Debian 12 or 13 (packages apt, dpkg)."
        )
    return path


def host_sources(release: str) -> list[Source]:
    """Return the host's Debian archives, with the given release instead of the host's. Raises EmulatorError if it has no such archives."""
    rows = _index_targets() or [
        # Without package lists, as in a new container, apt reports neither an archive's origin nor its keyring.
        row._replace(signed_by=next((key for key in KEYRINGS if os.path.exists(key)), ""))
        for row in _index_targets("--no-release-info")
        if row.component == "main"
    ]
    named = [row._replace(suite=release + match[1]) for row in rows if (match := SUITE.fullmatch(row.suite))]
    named = [row for row in named if row.origin == "Debian"] or named
    if not named:
        suites = ", ".join(sorted({row.suite for row in rows})) or "none"
        raise EmulatorError(
            f"this machine's apt has no Debian sources (its suites: {suites}). "
            "edgecnn makes an emulated board from Debian's packages: use a machine or a container with Debian 12 or 13."
        )
    return list(dict.fromkeys(named))


def _index_targets(*options: str) -> list[Source]:
    layout = "\t".join(f"$({field})" for field in ("ORIGIN", "RELEASE", "REPO_URI", "COMPONENT", "SIGNED_BY"))
    arguments = ["indextargets", *options, "--format", layout, "Created-By: Packages"]
    lines = _call([tool("apt-get"), *arguments], "read this machine's apt sources").splitlines()
    # apt prints a field without a value as its own name
    rows = ([re.sub(r"^\$\(.*\)$", "", value) for value in line.split("\t")] for line in lines)
    return [Source(*row) for row in rows if len(row) == len(Source._fields)]


def sources_text(sources: Sequence[Source]) -> str:
    return "\n".join(
        f"Types: deb\nURIs: {source.uri}\nSuites: {source.suite}\nComponents: {source.component}\nArchitectures: {ARCHITECTURE}\n"
        + (f"Signed-By: {source.signed_by}\n" if source.signed_by else "")
        for source in sources
    )


class Apt:
    def __init__(self, folder: Path, release: str) -> None:
        self.folder = folder
        self.release = release
        self.archives = folder / "archives"

    def prepare(self, progress: Progress) -> None:
        for path in ("archives/partial", "lists/partial", "sources"):
            (self.folder / path).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        text = sources_text(host_sources(self.release))
        listed, stamp = self.folder / "sources" / "debian.sources", self.folder / "updated"
        same = listed.exists() and listed.read_text(encoding="utf-8") == text
        if same and stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < FRESH_S:
            return
        listed.write_text(text, encoding="utf-8")
        self.run("apt-get", ["update", "--error-on=any"], progress, f"lists of Debian {self.release}")
        stamp.touch()

    def resolve(self, packages: Sequence[str]) -> list[Package]:
        output = self.run("apt-get", ["install", "--simulate", "--", *packages])
        return [
            Package(name, version, f"{name}_{version.replace(':', '%3a')}_{kind}.deb")
            for name, version, kind in re.findall(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", output, re.MULTILINE)
        ]

    def download(self, packages: Sequence[Package], progress: Progress) -> list[Path]:
        """Download the packages missing from the cache, and return the files of all. apt checks their hashes."""
        missing = [package for package in packages if not (self.archives / package.file).exists()]
        if missing:
            what = f"{plural(len(missing), 'package')} of Debian {self.release}"
            names = [f"{package.name}={package.version}" for package in missing]
            with tempfile.TemporaryDirectory(dir=self.folder) as fresh:  # an interruption leaves no partial package
                self.run("apt-get", ["download", "--", *names], progress, what, Path(fresh))
                for package in missing:
                    os.replace(Path(fresh) / package.file, self.archives / package.file)
        return [self.archives / package.file for package in packages]

    def run(
        self,
        command: str,
        arguments: Sequence[str],
        progress: Progress | None = None,
        what: str = "",
        cwd: Path | None = None,
    ) -> str:
        """Run an apt command in this folder and return its output. `progress` receives apt's own percentages."""
        options = {
            "APT::Architecture": ARCHITECTURE,
            "APT::Architectures": ARCHITECTURE,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",  # the user of the host's apt cannot write here
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",  # `private_apt` holds a lock
            "Dir::Cache": str(self.folder),
            "Dir::Cache::archives": f"{self.archives}/",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": str(self.folder / "sources"),
            "Dir::State": str(self.folder),
            "Dir::State::lists": f"{self.folder}/lists/",
            "Dir::State::status": str(self.folder / "status"),
        }
        arguments = [tool(command), *(f"-o{key}={value}" for key, value in options.items()), *arguments]
        if progress is None:
            return _call(arguments, f"resolve packages of Debian {self.release}")
        return _watched(arguments, what, progress, cwd)


@contextlib.contextmanager
def private_apt(release: str, cache: Path, progress: Progress) -> Iterator[Apt]:
    """Open the private apt of a release, and make other processes that need it wait. Errors as in `fetch`."""
    tool("apt-get")
    folder = cache / "apt" / f"{release}-{ARCHITECTURE}"
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, TimeoutError(), wait_s=math.inf):
        apt = Apt(folder, release)
        apt.prepare(progress)
        yield apt


def _watched(arguments: Sequence[str], what: str, progress: Progress, cwd: Path | None) -> str:
    """Run apt-get and pass on the percentage that it writes to a file descriptor."""
    progress(what, 0, 100)
    reader, writer = os.pipe()
    command = [arguments[0], f"-oAPT::Status-Fd={writer}", *arguments[1:]]
    with subprocess.Popen(
        command, cwd=cwd, pass_fds=(writer,), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_plain()
    ) as process:
        os.close(writer)
        try:
            with os.fdopen(reader, encoding="utf-8", errors="replace") as status:
                for line in status:
                    if match := re.match(r"dlstatus:\d+:(\d+)", line):
                        progress(what, min(int(match[1]), 99), 100)
            output = process.communicate()[0]
        except BaseException:  # an interruption must also stop the download
            process.kill()
            raise
    if process.returncode:
        raise EmulatorError(f"apt-get cannot download {what}: {_reason(output)}")
    progress(what, 100, 100)
    return output


def _call(arguments: Sequence[str], what: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, env=_plain())
    if done.returncode:
        raise EmulatorError(f"{Path(arguments[0]).name} cannot {what}: {_reason(done.stderr or done.stdout)}")
    return done.stdout


def _plain() -> dict[str, str]:
    # force English, because the tools' output is parsed
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _reason(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "dpkg-deb: error"))]
    return (errors or lines[-1:] or ["it printed nothing"])[0].removeprefix("E: ")


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


def release_platform(release: str, machine: str = "aarch64") -> Platform:
    return Platform(RELEASES[release], GLIBC[release], machine)


def engines_on(python: str) -> list[str]:
    return [engine for engine in ENGINES if python in ONLY.get(engine, (python,))]


def requirements(engine: str, python: str, more: Mapping[str, str] = MappingProxyType({})) -> Requirements:
    """Return the requirements of a board with an engine and a Python ("3.13"), plus `more` like BASE, in this machine's versions.

    Raises EmulatorError if the engine has no wheel for that Python.
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


def install_wheels(
    packages: Requirements, platform: Platform, folder: Path, progress: Progress = lambda what, done, total: None
) -> dict[str, str]:
    """Install wheels for a board into a folder, without running their code. Returns versions by name, with "_" for "-"."""
    python = platform.python
    shared = [
        *pip_command(), "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-compile", "--no-warn-conflicts",
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


def pip_command() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if path := shutil.which("pip3") or shutil.which("pip"):
        return [path]
    raise EmulatorError(
        f"this machine has no pip, which downloads a board's wheels. Install it: {sys.executable} -m ensurepip"
    )


FORMAT = 1
"""Part of the folder names. Change it when `keep`'s callers make their content differently."""

MADE = "made.json"


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
