"""What a board trusts, in one file: verified metadata, and the highest release from each channel.

python-tuf writes its files without fsync, so a power cut can leave them empty, and then it accepts an older repository. This file is
replaced by one rename, after fsync, so metadata and marks always match.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, NamedTuple

from edgecnn.device.slots.disk import read_json
from edgecnn.device.update.board import Board, Ticks
from edgecnn.device.update.channel import MAX_NUMBER, SHA256, Entry
from edgecnn.errors import UpdateError
from edgecnn.tables import Struct, build, key, to_json

FILE = "trusted.json"
SCHEMA = "edgecnn.trust/1"
MAX_BYTES = 1 << 23


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


class Trust(Struct):
    """`anchor` is the SHA-256 of the initial trust root; `passed` is the minimum number of seconds since the timestamp was verified."""

    schema: str = key(SCHEMA, choices=(SCHEMA,))
    anchor: str
    root: str
    timestamp: str = ""
    snapshot: str = ""
    targets: str = ""
    boot: str = ""
    up: int = 0
    passed: int = key(0, low=0)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    held_back: tuple[str, ...] = ()

    @property
    def held(self) -> Held:
        return Held(*(getattr(self, role).encode() for role in Held._fields))

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


def read(board: Board, anchor: str, root: bytes) -> Trust:
    """Return what the board trusts. A new trust root replaces the old one; the other metadata and the marks stay. Raises UpdateError."""
    path = board.trust / FILE

    def damaged(what: object) -> UpdateError:
        return UpdateError(f"{path} is damaged: {what}. Remove it; the board will then trust its root file again.")

    try:
        table = read_json(board.disk(board.trust), path, MAX_BYTES, damaged)
    except FileNotFoundError:
        return Trust(anchor=anchor, root=root.decode())
    except OSError as error:
        raise UpdateError(f"cannot read {path}: {error.strerror}.") from None
    trust = build(Trust, table, UpdateError, f"{path} is damaged")
    if not all(SHA256.fullmatch(mark.sha256) for mark in trust.marks.values()):
        raise damaged("a mark is not a SHA-256")
    return trust if trust.anchor == anchor else dataclasses.replace(trust, anchor=anchor, root=root.decode())


def keep(board: Board, before: Trust | None, after: Trust) -> Trust:
    """Write what the board trusts, if it has changed, so that it survives a power cut. Raises OutputError."""
    if after != before:
        board.write(FILE, to_json(after))
    return after
