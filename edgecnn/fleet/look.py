"""One look at a board: a shell script reports what it is and has, and this module reads its lines."""

from dataclasses import field

from edgecnn.device.update import TRUST
from edgecnn.fleet.ssh import Board, BoardError
from edgecnn.tables import Struct

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
