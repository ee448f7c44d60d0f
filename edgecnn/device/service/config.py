"""The options of the service, one TOML file, which is checked before use; and its unit in systemd."""

import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

from edgecnn.boards import SERVICE_CONFIG
from edgecnn.device.address import parse_address, parse_listen
from edgecnn.device.cameras import SCHEMES, is_stream
from edgecnn.device.slots import record as disks
from edgecnn.device.stream.settings import (
    Camera,
    Decision,
    Engine,
    Http,
    Metrics,
    Model,
    Mqtt,
    Pace,
    Reaction,
    Settings,
    State,
    from_keys,
    keys_of,
    read_smooth,
)
from edgecnn.device.system import System, masked
from edgecnn.errors import ServiceError, SlotError
from edgecnn.files import output_errors, write_atomic
from edgecnn.region import LARGEST_SIZE
from edgecnn.runtime.child import Finished
from edgecnn.tables import build, key

ENVIRONMENT = SERVICE_CONFIG.with_name("environment")

TAKEN = "service.toml"  # the name of the copy, next to the releases, of the last valid options

SLOWEST_FPS = 0.2  # fewer results per second would look like a frozen camera to the watchdog


KEYS: list[tuple[str, Any, Any]] = [
    ("source", str, key("", "a camera or stream, as for edgecnn classify; empty for the first camera that works")),
    ("width", int, key(640, "requested width of frames", low=1, high=LARGEST_SIZE)),
    ("height", int, key(480, "requested height of frames", low=1, high=LARGEST_SIZE)),
    *keys_of(Camera, Pace, Engine, Decision, Model, State),
    ("good_after", int, key(10, "fresh frames that a pending release must classify", low=1, high=1_000_000)),
    *keys_of(Reaction, Mqtt, Http, Metrics),
]
"""The service's options. An empty text means none."""

Keys: Any = make_dataclass("Keys", KEYS, frozen=True, kw_only=True)


class Config(Keys):
    @property
    def settings(self) -> Settings:
        made = from_keys(vars(self))
        camera = replace(made.camera, size=(self.width, self.height), retry_for_s=float("inf"))
        return replace(made, camera=camera)

    @property
    def needs_network(self) -> bool:
        """Whether the camera, the broker or the page needs a network. A program that delivers frames may need one."""
        return bool(self.mqtt or self.http or self.source.lower().startswith((*SCHEMES, "ffmpeg:", "exec:")))


def parse(text: str, where: str) -> Config:
    """Parse options from TOML; ServiceError, which names `where` and the key, if they are not valid."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ServiceError(f"{where} is not TOML: {error}.") from None
    except RecursionError:
        raise ServiceError(f"{where} is nested too deeply.") from None
    config = build(Config, table, ServiceError, where)
    for name, check in (("smooth", read_smooth), ("mqtt", parse_address), ("http", parse_listen)):
        try:
            if value := getattr(config, name):
                check(value)
        except ValueError as error:
            raise ServiceError(f"{where}: {name}: {error}.") from None
    if 0 < config.max_fps < SLOWEST_FPS:
        raise ServiceError(f"{where}: max_fps must be 0 or at least {SLOWEST_FPS:g}; received {config.max_fps:g}.")
    if config.source and not is_stream(config.source):
        source = masked(config.source)
        raise ServiceError(f"{where}: source {source!r} is not a camera or a stream, such as /dev/video0 or rtsp://…")
    if config.keep and not Path(config.keep).is_absolute():
        raise ServiceError(
            f"{where}: keep must be the full path of a folder, such as /var/lib/edgecnn/kept; received {config.keep!r}."
        )
    if config.source.startswith(("watch:", "folder:")):
        raise ServiceError(
            f"{where}: source cannot be a folder: the watchdog would take its silence for a frozen camera."
        )
    return config


def read_options_file(path: Path) -> str:
    """Return the text of an options file, or "" if it does not exist; ServiceError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None


def valid_options(path: Path, *, required: bool = True) -> str:
    """Return the text of an options file. ServiceError if an option is invalid, or if the file is required and does not exist."""
    if required and not path.exists():
        raise ServiceError(f"the file {path} does not exist.")
    text = read_options_file(path)
    parse(text, str(path))
    return text


def take_options(path: Path, folder: Path, disk: disks.Disk | None = None) -> tuple[Config, str]:
    """Use a file's options if they are valid, and save a copy in `folder`; else use the copy of the last valid ones.

    Returns the options in use, and why they differ from the file or could not be saved; "" if all is well.
    """
    copy = folder / TAKEN
    try:
        text = read_options_file(path)
        config = parse(text, str(path))
    except ServiceError as error:
        last = _last(copy)
        what = "The defaults are" if last is None else "The last valid options stay"
        return last or Config(), f"{error} {what} in use."
    try:
        if not copy.exists() or read_options_file(copy) != text:
            disks.replace(disk or disks.Disk(folder), copy, text.encode())
    except (OSError, ServiceError, SlotError) as error:
        return config, f"{copy}: the options in use cannot be saved: {error}"
    return config, ""


def _last(copy: Path) -> Config | None:
    try:
        return parse(read_options_file(copy), str(copy)) if copy.exists() else None
    except ServiceError:
        return None


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
    place = host.root / SERVICE_CONFIG.relative_to("/")
    text = valid_options(options or place, required=options is not None)
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
