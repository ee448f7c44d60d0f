"""The service in systemd: write, enable, query and remove its unit."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecnn.device.service import config
from edgecnn.device.system import System
from edgecnn.errors import ServiceError
from edgecnn.files import output_errors, write_atomic
from edgecnn.runtime.child import Finished

UNIT, TIMER = "edgecnn.service", "edgecnn-update.timer"
UNITS = (UNIT, "edgecnn-update.service", TIMER)
"""All units. The timer's unit does nothing until the board has /etc/edgecnn/update.toml."""

OWN, PACKAGED = "etc/systemd/system", "usr/lib/systemd/system"
USERS = "sysusers.d/edgecnn.conf"

HIDDEN = ("/home/", "/root/", "/run/user/")  # folders that the unit's ProtectHome hides from the service

SHOWN = ("ActiveState", "SubState", "StatusText", "NRestarts", "UnitFileState", "Result")


def unit_text(command: Sequence[str], name: str = UNIT) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8").replace("@EXECUTABLE@", " ".join(command))


def users_text() -> str:
    return Path(__file__).with_name("edgecnn.sysusers").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine: its files, how to run commands, whether the user is root, and where edgecnn is installed."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], Finished] = lambda command: System(packages={}).run(command, timeout=None)
    is_root: bool = os.geteuid() == 0
    python: str = sys.executable
    package: str = __file__

    def require_systemd(self) -> None:
        if not (self.root / "run/systemd/system").is_dir():
            raise ServiceError(
                "the service needs systemd, which does not run on this machine. "
                "Start edgecnn service run with the machine's own service manager."
            )

    def require_root(self) -> None:
        if not self.is_root:
            raise ServiceError("only root may change the services of this machine. Run it again with sudo.")

    def systemctl(self, *arguments: str) -> Finished:
        done = self.run(["systemctl", *arguments])
        if done.code != 0:
            raise ServiceError(f"systemctl {' '.join(arguments)} failed: {(done.err or done.out).strip()}")
        return done


def install(host: Host, options: Path | None = None) -> Path:
    """Write the unit and the options, start the service, and return the unit's path. Raises ServiceError or OutputError."""
    host.require_systemd()
    host.require_root()
    place = host.root / config.CONFIG.relative_to("/")
    source = options or place
    if options is not None and not options.exists():
        raise ServiceError(f"{options} does not exist.")
    text = config.read_options_file(source)
    config.parse(text, str(source))
    packaged = (host.root / PACKAGED / UNIT).exists()
    unit = host.root / (PACKAGED if packaged else OWN) / UNIT
    if not packaged:
        if hidden := next((path for path in (host.python, host.package) if path.startswith(HIDDEN)), None):
            raise ServiceError(
                f"{hidden} is in a folder that the service cannot see. Install edgecnn elsewhere, such as in a virtual environment "
                "/opt/edgecnn, or use the Debian package."
            )
        for name in UNITS:
            write_atomic(unit.with_name(name), unit_text([host.python, "-m", "edgecnn"], name))
        write_atomic(host.root / "etc" / USERS, users_text())
        host.run(["systemd-sysusers", f"/etc/{USERS}"])  # without it, root fetches releases itself and says so
    if options is not None:
        write_atomic(place, text)
    host.systemctl("daemon-reload")
    host.systemctl("enable", UNIT)
    host.systemctl("restart", "--no-block", UNIT)
    host.systemctl("enable", "--now", TIMER)
    return unit


def remove(host: Host) -> None:
    """Stop the service and remove its unit. ServiceError if it is not installed, the Debian package owns it, or systemd refuses."""
    host.require_systemd()
    host.require_root()
    if (host.root / PACKAGED / UNIT).exists():
        raise ServiceError("the service is part of the Debian package. Remove the package: apt remove edgecnn")
    units = [path for name in UNITS if (path := host.root / OWN / name).exists()]
    if not units:
        raise ServiceError("the service is not installed. Install it: edgecnn service install")
    host.systemctl("disable", "--now", *(path.name for path in units if path.name in (UNIT, TIMER)))
    for path in (*units, host.root / "etc" / USERS):
        with output_errors(path):
            path.unlink(missing_ok=True)
    host.systemctl("daemon-reload")


def unit_properties(host: Host) -> dict[str, Any]:
    """Return the service's properties in systemd, by the names in SHOWN; ServiceError if systemd does not run."""
    host.require_systemd()
    lines = host.systemctl("show", f"--property={','.join(SHOWN)}", UNIT).out.splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return {name: values.get(name, "") for name in SHOWN}


def logs_command(host: Host, lines: int, follow: bool) -> list[str]:
    """Return the command that prints the service's lines in the journal; ServiceError without systemd or a journal."""
    host.require_systemd()
    if shutil.which("journalctl") is None:
        raise ServiceError("journalctl, which reads the journal, is not installed.")
    end = "--follow" if follow else "--no-pager"
    return ["journalctl", f"--unit={UNIT}", "--output=cat", f"--lines={lines}", end]
