"""The record of releases and its changes. Each change is a function from one record to the next; `store` writes it to the disk."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
