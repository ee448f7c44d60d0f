"""Choose the release that the service runs when it starts, and record verdicts. After a good release, there is always one to run."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from edgecnn.device.slots.record import Release, Slots, failed, proved, started
from edgecnn.device.slots.store import Store
from edgecnn.errors import OutputError, SlotError

LOST = "its bundle is missing or damaged"
UNCOUNTED = "its start cannot be counted"


class Choice(NamedTuple):
    """The release to run, the releases refused before it, and problems with the disk or the record."""

    release: str | None
    name: str
    pending: bool
    refused: Mapping[str, Release]
    problems: tuple[str, ...]


def choose(store: Store, avoid: Collection[str] = ()) -> Choice:
    """Count a start and choose its release: the one in use, or the previous one if that is spent, missing, damaged or in `avoid`.

    A pending release does not run if its start cannot be counted, since a release that crashes would then restart forever.
    """
    before = Slots()
    problems: list[str] = []
    refused: dict[str, Release] = {}

    def count(slots: Slots) -> Slots:
        nonlocal before
        before = slots
        return started(slots)

    try:
        slots = store.change(count)
        if before.current is not None and slots.current != before.current:
            refused[before.current] = slots.releases[before.current]
    except (OutputError, SlotError) as error:
        problems.append(str(error))
        try:
            slots = store.read()
        except SlotError:
            slots = Slots()
        if slots.current is not None and slots.pending:
            release = slots.current
            slots = failed(slots, release, UNCOUNTED)
            refused[release] = slots.releases[release]
    while slots.current is not None and (slots.current in avoid or not store.whole(slots.current)):
        release = slots.current
        slots = failed(slots, release, LOST)
        if release not in avoid:
            refused[release] = slots.releases[release]
            problems += condemn(store, release, LOST)
    name = slots.releases[slots.current].name if slots.current else ""
    return Choice(slots.current, name, slots.pending, refused, tuple(problems))


def approve(store: Store, release: str) -> list[str]:
    """Record that a release has proved itself; return the reason if that fails."""
    return _recorded(store, lambda slots: proved(slots, release))


def condemn(store: Store, release: str, reason: str) -> list[str]:
    """Record that a release is bad, so that the previous one comes back; return the reason if that fails."""
    return _recorded(store, lambda slots: failed(slots, release, reason))


def _recorded(store: Store, transition: Callable[[Slots], Slots]) -> list[str]:
    try:
        store.change(transition)
    except (OutputError, SlotError) as error:
        return [str(error)]
    return []
