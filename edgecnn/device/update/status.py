"""A board's last check, kept in status.json: its result, and the time of the last good one. Does not need TUF."""

import contextlib
from datetime import datetime
from typing import Any

from edgecnn.device.secrets import masked
from edgecnn.device.slots.record import BAD, Slots
from edgecnn.device.update import SCHEMA, STATUS, last_check
from edgecnn.device.update.board import Board, Options
from edgecnn.device.update.channel import Entry
from edgecnn.errors import OutputError, SlotError, UpdateError
from edgecnn.tables import Struct, to_json

LONGEST = 1000  # maximum characters kept of a reason, part of which may come from the fetching half


class Good(Struct):
    """A successful check: the channel's release for this board, and the time of the check; `behind` if the clock was slow.

    `held` is a newer release that is held back on this board, and `why` the reason.
    """

    entry: Entry | None
    now: datetime
    behind: bool
    held: Entry | None = None
    why: str = ""


def write(board: Board, options: Options, identity: str, result: Good | str) -> None:
    """Write the result of a check, or the reason why it failed. Raises OutputError."""
    last = last_check(board.trust) or {}
    found = {name: last.get(name) for name in ("last_good", "release", "held_back")} | {
        "clock": last.get("clock", "ok")
    }
    if isinstance(result, Good):
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
    found |= {"schema": SCHEMA, "channel": options.channel, "from": masked(options.source), "board": identity}
    board.write(
        STATUS, found | {"last_check": f"{now:%FT%TZ}", "reason": result[:LONGEST] if isinstance(result, str) else None}
    )


def note_failure(board: Board, options: Options, reason: str) -> None:
    """Write why a check did not start, if this user is allowed to."""
    with contextlib.suppress(OutputError, UpdateError), board.locked():
        write(board, options, board.identity(), reason)


def in_short(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "serial": entry.terms.serial, "number": entry.terms.number, "sha256": entry.sha256}


def read(board: Board) -> dict[str, Any] | None:
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
