"""The record of releases and its changes, each a function from one record to the next, and the changes to the disk, one method each.

The folder may belong to the service's user while root works in it, so no path below it follows a link.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from edgecnn.errors import SlotError
from edgecnn.tables import key

SCHEMA = "edgecnn.slots/1"
PENDING, GOOD, BAD = "pending", "good", "bad"
STATES = (PENDING, GOOD, BAD)

NO_RELEASE = "no release is in use, so the service waits; put one in use, as root: edgecnn slot add BUNDLE --activate"
"""The message in the journal, `service status` and `slot list`."""

SHA256 = re.compile("[0-9a-f]{64}")  # the name of a release and its folder; nothing else can be a path there

MAX_STARTS = 3  # how many times a pending release may be started

ROLLED_BACK = "rolled back by hand"
MAX_REASON = 200  # characters kept of why a release is held: the record of all of them must stay small


@dataclass(frozen=True, kw_only=True)
class Release:
    """A bundle on this device. `serial` is 0 if it has no serial number; `reason` is why it is bad.

    `accepted` is why it was put in use without a verdict that it may replace the one before.
    """

    name: str
    serial: int = key(low=0)
    state: str = key(choices=STATES)
    reason: str = key("", left_out=True)
    accepted: str = key("", left_out=True)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """All releases, by bundle SHA-256. `chain` is the one in use, then those to fall back on; `starts` counts the pending one's starts.

    `held` is why bundles that went bad here, or were left by hand for an older one, are not put in use by an update; it outlives their
    files. `last` is the proved release that was rolled back last, to compare with if none is in use.
    """

    schema: str = key(SCHEMA, choices=(SCHEMA,))
    chain: tuple[str, ...] = ()
    starts: int = key(0, low=0)
    releases: Mapping[str, Release] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    last: str = key("", left_out=True)

    @property
    def current(self) -> str | None:
        return self.chain[0] if self.chain else None

    @property
    def pending(self) -> bool:
        """Whether the release in use has yet to prove itself."""
        return self.current is not None and self.releases[self.current].state == PENDING


def added(slots: Slots, release: str, name: str, serial: int) -> Slots:
    """Return the record with a new, pending release; a release that it already has is left unchanged."""
    new = Release(name=name, serial=serial, state=PENDING)
    return dataclasses.replace(slots, releases={release: new, **slots.releases})


def activated(slots: Slots, release: str, *, older: bool = False, accepted: str = "", signed: bool = False) -> Slots:
    """Return the record with a release in use, pending unless it has proved itself; SlotError if it is older and `older` is False.

    Going back by hand holds the releases that are left, unless a `signed` release decided it.
    """
    new = slots.releases[release]
    serial = slots.releases[slots.current].serial if slots.current else 0
    if 0 < new.serial < serial and not older:
        raise SlotError(
            f"{new.name} has serial number {new.serial}, which is older than that of the release in use, {serial}. "
            "To go back on purpose, use edgecnn slot rollback, or --older"
        )
    if slots.current == release and new.state != BAD:
        return slots
    proved = [item for item in slots.chain if item != release and slots.releases[item].state == GOOD]
    judged = new if new.state == GOOD else dataclasses.replace(new, state=PENDING, reason="")
    judged = dataclasses.replace(judged, accepted=accepted or new.accepted)
    left = slots.chain[: slots.chain.index(release) if release in slots.chain else 0 < new.serial < serial]
    held = {**slots.held, **dict.fromkeys(() if signed else left, ROLLED_BACK)}
    held.pop(release, None)
    return dataclasses.replace(
        slots, chain=(release, *proved), starts=0, releases={**slots.releases, release: judged}, held=held
    )


def after_start(slots: Slots) -> Slots:
    """Return the record after one more start, which counts for a pending release. After MAX_STARTS, the release is bad."""
    if not slots.pending or slots.current is None:
        return slots
    if slots.starts >= MAX_STARTS:
        return after_failure(slots, slots.current, f"it was started {MAX_STARTS} times and did not prove itself")
    return dataclasses.replace(slots, starts=slots.starts + 1)


def after_proof(slots: Slots, release: str) -> Slots:
    """Return the record with a release marked good, if it is the one in use."""
    return _judged(slots, release, GOOD, "") if slots.current == release else slots


def after_failure(slots: Slots, release: str, reason: str) -> Slots:
    """Return the record with a release marked bad and the previous one in use, if the release was in use."""
    if slots.current != release:
        return slots
    held = {**slots.held, release: reason[:MAX_REASON]}
    return dataclasses.replace(_judged(slots, release, BAD, reason), chain=slots.chain[1:], held=held)


def rolled_back(slots: Slots) -> Slots:
    """Return the record with the previous release in use; SlotError if none is in use."""
    if not slots.chain:
        raise SlotError(f"cannot go back: {NO_RELEASE}.")
    left, chain = slots.chain[0], slots.chain[1:]
    last = left if slots.releases[left].state == GOOD else slots.last
    return dataclasses.replace(slots, chain=chain, starts=0, held={**slots.held, left: ROLLED_BACK}, last=last)


def pruned(slots: Slots, keep: int) -> Slots:
    """Return the record without bad releases and without good ones beyond the first `keep` (at least 1) of the chain.

    A pending one at its head comes in addition: if it goes bad, there is a release to go back to.
    """
    chain = slots.chain[: keep + slots.pending]
    kept = {item: about for item, about in slots.releases.items() if item in chain or about.state == PENDING}
    return dataclasses.replace(slots, chain=chain, releases=kept)


def _judged(slots: Slots, release: str, state: str, reason: str) -> Slots:
    judged = dataclasses.replace(slots.releases[release], state=state, reason=reason)
    return dataclasses.replace(slots, starts=0, releases={**slots.releases, release: judged})


class Disk:
    """The real disk. A change survives a power cut after `sync` of its file and folder. OSError; SlotError for a link or special file."""

    def __init__(self, root: Path) -> None:
        self.root = root  # may itself be a link, made by systemd

    def make_folder(self, path: Path) -> None:
        with self._folder(path.parent) as parent:
            try:
                os.mkdir(path.name, dir_fd=parent)
            except FileExistsError:
                return
        with self._folder(path) as made:
            os.fchmod(made, 0o755)

    def write(self, path: Path, data: bytes) -> None:
        """Write a new file that everyone may read. An existing file of that name is removed, not written into."""
        with self._folder(path.parent) as folder, contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        with os.fdopen(self._open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)

    def sync(self, path: Path) -> None:
        descriptor = self._open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        with self._folder(old.parent) as folder:
            os.replace(old.name, new.name, src_dir_fd=folder, dst_dir_fd=folder)

    def remove(self, path: Path) -> None:
        with self._folder(path.parent) as folder:
            os.unlink(path.name, dir_fd=folder)

    def remove_folder(self, path: Path) -> None:
        with self._folder(path.parent) as folder:
            os.rmdir(path.name, dir_fd=folder)

    def names(self, path: Path) -> list[str]:
        with self._folder(path) as folder:
            return sorted(os.listdir(folder))

    def open(self, path: Path) -> BufferedReader:
        return os.fdopen(self._open(path, os.O_RDONLY), "rb")

    @contextlib.contextmanager
    def _folder(self, path: Path) -> Iterator[int]:
        descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, path: Path, flags: int) -> int:
        """Open a file or folder one path component at a time, so that no folder can become a link in between."""
        if self.root not in path.parents:
            return os.open(path, flags, 0o600)
        with self._folder(path.parent) as parent:
            try:
                descriptor = os.open(path.name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=parent)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                    raise _foreign(path) from None
                raise
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return descriptor
        os.close(descriptor)
        raise _foreign(path)


def _foreign(path: Path) -> SlotError:
    return SlotError(
        f"{path} is a link or a special file, which edgecnn did not make. Find out who made it, and remove it."
    )


def replace(disk: Disk, path: Path, data: bytes) -> None:
    """Write a file so that a power cut leaves either the complete old content or the complete new content."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        disk.write(fresh, data)
        disk.sync(fresh)
        disk.rename(fresh, path)
    except (OSError, SlotError):
        with contextlib.suppress(OSError, SlotError):
            disk.remove(fresh)
        raise
    disk.sync(path.parent)


def read_json(disk: Disk, path: Path, most_bytes: int, damaged: Callable[[object], Exception]) -> Any:
    """Return the content of a JSON file; `damaged` makes the error for a file that is too long or not JSON. Raises OSError or SlotError."""
    with disk.open(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise damaged(f"it has more than {most_bytes:,} bytes")
    try:
        table = json.loads(data)
        json.dumps(table, ensure_ascii=False).encode()  # a lone surrogate is not text
    except RecursionError:
        raise damaged("it is nested too deeply") from None
    except ValueError as error:
        raise damaged(error) from None
    return table
