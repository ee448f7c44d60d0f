"""The record of releases: each change from one to the next, without a disk."""

import pytest

from edgecnn.device.slots.record import (
    BAD,
    GOOD,
    MAX_REASON,
    PENDING,
    ROLLED_BACK,
    Release,
    Slots,
    activated,
    added,
    failed,
    proved,
    pruned,
    rolled_back,
    started,
)
from edgecnn.errors import SlotError
from edgecnn.tables import build, to_json

OLD, MIDDLE, NEW, NEXT = (digit * 64 for digit in "abcd")


def release(name, serial=0, state=PENDING, reason=""):
    return Release(name=name, serial=serial, state=state, reason=reason)


def record(*chain, starts=0, **states):
    """A record of the four releases, serial numbers 1 to 4, with those of `chain` used one after another."""
    names = {"old": OLD, "middle": MIDDLE, "new": NEW, "next": NEXT}
    releases = {names[name]: release(name, serial, states.get(name, GOOD)) for serial, name in enumerate(names, 1)}
    return Slots(chain=chain, starts=starts, releases=releases)


def test_what_the_file_holds():
    """A record on the disk is read by programs of other versions, and by people."""
    slots = added(Slots(), NEW, "new", 0)
    assert to_json(slots) == {
        "schema": "edgecnn.slots/1",
        "chain": [],
        "starts": 0,
        "held": {},
        "releases": {NEW: {"name": "new", "serial": 0, "state": "pending"}},
    }
    assert build(Slots, to_json(slots), SlotError) == slots
    for table in ({"starts": -1}, {"releases": {NEW: {"name": "new", "serial": -1, "state": "good"}}}):
        with pytest.raises(SlotError):
            build(Slots, table, SlotError)


def test_an_added_release_comes_first_and_a_known_one_is_left_alone():
    slots = added(Slots(releases={OLD: release("old", 7, BAD, "it crashed")}), NEW, "new", 8)
    assert list(slots.releases.items()) == [(NEW, release("new", 8)), (OLD, release("old", 7, BAD, "it crashed"))]
    assert added(slots, OLD, "renamed", 9) == slots


def test_starts_are_not_carried_over_to_the_next_release():
    slots = record(NEW, OLD, starts=2, new=PENDING, next=PENDING)
    assert started(slots).starts == 3
    slots = activated(slots, NEXT)
    assert (slots.chain, slots.starts) == ((NEXT, OLD), 0), "an unproven release is not a rollback target"
    for count in (1, 2, 3):
        slots = started(slots)
        assert (slots.current, slots.starts) == (NEXT, count)
    slots = started(slots)
    assert (slots.chain, slots.starts, slots.releases[NEXT].state) == ((OLD,), 0, BAD)
    assert "3" in slots.releases[NEXT].reason
    assert started(slots) == slots, "a good release is started as often as need be"
    assert started(record(NEW, OLD, starts=9, new=PENDING)).current == OLD, "a record that says too many"


def test_a_release_that_was_bad_is_tried_again_and_a_good_one_is_trusted():
    slots = record(MIDDLE, OLD, new=BAD)
    again = activated(slots, NEW)
    assert again.chain == (NEW, MIDDLE, OLD) and again.releases[NEW] == release("new", 3)
    assert again.pending and not activated(slots, NEXT).pending
    assert activated(slots, MIDDLE) is slots, "it is in use, and stays so"
    bad = record(MIDDLE, OLD, middle=BAD)
    assert activated(bad, MIDDLE).releases[MIDDLE].state == PENDING and activated(bad, MIDDLE).chain == (MIDDLE, OLD)
    assert activated(bad, NEW).chain == (NEW, OLD), "a bad one is no rollback target"


def test_an_older_release_is_put_in_use_only_with_an_option():
    slots = record(MIDDLE)
    with pytest.raises(SlotError):
        activated(slots, OLD)
    assert activated(slots, OLD, older=True).chain == (OLD, MIDDLE)
    same = added(slots, "e" * 64, "same", 2)
    assert activated(same, "e" * 64).current == "e" * 64, "as old is not older"
    unnumbered = added(slots, "f" * 64, "unnumbered", 0)
    assert activated(unnumbered, "f" * 64).current == "f" * 64


def test_only_the_release_in_use_proves_itself_or_fails():
    slots = record(NEW, MIDDLE, OLD, starts=2, new=PENDING)
    for other in (MIDDLE, NEXT):
        assert proved(slots, other) == failed(slots, other, "no") == slots
    good, bad = proved(slots, NEW), failed(slots, NEW, "it crashed")
    assert (good.chain, good.starts, good.releases[NEW].state) == ((NEW, MIDDLE, OLD), 0, GOOD)
    assert (bad.chain, bad.starts, bad.releases[NEW]) == ((MIDDLE, OLD), 0, release("new", 3, BAD, "it crashed"))


def test_a_manual_rollback_keeps_the_states_and_resets_the_count_of_starts():
    slots = record(NEW, OLD, starts=2, new=PENDING)
    back = rolled_back(slots)
    assert (back.chain, back.starts, back.releases) == ((OLD,), 0, slots.releases)
    assert rolled_back(back).current is None and not rolled_back(back).pending
    with pytest.raises(SlotError):
        rolled_back(rolled_back(back))


def test_what_was_left_by_hand_or_went_bad_is_held_until_it_is_used_again():
    slots = record(NEW, MIDDLE, OLD, new=PENDING)
    back = rolled_back(slots)
    assert back.held == {NEW: ROLLED_BACK}
    failing = failed(slots, NEW, "x" * 1000)
    assert failing.held == {NEW: "x" * MAX_REASON}
    assert failed(activated(back, NEW), NEW, "it crashed").held == {NEW: "it crashed"}
    assert activated(back, NEW).held == {}, "someone decided otherwise"
    assert pruned(back, 1).held == back.held and NEW not in pruned(record(MIDDLE, new=BAD), 1).releases
    good = record(NEW, MIDDLE, OLD)
    assert activated(good, OLD, older=True).held == dict.fromkeys((NEW, MIDDLE), ROLLED_BACK), "two at once"
    assert activated(record(NEW), MIDDLE, older=True).held == {NEW: ROLLED_BACK}, "not in the chain, but older"
    assert activated(good, OLD, older=True, signed=True).held == {}, "the channel's own way back"
    assert activated(good, NEXT).held == {}, "replaced by a newer one"


def test_the_last_proved_release_is_known_when_none_is_in_use():
    assert rolled_back(rolled_back(record(NEW, OLD))).last == OLD
    assert rolled_back(record(NEW, new=PENDING)).last == "", "it never proved itself"
    kept = rolled_back(activated(added(rolled_back(record(OLD)), "f" * 64, "other", 9), "f" * 64, accepted="why"))
    assert (kept.last, kept.current, kept.releases["f" * 64].accepted) == (OLD, None, "why")


def test_pruning_keeps_the_first_of_the_chain_and_untried_releases():
    slots = record(NEW, MIDDLE, OLD, next=PENDING)
    assert pruned(record(NEW, MIDDLE, OLD, new=PENDING), 1).chain == (NEW, MIDDLE), "what a pending one goes back to"
    kept = pruned(slots, 2)
    assert kept.chain == (NEW, MIDDLE) and set(kept.releases) == {NEW, MIDDLE, NEXT}
    assert set(pruned(record(NEW, OLD, next=BAD), 2).releases) == {NEW, OLD}
