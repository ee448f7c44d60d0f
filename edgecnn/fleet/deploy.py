"""Bring boards edgecnn, the keys that they trust, their options, and the releases that they lack; they update from that copy."""

import gzip
import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import edgecnn
from edgecnn import __version__, packages
from edgecnn.bundle.channel import entries_of, is_for
from edgecnn.errors import EmulatorError, ReleaseError
from edgecnn.files import cache_home, data_folder, sha256, sha256_file
from edgecnn.fleet.ssh import Board, BoardError, Sessions, last_line
from edgecnn.fleet.status import CONFIGURED, LINK, REPOSITORY, VERSIONS, Look, look, read_status
from edgecnn.release.keys import ANCHOR, default_folder
from edgecnn.release.repository import Repository
from edgecnn.runtime.default import SHIPPED
from edgecnn.tables import Struct

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("aarch64", "x86_64")
"""Processors that LiteRT has wheels for."""

DIGITS = 12
"""Digits of a SHA-256 in the name of a folder on a board."""

WHEELS = "wheels.tar.gz"
PRIVATE = CONFIGURED[1].lstrip("/")
"""Options of updates: their address may contain a password."""

MAIN = f"""#!{LINK}/bin/python3
import sys

from edgecnn.__main__ import run

sys.exit(run())
"""

PUT_WHEELS = """set -e
umask 022
rm -rf {place}.new
trap 'rm -rf {place}.new' EXIT
mkdir -p {place}.new
tar -x -z -o -C {place}.new
python3 -m compileall -q -x '/tests?/' {place}.new || true
sync
mv {place}.new {place}
"""

PUT_EDGECNN = """set -e
umask 022
rm -rf {place}.new {place}
trap 'rm -rf {place}.new' EXIT
python3 -m venv --without-pip {place}.new
site=$(echo {place}.new/lib/python3*/site-packages)
tar -x -z -o -C {place}.new
mv {place}.new/edgecnn {place}.new/*.dist-info "$site"
echo {wheels} > "$site/wheels.pth"
python3 -m compileall -q "$site" || true
sync
mv {place}.new {place}
mkdir -p /usr/local/bin
ln -sfn {place} {link}.new
mv -T {link}.new {link}
ln -sf {link}/bin/edgecnn /usr/local/bin/edgecnn
"""

PUT_PACKAGE = """set -e
umask 022
folder=$(mktemp -d /var/tmp/edgecnn.XXXXXX)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
cat > "$folder/edgecnn.deb"
export DEBIAN_FRONTEND=noninteractive
apt-get install --yes --quiet --reinstall --allow-downgrades "$folder/edgecnn.deb" >&2
python3 -c 'import tuf' 2>/dev/null || apt-get install --yes --quiet --no-install-recommends python3-tuf >&2
mkdir -p {repository}
echo {digest} > {repository}/deb
"""


