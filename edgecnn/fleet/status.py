"""The update status of boards, gathered over ssh."""

import json
from collections.abc import Mapping
from typing import Any

from edgecnn.device.update import SCHEMA
from edgecnn.errors import first_line
from edgecnn.fleet.ssh import BoardError, Sessions, last_line
from edgecnn.tables import Struct, shown

KINDS = {"channel": str, "reason": str | None, "in_use": dict | None, "bad": dict | None, "age_s": int | None}
"""Types of the values that are shown: somebody else may have taken the board over."""

HEADINGS = ("board", "channel", "in use", "last good check", "problem")


class Gathered(Struct):
    """A board's status; without one, `problem` is the reason, otherwise ""."""

    host: str
    problem: str = ""
    status: Mapping[str, Any] | None = None


def gather(host: str, sessions: Sessions) -> Gathered:
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
        if status["schema"] != SCHEMA:
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
