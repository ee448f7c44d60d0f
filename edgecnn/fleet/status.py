"""One look at a board, the update status of all, and the pictures that they keep, gathered over ssh."""

import contextlib
import json
import re
import shlex
import tarfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import IO, Any

from edgecnn.boards import LABELS_FILE, SAMPLE_FILE, SERVICE_CONFIG, TRUST, UPDATE_SCHEMA
from edgecnn.errors import first_line
from edgecnn.files import PRIVATE_FILE, private_folder, write_atomic
from edgecnn.fleet.ssh import Board, BoardError, Sessions, last_line
from edgecnn.tables import Struct, shown

VERSIONS = "/opt/edgecnn-versions"
"""Folder of the virtual environments; /opt/edgecnn is a link to the one in use."""

LINK = "/opt/edgecnn"
REPOSITORY = "/var/lib/edgecnn-deploy"
"""A board's copy of a repository of releases, and the hash of the package that was installed."""

CONFIGURED = tuple(f"/etc/edgecnn/{name}" for name in ("root.json", "update.toml", "service.toml"))

SCRIPT = rf"""
LC_ALL=C; export LC_ALL
say() {{ printf '%s %s\n' "$1" "$2"; }}
say machine "$(uname -m)"
say bits "$(getconf LONG_BIT)"
say libc "$(getconf GNU_LIBC_VERSION)"
say python "$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
say architecture "$(dpkg --print-architecture)"
say package "$(dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' edgecnn)"
say packed "$(cat {REPOSITORY}/deb)"
say link "$(readlink {LINK})"
say wheels "$(cd {VERSIONS} && echo wheels-*)"
[ -d {LINK} ] && [ ! -L {LINK} ] && say foreign yes
[ -d /run/systemd/system ] && say systemd yes
say service "$(systemctl is-active edgecnn)"
say board "$(sed -n 's/.*"id": "\([0-9a-f]*\)".*/\1/p' {TRUST}/board.json)"
say source "$(sed -n 's/^from *= *//p' {CONFIGURED[1]} | head -n 1)"
say hashes ''
sha256sum {" ".join(CONFIGURED)}
find {REPOSITORY}/metadata {REPOSITORY}/targets -type f -exec sha256sum {{}} +
"""


class Look(Struct):
    """The state of a board. A text is "" if the board lacks it.

    `service` is systemd's word for the state of edgecnn's, such as active; `board` is its id, `source` the value of `from` in its
    update.toml, `hashes` are SHA-256 of files by absolute path.
    """

    machine: str = ""
    bits: str = ""
    libc: str = ""
    python: str = ""
    architecture: str = ""
    package: str = ""
    packed: str = ""
    link: str = ""
    wheels: str = ""
    foreign: str = ""
    systemd: str = ""
    service: str = ""
    board: str = ""
    source: str = ""
    hashes: dict[str, str] = field(default_factory=dict)


def look(board: Board) -> Look:
    """Look at a board, as root. BoardError if it is not a Linux machine with a shell, or root access is not possible."""
    done = board.run(SCRIPT, limit_s=120)
    known, separator, rest = done.out.partition("hashes \n")
    values = dict(line.partition(" ")[::2] for line in known.splitlines())
    if not separator or not values.keys() <= Look.__dataclass_fields__.keys():
        raise BoardError(
            f"it does not answer as a Linux machine does: {(done.err or done.out).strip()[:200] or 'no answer'}"
        )
    hashes = {path: digest for digest, _, path in (line.partition("  ") for line in rest.splitlines())}
    return Look(**values, hashes=hashes)


KINDS = {"channel": str, "reason": str | None, "in_use": dict | None, "bad": dict | None, "age_s": int | None}
"""Types of the values that are shown: somebody else may have taken the board over."""

HEADINGS = ("board", "channel", "in use", "last good check", "problem")


class Gathered(Struct):
    """A board's status; without one, `problem` is the reason, otherwise ""."""

    host: str
    problem: str = ""
    status: Mapping[str, Any] | None = None


def ask_status(host: str, sessions: Sessions) -> Gathered:
    """Ask a board for its status."""
    try:
        with sessions.connect(host) as board:
            done = board.run("edgecnn update status --json", limit_s=120)
            if done.code:
                raise BoardError(f"edgecnn update status failed: {last_line(done.err) or done.how}")
            return Gathered(host=host, status=read_status(done.out))
    except BoardError as error:
        return Gathered(host=host, problem=str(error))


def read_status(text: str) -> dict[str, Any]:
    """Read the output of `edgecnn update status --json` on a board; BoardError if it is something else."""
    try:
        status = json.loads(text)
        if status is None:
            raise BoardError("it has not looked for a release yet")
        if status["schema"] != UPDATE_SCHEMA:
            raise ValueError(f"schema {shown(status['schema'])}")
        for name, kind in KINDS.items():
            if not isinstance(status.get(name), kind):
                raise ValueError(f"{name} is {shown(status[name])}")
        if not is_plain(status) or not all(isinstance(why, str) for why in (status.get("bad") or {}).values()):
            raise ValueError("values that no status has")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BoardError(
            f"edgecnn update status gave an unexpected answer there: {last_line(first_line(error))}"
        ) from None
    return status