class Package:
    """Debian packages; each board gets the one for its architecture. ValueError for a file that is not one.

    `install` returns what it installed, as text; "" if the board already has it.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = {self._field(path, "Architecture"): path for path in paths}
        self._versions = {path: self._field(path, "Version") for path in paths}
        self._digests = {path: sha256_file(path) for path in paths}

    @staticmethod
    def _field(path: Path, name: str) -> str:
        try:
            done = subprocess.run(["dpkg-deb", "--field", str(path), name], capture_output=True, text=True)
        except FileNotFoundError:
            raise ValueError("reading Debian packages needs dpkg-deb: apt-get install dpkg") from None
        if done.returncode or not done.stdout.strip():
            raise ValueError(f"{path} is not a Debian package: {done.stderr.strip()}")
        return done.stdout.strip()

    def install(self, board: Board, look: Look) -> str:
        path = self._paths.get(look.architecture)
        if path is None:
            has = look.architecture or "not a Debian system"
            raise BoardError(f"it is {has}, but --deb names a package for {', '.join(self._paths)}")
        if look.link:
            raise BoardError(f"it has a virtual environment, {LINK}. Remove that, or deploy without --deb")
        digest = self._digests[path]
        if look.package == f"installed {self._versions[path]}" and look.packed == digest:
            return ""
        board.must("installing the package", PUT_PACKAGE.format(repository=REPOSITORY, digest=digest), path)
        return f"package {self._versions[path]}"


class Wheels:
    """Virtual environments: this machine's pip resolves the wheels for each kind of board once, and edgecnn's cache keeps them.

    `install` is as in `Package`.
    """

    def __init__(self) -> None:
        self._package = package_tar()
        self._lock = threading.Lock()

    def install(self, board: Board, look: Look) -> str:
        platform = platform_of(look)
        if look.package.startswith("installed"):
            raise BoardError("it has the Debian package. Deploy that with --deb, or remove it: apt remove edgecnn")
        if look.foreign:
            raise BoardError(f"{LINK} there was not made by deploy. Move it away")
        with self._lock:  # pip runs for one kind of board at a time, and only once for each
            try:
                archive = wheels_for(platform)
            except EmulatorError as error:
                raise BoardError(str(error)) from None
        wheels_id = f"wheels-{archive.parent.name.rpartition('-')[2]}"
        edgecnn_id = sha256(self._package + wheels_id.encode())[:DIGITS]
        place = f"{VERSIONS}/{edgecnn_id}"
        if look.link == place:
            return ""
        if wheels_id not in look.wheels.split():
            board.must("unpacking the wheels", PUT_WHEELS.format(place=f"{VERSIONS}/{wheels_id}"), archive)
        script = PUT_EDGECNN.format(place=place, wheels=f"{VERSIONS}/{wheels_id}", link=LINK)
        board.must("making the virtual environment", script, gzip.compress(self._package, mtime=0))
        board.must(
            "removing old versions",
            f"cd {VERSIONS} && ls -A | grep -vxF -e {edgecnn_id} -e {wheels_id} | xargs -r rm -rf",
        )
        return f"{__version__} for {platform}"


def platform_of(look: Look) -> packages.Platform:
    """Return the platform of a board's wheels. BoardError if edgecnn cannot run on it from wheels."""
    if not look.python:
        raise BoardError("it has no Python 3: apt-get install python3, or deploy the Debian package (--deb)")
    if look.python not in PYTHONS:
        raise BoardError(f"its Python is {look.python}, but edgecnn needs {PYTHONS[0]} to {PYTHONS[-1]}")
    if look.machine not in MACHINES or look.bits != "64":
        raise BoardError(
            f"it is {look.machine} with {look.bits or 'unknown'} bits, but edgecnn's engine has wheels only for {' and '.join(MACHINES)}"
        )
    libc = re.fullmatch(r"glibc 2\.(\d{1,3})(?:\.\d+)?", look.libc, re.ASCII)
    if libc is None:
        raise BoardError(f"its C library is {look.libc or 'not the GNU one'}, but the wheels need glibc")
    return packages.Platform(look.python, int(libc[1]), look.machine)


def wheels_for(platform: packages.Platform) -> Path:
    """Return an archive of the packages that a board needs, from the cache or made now. EmulatorError if pip cannot get them."""
    needed = packages.requirements("litert", platform.python, packages.EXTRAS)

    def make(folder: Path) -> dict[str, Any]:
        versions = packages.install_wheels(needed, platform, folder / "site")
        with gzip.GzipFile(folder / WHEELS, "wb", 6, mtime=0) as packed:
            packed.write(tar(files_below(folder / "site")))
        shutil.rmtree(folder / "site")
        return {"versions": versions}

    ingredients = {"platform": str(platform), "glibc": platform.glibc, "needs": needed.needs, "alone": needed.alone}
    prefix = cache_home() / "boards" / f"wheels-{platform.python}-{platform.machine}"
    return packages.keep(prefix, ingredients, make) / WHEELS


