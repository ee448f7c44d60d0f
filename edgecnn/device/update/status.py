"""The last check of a board, kept in status.json: what it came to, and how long ago one was good. It needs nothing of TUF."""

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

LONGEST = 1000  # characters of a reason that are kept: some of it may come from the half that fetches


class Good(Struct):
    """A check that found nothing wrong: the channel's release for this board, and when it was; `behind` if the clock was."""

    entry: Entry | None
    now: datetime
    behind: bool


def write(board: Board, options: Options, identity: str, result: Good | str) -> None:
    """Write what a check came to: that it was good, or why not. OutputError."""
    last = last_check(board.trust) or {}
    found = {name: last.get(name) for name in ("last_good", "release")} | {"clock": last.get("clock", "ok")}
    if isinstance(result, Good):
        entry, now = result.entry, result.now
        found = {
            "last_good": f"{now:%FT%TZ}",
            "clock": "behind" if result.behind else "ok",
            "release": entry and in_short(entry),
        }
    else:
        now = board.clock()
        if found["last_good"]:  # a clock that is behind is not before that either
            now = max(now, datetime.fromisoformat(found["last_good"]))
    found |= {"schema": SCHEMA, "channel": options.channel, "from": masked(options.source), "board": identity}
    board.write(
        STATUS, found | {"last_check": f"{now:%FT%TZ}", "reason": result[:LONGEST] if isinstance(result, str) else None}
    )


def note_failure(board: Board, options: Options, reason: str) -> None:
    """Write why a check did not begin, if this user may."""
    with contextlib.suppress(OutputError, UpdateError), board.locked():
        write(board, options, board.identity(), reason)


def in_short(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "serial": entry.terms.serial, "number": entry.terms.number, "sha256": entry.sha256}


def read(board: Board) -> dict[str, Any] | None:
    """Return the last check, with the release in use and the bad ones if this user may read the slots' record; None if there was none."""
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