def is_plain(value: Any, levels: int = 8) -> bool:
    """Return whether a value has at most some levels of tables and lists, and only numbers that 64 bits hold."""
    if isinstance(value, dict | list):
        return levels > 0 and all(
            is_plain(item, levels - 1) for item in (value.values() if isinstance(value, dict) else value)
        )
    return not isinstance(value, int | float) or abs(value) < 1 << 63  # false for NaN, too


def in_use(status: Mapping[str, Any]) -> str:
    """Return the release that a board has in use, as text."""
    slot = status.get("in_use")
    if not isinstance(slot, Mapping):
        return "no release"
    return f"{slot.get('name')} serial {slot.get('serial')} {slot.get('state')}"


def age(seconds: Any) -> str:
    """Return how long ago something was, as text."""
    if not isinstance(seconds, int | float):
        return "never"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def row(found: Gathered) -> tuple[str, ...]:
    """Return a board as a row under HEADINGS."""
    if found.status is None:
        return found.host, "-", "-", "-", found.problem
    status = found.status
    bad, held = status.get("bad") or {}, status.get("held_back")
    back = (
        f"{held.get('name')} serial {held.get('serial')} is held back: {held.get('reason')}"
        if isinstance(held, Mapping)
        else ""
    )
    problems = [status.get("reason"), back, *(f"{name[:12]} is bad: {why}" for name, why in bad.items())]
    return (
        found.host,
        str(status.get("channel")),
        in_use(status),
        age(status.get("age_s")),
        "; ".join(filter(None, problems)) or "-",
    )


PICTURE = re.compile(r"\./\d{4}-\d\d-\d\d/\d{8}T\d{6}\.\d{6}Z-\d+\.(?:jpg|json)", re.ASCII)
CHANGING = {f"./{SAMPLE_FILE}", f"./{LABELS_FILE}"}

ODD = (ValueError, OverflowError, LookupError, RecursionError)
"""What `tarfile` raises, apart from its own errors, for headers that nobody has written by accident."""

MOST_BYTES = 64 << 20
"""Limit for one file: somebody else may have taken over the board."""

PICTURES_SCRIPT = r"""
LC_ALL=C; export LC_ALL
cd -- "$folder" 2>/dev/null || { echo "no folder $folder" >&2; exit 1; }
{ cat; echo; find . -maxdepth 2 -type f \( -name '*.jpg' -o -name '*.json' -o -name '*.jsonl' \) | sort; } |
  awk '!length { listed = 1; next } !listed { here[$0] = 1; next } !($0 in here)' |
  tar -c --no-recursion --ignore-failed-read -f - -T -
[ $? -le 1 ]
"""
"""Sends the files that standard input does not name, a JPEG before its JSON; files that the board removes meanwhile are left out."""


def remote_folder(board: Board) -> str:
    """Return the folder of pictures that a board's service keeps, from its options; BoardError if it keeps none."""
    text = board.run(f"cat {SERVICE_CONFIG}").out
    try:
        folder = tomllib.loads(text).get("keep", "")
    except (ValueError, RecursionError):
        folder = ""
    if not folder or not isinstance(folder, str):
        raise BoardError(
            f"its service keeps no pictures: {SERVICE_CONFIG} has no keep. Name another folder there with --remote-folder"
        )
    return folder


def fetch_kept(board: Board, remote: str, folder: Path, progress: Callable[[int], object]) -> int:
    """Fetch the files of a board's folder that a local one lacks; return the number of pictures.

    Each file arrives whole or not at all, and a JPEG before its JSON; after an error, run it again to continue. BoardError, and OutputError
    for this machine's disk.
    """
    private_folder(folder)
    for path in folder.glob("*/.*.tmp"):  # from a fetch that was killed
        path.unlink()
    here = sorted(f"./{path.relative_to(folder)}" for path in folder.glob("*/*") if path.suffix in (".jpg", ".json"))
    script, names = f"folder={shlex.quote(remote)}{PICTURES_SCRIPT}", "".join(f"{name}\n" for name in here)
    count, whole = 0, False
    with board.reading(script, names.encode()) as stream, contextlib.suppress(tarfile.TarError, *ODD):
        bounded = Bounded(stream)
        with tarfile.open(fileobj=bounded, mode="r|", errorlevel=2) as archive:  # type: ignore[call-overload]
            for entry in archive:
                if take_entry(archive, entry, folder):
                    count += 1
                    progress(count)
                bounded.left = MOST_BYTES
        whole = True
        while bounded.read(1 << 16):
            pass
    if not whole:
        raise BoardError("the connection broke, or it does not send an archive")
    return count


class Bounded:
    """A stream that gives at most `left` bytes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.left = stream, MOST_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise BoardError(f"it sends a file of more than {MOST_BYTES:,} bytes")
        return data


def take_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> bool:
    """Write an entry of the archive if it is an expected one; return whether it completes a picture."""
    match = PICTURE.fullmatch(entry.name)
    if not entry.isreg() or entry.issparse() or not (match or entry.name in CHANGING):  # a sparse file has no limit
        return False
    file = archive.extractfile(entry)
    assert file is not None
    path = folder / entry.name
    if path.parent != folder:
        private_folder(path.parent)
    write_atomic(path, file.read(), PRIVATE_FILE)
    return path.suffix == ".json" and match is not None