def package_tar() -> bytes:
    """Return an archive of this edgecnn, laid out as in its wheel however it was installed, with the program to start it on a board."""
    package = Path(edgecnn.__file__).parent
    files = {
        f"edgecnn/{name}": path for name, path in files_below(package).items() if not name.endswith(".schema.json")
    }
    for name in ("targets", f"models/{SHIPPED}"):
        top, _, below = name.partition("/")
        folder = data_folder(top) / below
        kept = "*.toml" if top == "targets" else "*.edgecnn"
        files |= {f"edgecnn/_data/{name}/{path.name}": path for path in folder.glob(kept)}
    about = f"Metadata-Version: 2.1\nName: edgecnn\nVersion: {__version__}\n"
    return tar({**files, f"edgecnn-{__version__}.dist-info/METADATA": about.encode(), "bin/edgecnn": MAIN.encode()})


def files_below(folder: Path) -> dict[str, Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path for path in found}


def tar(files: Mapping[str, Path | bytes]) -> bytes:
    """Return a tar archive of files by path, the same bytes for the same files: readable by all, except PRIVATE; bin/ is executable."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(files):
            source = files[name]
            content = source if isinstance(source, bytes) else source.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if name.startswith("bin/") else 0o600 if name == PRIVATE else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


ROOT, UPDATE, SERVICE = CONFIGURED

PUT_FILES = """set -e
umask 022
fresh={repository}/.new
rm -rf $fresh
trap 'rm -rf '$fresh EXIT
mkdir -p $fresh
tar -x -o -C $fresh
sync
cd $fresh
for part in etc .{repository}/targets .{repository}/metadata; do
    find $part -type f 2>/dev/null | LC_ALL=C sort | while read -r file; do
        mkdir -p "/${{file%/*}}"
        mv "$file" "/$file"
    done
done
"""
"""The timestamp comes last: by then, everything that it leads to is there."""

RUN_UPDATE = """edgecnn update --from {repository} >&2
code=$?
edgecnn update status --json
exit $code
"""


class File(NamedTuple):
    path: Path
    sha256: str


class Offer:
    """What a repository offers the boards of a channel: its only one, unless one is named. `roots` are all versions that it has had.

    ReleaseError if the folder is not a repository, has an invalid signature or lacks the channel; also if it does not follow from the root
    that its keys have seen, if these are in their default folder.
    """

    def __init__(self, folder: Path, channel: str | None = None) -> None:
        repository = Repository(folder)
        seen = default_folder(folder) / ANCHOR
        state = repository.read(seen.read_bytes() if seen.is_file() else None)
        targets = state.targets.signed.targets
        channels = sorted({path.partition("/")[0] for path in targets})
        if channel not in channels and (channel is not None or len(channels) != 1):
            problem = (
                f"has no channel {channel}" if channel else f"has {len(channels)} channels: name one with --channel"
            )
            raise ReleaseError(f"{folder} {problem}. Known: {', '.join(channels) or 'none'}.")
        self.channel = channel or channels[0]
        names = [f"{root.signed.version}.root.json" for root in state.roots]
        names += [f"{state.snapshot.signed.version}.snapshot.json", f"{state.targets.signed.version}.targets.json"]
        metadata = [repository.metadata / name for name in (*names, "timestamp.json")]
        self.roots = [path.read_bytes() for path in metadata[: len(state.roots)]]
        self._metadata = {f"{REPOSITORY}/metadata/{path.name}": File(path, sha256_file(path)) for path in metadata}
        self._releases = {
            entry: File(repository.target_file(entry.path, entry.sha256), entry.sha256)
            for entry in entries_of(targets, self.channel)
        }
        for file in self.files("").values():
            if not file.path.is_file() or sha256_file(file.path) != file.sha256:
                raise ReleaseError(f"{file.path} is missing or damaged. Copy the whole repository here again.")

    def files(self, board_id: str) -> dict[str, File]:
        """Return the files of a board's copy, by path there: metadata, and the releases that it may choose. Without an id: of any board."""
        files = dict(self._metadata)
        for entry, file in reversed(self._releases.items()):
            if is_for(entry, board_id) if board_id else not entry.terms.stopped:
                files[f"{REPOSITORY}/targets/{self.channel}/{file.path.name}"] = file
                if entry.terms.share == 100:  # no board takes an older one
                    break
        return files


