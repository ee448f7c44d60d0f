"""The board to update: its files, options, id and clocks."""

import contextlib
import dataclasses
import json
import os
import shutil
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgecnn.device.slots import ROOT
from edgecnn.device.slots.disk import Disk, replace
from edgecnn.device.update import TRUST
from edgecnn.device.update.channel import check_channel, is_board_id
from edgecnn.errors import UpdateError
from edgecnn.files import canonical_json, folder_lock, output_errors, sha256
from edgecnn.tables import Struct, shown

if TYPE_CHECKING:
    from edgecnn.device.slots.store import Store

SPOOL = Path("/var/lib/edgecnn-update")
CONFIG, ROOT_FILE = Path("/etc/edgecnn/update.toml"), Path("/etc/edgecnn/root.json")
BOARD = "board.json"
MAX_FILE_BYTES = 1 << 17


class Options(Struct):
    """The source of releases, an address or a folder, and the channel that this board follows."""

    source: str = ""
    channel: str = ""

    @property
    def is_url(self) -> bool:
        return self.source.startswith(("http://", "https://"))


class Ticks(NamedTuple):
    """Seconds since this boot, which a wrong clock does not affect, and the boot's id."""

    boot: str
    up: int


def ticks() -> Ticks:
    return Ticks(read_text(Path("/proc/sys/kernel/random/boot_id")), int(time.clock_gettime(time.CLOCK_BOOTTIME)))


class Board(Struct):
    """A board's files below `prefix`, how they are written, and its clocks. Tests replace each of these."""

    prefix: Path = Path("/")
    disk: Callable[[Path], Disk] = Disk
    clock: Callable[[], datetime] = lambda: datetime.now(UTC).replace(microsecond=0)
    ticks: Callable[[], Ticks] = ticks

    def path(self, absolute: Path) -> Path:
        return self.prefix / absolute.relative_to("/")

    @property
    def trust(self) -> Path:
        return self.path(TRUST)

    @property
    def spool(self) -> Path:
        return self.path(SPOOL)

    def slots(self) -> "Store":
        from edgecnn.device.slots.store import Store  # here, since the fetching half does not need numpy

        folder = self.path(ROOT)
        return Store(folder, self.disk(folder))

    def write(self, name: str, value: object) -> None:
        """Write a value as JSON to a file of `trust`, so that a power cut leaves the old file or the new one. Raises OutputError."""
        path = self.trust / name
        with output_errors(path):
            replace(self.disk(self.trust), path, canonical_json(value).encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[Path]:
        """Hold the lock of `trust`, and yield an empty temporary folder in it. UpdateError if another process holds the lock."""
        busy = "another update of this board is running. Try again when it has finished."
        with contextlib.ExitStack() as held:
            try:
                if not self.trust.is_dir():
                    self.trust.parent.mkdir(parents=True, exist_ok=True)
                    disk = self.disk(self.trust)
                    disk.make_folder(self.trust)
                    disk.sync(self.trust.parent)
                held.enter_context(folder_lock(self.trust, UpdateError(busy)))
            except PermissionError:
                raise UpdateError("only root may update this board. Run it again with sudo.") from None
            except OSError as error:
                raise UpdateError(f"cannot write {self.trust}: {error.strerror}.") from None
            scratch = self.trust / "scratch"
            with output_errors(scratch):
                if scratch.exists():  # left by an update that was killed
                    shutil.rmtree(scratch)
                scratch.mkdir(mode=0o700)
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def identity(self) -> str:
        """Return this board's random id. Make a new one the first time, or if the old one came with another machine's card."""
        machine = read_text(self.path(Path("/etc/machine-id")))
        stamp = sha256(f"edgecnn:{machine}".encode())  # the machine's id must not be shown
        try:
            held = json.loads(read_text(self.trust / BOARD) or "{}")
            if is_board_id(held["id"]) and held["machine"] in (stamp, *([held["machine"]] if not machine else [])):
                return held["id"]
        except (ValueError, KeyError, TypeError):
            pass
        made = uuid.uuid4().hex
        self.write(BOARD, {"id": made, "machine": stamp})
        return made


def read_options(path: Path, given: Options) -> Options:
    """Return a file's options, each overridden by the one in `given` unless that is empty. Raises UpdateError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        table = {}
    except (OSError, UnicodeDecodeError) as error:
        raise UpdateError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UpdateError(f"{path} is not TOML: {error}.") from None
    for name, value in table.items():
        if name not in ("from", "channel"):
            raise UpdateError(f"{path}: unknown key {shown(name)}. Known: channel, from.")
        if type(value) is not str:
            raise UpdateError(f"{path}: {name} must be a string; received {shown(value)}.")
    options = Options(source=given.source or table.get("from", ""), channel=given.channel or table.get("channel", ""))
    for name, value in (("from", options.source), ("channel", options.channel)):
        if not value:
            raise UpdateError(f'{name} is not set. Write {name} = "…" to {path}, or add --{name}.')
    check_channel(options.channel)
    if not options.is_url and not Path(options.source).is_dir():
        raise UpdateError(f"from must be an address, https://…, or a folder; received {shown(options.source)}.")
    return options if options.is_url else dataclasses.replace(options, source=os.path.abspath(options.source))


def read_text(path: Path) -> str:
    """Return a small text file without surrounding white space; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""
