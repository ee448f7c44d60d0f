"""The board to update: its files, options, id and clocks, what it trusts, what it decides, and its last check. None of this needs TUF.

The fetching half and the verifying half both decide in the same way. The last check is kept in status.json: its result, and the time of
the last good one. What the board trusts is one file: verified metadata, and the highest release from each channel.

python-tuf writes its files without fsync, so a power cut can leave them empty, and then it accepts an older repository. This file is
replaced by one rename, after fsync, so metadata and marks always match.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import time
import tomllib
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecnn.boards import TRUST, UPDATE_SCHEMA
from edgecnn.bundle.channel import MAX_NUMBER, SHA256, Entry, check_channel, choose_release, is_board_id
from edgecnn.device.slots import ROOT
from edgecnn.device.slots.record import BAD, Disk, Slots, read_json, replace
from edgecnn.device.system import masked
from edgecnn.device.update import STATUS, last_check
from edgecnn.errors import OutputError, SlotError, UpdateError
from edgecnn.files import canonical_json, folder_lock, output_errors, sha256
from edgecnn.tables import Struct, build, key, shown, to_json

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


TRUST_FILE = "trusted.json"
TRUST_SCHEMA = "edgecnn.trust/1"
MAX_TRUST_BYTES = 1 << 23


class Held(NamedTuple):
    """Metadata as signed; empty if missing."""

    root: bytes
    timestamp: bytes = b""
    snapshot: bytes = b""
    targets: bytes = b""


class Mark(Struct):
    """The highest release of a channel that has been in use here."""

    number: int = key(low=1, high=MAX_NUMBER)
    serial: int = key(low=1, high=MAX_NUMBER)
    sha256: str

    @classmethod
    def of(cls, entry: Entry) -> "Mark":
        return cls(number=entry.terms.number, serial=entry.terms.serial, sha256=entry.sha256)


class HeldText(Struct):
    """`Held` in JSON."""

    root: str
    timestamp: str = ""
    snapshot: str = ""
    targets: str = ""

    @property
    def held(self) -> Held:
        return Held(*(getattr(self, role).encode() for role in Held._fields))


class Trust(HeldText):
    """`anchor` is the SHA-256 of the initial trust root; `passed` is the minimum number of seconds since the timestamp was verified."""

    schema: str = key(TRUST_SCHEMA, choices=(TRUST_SCHEMA,))
    anchor: str
    boot: str = ""
    up: int = 0
    passed: int = key(0, low=0)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    held_back: tuple[str, ...] = ()

    def age(self, now: Ticks) -> int:
        """Return the minimum number of seconds since the timestamp was verified; time while the board was off is unknown."""
        whole = max(0, now.up - self.up - 1)  # both are truncated to seconds
        return self.passed + (whole if now.boot == self.boot else 0)

    def holding(self, held: Held, now: Ticks, *, count: bool) -> "Trust":
        """Return a copy with new metadata. A new timestamp restarts the count of seconds; otherwise it continues if `count`."""
        clocks: dict[str, Any] = {"boot": now.boot, "up": now.up, "passed": self.age(now)} if count else {}
        if held.timestamp != self.held.timestamp:
            clocks = {"boot": now.boot, "up": now.up, "passed": 0}
        texts: dict[str, Any] = {role: data.decode() for role, data in held._asdict().items()}
        return dataclasses.replace(self, **texts, **clocks)


def read_trust(board: Board, anchor: str, root: bytes) -> Trust:
    """Return what the board trusts. A new trust root replaces the old one; the other metadata and the marks stay. Raises UpdateError."""
    path = board.trust / TRUST_FILE

    def damaged(what: object) -> UpdateError:
        return UpdateError(f"{path} is damaged: {what}. Remove it; the board will then trust its root file again.")

    try:
        table = read_json(board.disk(board.trust), path, MAX_TRUST_BYTES, damaged)
    except FileNotFoundError:
        return Trust(anchor=anchor, root=root.decode())
    except OSError as error:
        raise UpdateError(f"cannot read {path}: {error.strerror}.") from None
    trust = build(Trust, table, UpdateError, f"{path} is damaged")
    if not all(SHA256.fullmatch(mark.sha256) for mark in trust.marks.values()):
        raise damaged("a mark is not a SHA-256")
    return trust if trust.anchor == anchor else dataclasses.replace(trust, anchor=anchor, root=root.decode())


def keep_trust(board: Board, before: Trust | None, after: Trust) -> Trust:
    """Write what the board trusts, if it has changed, so that it survives a power cut. Raises OutputError."""
    if after != before:
        board.write(TRUST_FILE, to_json(after))
    return after


class BoardState(Struct):
    """A board's state: its id, the SHA-256s of the bundle in use and of the held ones, and its channel's mark.

    Held are bundles that went bad on this board or were rolled back by hand, whichever way they came.
    """

    board: str
    current: str | None = None
    held: tuple[str, ...] = ()
    mark: Mark | None = None


class UpdateDecision(NamedTuple):
    """The channel's release for a board and whether to put it in use; if not, the channel's mark and the reason.

    `held` is a newer one that the board would have without its own history.
    """

    entry: Entry | None
    install: bool
    mark: Mark | None
    note: str
    held: Entry | None = None


def decide(entries: Collection[Entry], state: BoardState) -> UpdateDecision:
    """Decide what to do. Install only a release with a higher number than the mark, or a signed way back from it, and each only once.

    UpdateError if the channel's release is older than the mark's and is not signed as a way back from it.
    """
    entry, unheld = (choose_release(entries, state.board, held, state.current) for held in (state.held, ()))
    decision = _decide(entry, state)
    if decision.held is None and unheld != entry:
        return decision._replace(held=unheld)
    return decision


def _decide(entry: Entry | None, state: BoardState) -> UpdateDecision:
    mark = state.mark
    if entry is None:
        return UpdateDecision(None, False, mark, "the channel has no release for this board")
    # a number is tried once; the marked release comes back only if the slots are empty
    lost = mark is not None and state.current is None and entry.sha256 == mark.sha256
    # only a thief of the key can use up the numbers; the signed way back then names the thief's release
    allowed = entry.terms.allow_older.instead_of if entry.terms.allow_older else ()
    newer = mark is None or entry.terms.number > mark.number or (mark.sha256 in allowed and mark.sha256 != entry.sha256)
    follows = mark is None or entry.may_follow(mark.serial, mark.sha256)
    if entry.sha256 == state.current:
        return UpdateDecision(entry, False, Mark.of(entry) if newer and follows else mark, "up to date")
    if mark and not newer and not lost:
        tried = f"this board has had release {mark.number}, and left it"
        return UpdateDecision(
            entry, False, mark, f"{tried}; the channel's release for it is {entry.terms.number}", entry
        )
    if mark and not follows:
        raise UpdateError(
            f"release {entry.terms.number} ({entry.name}) has serial number {entry.terms.serial}, "
            f"but this board has had {mark.serial}. To go back, release it with --allow-older-from."
        )
    return UpdateDecision(entry, True, mark, "")


def remembered(known: Collection[str], slots: Slots) -> tuple[str, ...]:
    """Return the held bundles: those of the slots, and the known ones that the slots have never had or have lost."""
    return tuple(sorted({*slots.held, *(item for item in known if item not in slots.releases)}))


LONGEST_REASON = 1000  # maximum characters kept of a reason, part of which may come from the fetching half


class UpdateOutcome(Struct):
    """The outcome of a good check: the channel's release for this board, whether it has just been put in use, and a sentence.

    `user` fetched it; "" if nothing was fetched. `now` is the time of the check; `behind` if the clock was slow. `held` is a newer release
    that this board does not put in use, and `why` the reason.
    """

    entry: Entry | None
    now: datetime
    behind: bool
    installed: bool = False
    note: str = ""
    user: str = ""
    held: Entry | None = None
    why: str = ""


def write_status(board: Board, options: Options, identity: str, result: UpdateOutcome | str) -> None:
    """Write the result of a check, or the reason why it failed. Raises OutputError."""
    last = last_check(board.trust) or {}
    found = {name: last.get(name) for name in ("last_good", "release", "held_back")} | {
        "clock": last.get("clock", "ok")
    }
    if isinstance(result, UpdateOutcome):
        entry, now = result.entry, result.now
        found = {
            "last_good": f"{now:%FT%TZ}",
            "clock": "behind" if result.behind else "ok",
            "release": entry and in_short(entry),
            "held_back": result.held and {**in_short(result.held), "reason": result.why},
        }
    else:
        now = board.clock()
        if found["last_good"]:  # even a clock that is behind cannot be before that
            now = max(now, datetime.fromisoformat(found["last_good"]))
    found |= {"schema": UPDATE_SCHEMA, "channel": options.channel, "from": masked(options.source), "board": identity}
    board.write(
        STATUS,
        found | {"last_check": f"{now:%FT%TZ}", "reason": result[:LONGEST_REASON] if isinstance(result, str) else None},
    )


def note_failure(board: Board, options: Options, reason: str) -> None:
    """Write why a check did not start, if this user is allowed to."""
    with contextlib.suppress(OutputError, UpdateError), board.locked():
        write_status(board, options, board.identity(), reason)


def in_short(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "serial": entry.terms.serial, "number": entry.terms.number, "sha256": entry.sha256}


def read_status(board: Board) -> dict[str, Any] | None:
    """Return the last check, or None, with the release in use and the bad ones if this user may read the slots' record."""
    found = last_check(board.trust)
    if found is None:
        return None
    try:
        slots = board.slots().read()
    except SlotError:
        slots = Slots()
    current = slots.current
    in_use = {"sha256": current, **to_json(slots.releases[current])} if current else None
    bad = {name: release.reason for name, release in slots.releases.items() if release.state == BAD}
    return {**found, "in_use": in_use, "bad": bad}