class Plan(Struct):
    """What boards get: `software`, an `offer`, and the service's options; `url` is where they look later, "" to leave that unchanged."""

    software: Package | Wheels
    offer: Offer
    url: str = ""
    options: bytes | None = None
    replace_root: bool = False

    def configuration(self, found: Look) -> dict[str, bytes]:
        """Return the options that a board lacks, by path there. Without a `url`, it looks where it did before, or in its copy.

        A root that it trusts is not replaced, since new ones follow from it. BoardError if that belongs to another repository.
        """
        source = json.dumps(self.url) if self.url else found.source or json.dumps(REPOSITORY)
        text = f"from = {source}\nchannel = {json.dumps(self.offer.channel)}\n"
        files = {ROOT: self.offer.roots[-1], UPDATE: text.encode()}
        if self.options is not None:
            files[SERVICE] = self.options
        trusted = found.hashes.get(ROOT, "")
        if trusted in [sha256(root) for root in self.offer.roots]:
            del files[ROOT]
        elif trusted and not self.replace_root:
            raise BoardError(
                f"{ROOT} there belongs to another repository. To make it trust this one from now on: --replace-root"
            )
        return {path: content for path, content in files.items() if found.hashes.get(path) != sha256(content)}


NO_SERVICE = "it has no systemd, so nothing runs the model there; start edgecnn service run yourself, at each boot"


class DeployOutcome(Struct):
    """The outcome for a board: `problem` is why it failed, or ""; `warning` is what it does not do although nothing failed, or "".

    `status` is the output of its `edgecnn update status`.
    """

    host: str
    problem: str = ""
    warning: str = ""
    installed: str = ""
    files: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    seconds: float = 0.0
    status: Mapping[str, Any] | None = None


def deploy(host: str, plan: Plan, sessions: Sessions, progress: Callable[[str, str], object]) -> DeployOutcome:
    """Carry out a plan on one board, and return the outcome. `progress` receives the host and the step."""
    started = time.monotonic()
    made: dict[str, Any] = {}
    board = None
    try:
        with sessions.connect(host) as board:
            found = look(board)
            progress(host, "connected")
            configuration = plan.configuration(found)
            made["installed"] = plan.software.install(board, found)
            if made["installed"]:
                progress(host, f"installed {made['installed']}")
            brought = bring(board, found, plan, configuration)
            made["files"] = len(brought)
            if not found.systemd:
                made["warning"] = NO_SERVICE
            elif made["installed"] or SERVICE in brought or found.service in ("inactive", "failed"):
                board.must("starting the service", "edgecnn service install >&2")
            done = board.run(RUN_UPDATE.format(repository=REPOSITORY))
            if done.code:
                raise BoardError(f"edgecnn update failed: {last_line(done.err).rstrip('.') or done.how}")
            made["status"] = read_status(done.out)
    except BoardError as error:
        made["problem"] = str(error)
    if board is not None:
        made |= {"sent_bytes": board.sent, "received_bytes": board.received}
    return DeployOutcome(host=host, seconds=round(time.monotonic() - started, 3), **made)


def bring(board: Board, found: Look, plan: Plan, configuration: Mapping[str, bytes]) -> Collection[str]:
    """Write the files that a board lacks, remove old ones from its copy of the repository, and return the paths of the new ones."""
    files: dict[str, bytes | Path] = {**configuration}
    kept = plan.offer.files(found.board)
    for path, source in kept.items():
        if found.hashes.get(path) != source.sha256:
            files[path] = source.path
    old = [path for path in found.hashes if path.startswith(f"{REPOSITORY}/") and path not in kept]
    script = f"rm -f {shlex.join(old)}\n" if old else ""
    if files:
        script = PUT_FILES.format(repository=REPOSITORY) + script
    if script:
        board.must("writing files", script, tar({path.lstrip("/"): content for path, content in files.items()}))
    return files.keys()
