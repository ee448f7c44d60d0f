"""Decide what a board does about the releases of its channel. The fetching half and the verifying half both use this."""

from collections.abc import Collection
from typing import NamedTuple

from edgecnn.device.slots.record import Slots
from edgecnn.device.update.channel import Entry, choose
from edgecnn.device.update.trust import Mark
from edgecnn.errors import UpdateError
from edgecnn.tables import Struct


class State(Struct):
    """A board's state: its id, the SHA-256s of the bundle in use and of the held ones, and its channel's mark.

    Held are bundles that went bad on this board or were rolled back by hand, whichever way they came.
    """

    board: str
    current: str | None = None
    held: tuple[str, ...] = ()
    mark: Mark | None = None


class Decision(NamedTuple):
    """The channel's release for a board and whether to put it in use; if not, the channel's mark and the reason.

    `held` is a newer one that the board would have without its own history.
    """

    entry: Entry | None
    install: bool
    mark: Mark | None
    note: str
    held: Entry | None = None


def decide(entries: Collection[Entry], state: State) -> Decision:
    """Decide what to do. Install only a release with a higher number than the mark, or a signed way back from it, and each only once.

    UpdateError if the channel's release is older than the mark's and is not signed as a way back from it.
    """
    entry, unheld = (choose(entries, state.board, held, state.current) for held in (state.held, ()))
    decision = _decide(entry, state)
    if decision.held is None and unheld != entry:
        return decision._replace(held=unheld)
    return decision


def _decide(entry: Entry | None, state: State) -> Decision:
    mark = state.mark
    if entry is None:
        return Decision(None, False, mark, "the channel has no release for this board")
    # a number is tried once; the marked release comes back only if the slots are empty
    lost = mark is not None and state.current is None and entry.sha256 == mark.sha256
    # only a thief of the key can use up the numbers; the signed way back then names the thief's release
    allowed = entry.terms.allow_older.instead_of if entry.terms.allow_older else ()
    newer = mark is None or entry.terms.number > mark.number or (mark.sha256 in allowed and mark.sha256 != entry.sha256)
    follows = mark is None or entry.may_follow(mark.serial, mark.sha256)
    if entry.sha256 == state.current:
        return Decision(entry, False, Mark.of(entry) if newer and follows else mark, "up to date")
    if mark and not newer and not lost:
        tried = f"this board has had release {mark.number}, and left it"
        return Decision(entry, False, mark, f"{tried}; the channel's release for it is {entry.terms.number}", entry)
    if mark and not follows:
        raise UpdateError(
            f"release {entry.terms.number} ({entry.name}) has serial number {entry.terms.serial}, "
            f"but this board has had {mark.serial}. To go back, release it with --allow-older-from."
        )
    return Decision(entry, True, mark, "")


def remembered(known: Collection[str], slots: Slots) -> tuple[str, ...]:
    """Return the held bundles: those of the slots, and the known ones that the slots have never had or have lost."""
    return tuple(sorted({*slots.held, *(item for item in known if item not in slots.releases)}))
