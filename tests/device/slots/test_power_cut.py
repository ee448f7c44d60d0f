"""Power cuts lose no release, and planted faults are noticed."""

import copy
import importlib.util
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest

from edgecnn.device.slots import record
from edgecnn.device.slots.record import BAD, MAX_STARTS, Disk
from edgecnn.device.slots.store import MAX_RECORD_BYTES, Store, Use, approve, choose_for_start, condemn
from edgecnn.errors import SlotError
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")

spec = importlib.util.spec_from_file_location("lossy", Path(__file__).with_name("lossy.py"))
lossy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lossy)


class Bundles:
    """Three bundles, and their releases."""

    def __init__(self, make_bundle, store):
        self.paths = [make_bundle(name, serial) for serial, name in enumerate(("old", "new", "next"), start=1)]
        self.old, self.new, self.next = (store.add(path)[0] for path in self.paths)


@pytest.fixture
def bundles(make_bundle, tmp_path):
    return Bundles(make_bundle, Store(tmp_path / "other"))


ACCEPTED = Use(accept="a test", older=True)


def good(store, path):
    store.add(path, ACCEPTED)
    choose_for_start(store)
    approve(store, store.read().current)


def with_old(store, bundles):
    good(store, bundles.paths[0])


def with_new_added(store, bundles):
    with_old(store, bundles)
    store.add(bundles.paths[1])


def with_new_pending(store, bundles):
    with_new_added(store, bundles)
    store.activate(bundles.new, ACCEPTED)


def with_new_started(store, bundles):
    with_new_pending(store, bundles)
    choose_for_start(store)


def with_new_spent(store, bundles):
    with_new_pending(store, bundles)
    for _ in range(MAX_STARTS):
        choose_for_start(store)


def with_new_lost(store, bundles):
    with_new_started(store, bundles)
    approve(store, bundles.new)
    store.path(bundles.new).unlink()


def with_both(store, bundles):
    with_new_started(store, bundles)
    approve(store, bundles.new)


def with_three(store, bundles):
    with_both(store, bundles)
    good(store, bundles.paths[2])


CHANGES = {
    "the first add": (lambda store, bundles: None, lambda store, bundles: store.add(bundles.paths[0]), {None}),
    "add": (with_old, lambda store, bundles: store.add(bundles.paths[1]), {"old"}),
    "activate": (with_new_added, lambda store, bundles: store.activate(bundles.new, ACCEPTED), {"old", "new"}),
    "a start": (with_new_pending, lambda store, bundles: choose_for_start(store), {"new", "old"}),
    "judge good": (with_new_started, lambda store, bundles: approve(store, bundles.new), {"new"}),
    "judge bad": (with_new_started, lambda store, bundles: condemn(store, bundles.new, "no"), {"new", "old"}),
    "one start too many": (with_new_spent, lambda store, bundles: choose_for_start(store), {"old"}),
    "a lost bundle": (with_new_lost, lambda store, bundles: choose_for_start(store), {"old"}),
    "a lost bundle added again": (with_new_lost, lambda store, bundles: store.add(bundles.paths[1]), {"new", "old"}),
    "add and activate": (with_old, lambda store, bundles: store.add(bundles.paths[1], ACCEPTED), {"old", "new"}),
    "rollback": (with_both, lambda store, bundles: store.change(record.rolled_back), {"new", "old"}),
    "prune": (with_three, lambda store, bundles: store.prune(1), {"next"}),
    "add after prune": (
        lambda store, bundles: (with_both(store, bundles), store.prune(1)),
        lambda store, bundles: store.add(bundles.paths[0]),
        {"new"},
    ),
}
"""Each change: the state before it, the change, and the bundles that may be in use after a power cut during it."""


def opened(top, disk=None):
    return Store(top / "edgecnn", disk)


def record_change(name, bundles, top):
    """Prepare a disk and make a change on it; return the disk before the change, in memory, and the change's steps."""
    prepare, change, _ = CHANGES[name]
    top.mkdir()
    prepare(opened(top), bundles)
    before, disk = lossy.load(top), lossy.Recorder(top)
    change(opened(top, disk), bundles)
    return before, disk.done


def flaw(top, disk, name, bundles):
    """Start after a power cut and return the fault: "" if an allowed bundle answers and the record is complete."""
    choice = choose_for_start(opened(top, disk))
    if choice.problems:
        return choice.problems[0]
    names = {None: None, bundles.old: "old", bundles.new: "new", bundles.next: "next"}
    if names[choice.release] not in CHANGES[name][2]:
        return f"{names[choice.release]} is in use"
    store = opened(top)
    lacking = [names[release] for release in store.read().releases if not store.whole(release)]
    return "" if not lacking or "lost" in name else f"{lacking} are not whole"


def is_new(left, seen):
    """Return whether a state has not been seen yet, and remember it."""
    key = json.dumps(left, default=bytes.hex, sort_keys=True)
    before = len(seen)
    seen.add(key)
    return len(seen) > before


@pytest.mark.parametrize("name", CHANGES)
def test_every_power_cut_leaves_the_old_model_or_the_new(name, tmp_path, bundles):
    before, steps = record_change(name, bundles, tmp_path / "before")
    numbers, cut, cut_again, first, second = itertools.count(), set(), set(), 0, 0
    for number, left in lossy.cuts(before, steps):
        assert number < len(steps) or left == lossy.now(before), "what is done stays done"
        first += 1
        if not is_new(left, cut):
            continue
        top = tmp_path / str(next(numbers))
        lossy.restore(left, top)
        start, disk = lossy.load(top), lossy.Recorder(top)
        assert flaw(top, disk, name, bundles) == "", (number, left)
        for _, left_again in lossy.cuts(start, disk.done):
            second += 1
            if is_new(left_again, cut_again):
                again = tmp_path / str(next(numbers))
                lossy.restore(left_again, again)
                assert flaw(again, None, name, bundles) == ""
                require_future(opened(again), bundles)
                shutil.rmtree(again)
        shutil.rmtree(top)
    print(f"{name}: {len(steps)} steps, {first} cuts, {second} cuts in the start after them")
    assert first > len(steps) >= 4 and second >= len(cut) > 1


def require_future(store, bundles):
    """Check that a pending release ends good or bad, and that a new one can be added, used and kept as the only one."""
    for _ in range(MAX_STARTS + 1):
        last = choose_for_start(store)
    assert not last.pending
    release, _ = store.add(bundles.paths[2])
    store.activate(release, ACCEPTED)
    assert choose_for_start(store).release == release and store.whole(release)
    approve(store, release)
    _, slots = store.prune(1)
    assert slots.chain == (release,)
    assert {path.name for path in (store.root / "releases").iterdir()} == set(slots.releases)
    assert all(about.state != BAD for about in slots.releases.values())


@pytest.mark.parametrize("name", CHANGES)
def test_each_sync_is_needed(name, tmp_path, bundles):
    """Without any one of its syncs, the same walk finds a cut that leaves no model or undoes the change."""
    before, steps = record_change(name, bundles, tmp_path / "before")
    numbers = itertools.count()
    for left_out in lossy.syncs(copy.deepcopy(before), steps):
        after, fewer = copy.deepcopy(before), steps[:left_out] + steps[left_out + 1 :]
        for number, left in reversed(list(lossy.cuts(after, fewer))):  # late cuts lose most
            top = tmp_path / str(next(numbers))
            lossy.restore(left, top)
            if (number == len(fewer) and left != lossy.now(after)) or flaw(top, None, name, bundles):
                break
        else:
            pytest.fail(f"nothing is lost without {steps[left_out]}")


SHA = "f" * 64


@pytest.fixture
def release(store, make_bundle):
    return store.add(make_bundle("cats"))[0]


@pytest.fixture
def victim(tmp_path):
    """A folder of root's with a file that only root can read; it must stay unchanged."""
    folder = tmp_path / "victim"
    folder.mkdir(0o700)
    (folder / "secret").write_text("of root")
    (folder / "secret").chmod(0o600)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["secret"]
    assert (folder / "secret").read_text() == "of root" and (folder / "secret").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_file_is_written_into(store, release, victim, make_bundle, link):
    link(victim / "secret", store.root / ".current.new")
    other = store.path(store.add(make_bundle("dogs"))[0])
    other.unlink()
    link(victim / "secret", other)
    link(victim / "secret", other.with_name(".model.edgecnn.new"))
    store.add(make_bundle("dogs"))
    assert other.read_bytes() == make_bundle("dogs").read_bytes() and not other.is_symlink()
    link(victim / "secret", store.root / ".current.new")
    assert store.activate(release)[1].current == release


def test_no_folder_is_followed(store, release, victim, make_bundle):
    folder = store.root / "releases"
    for name in (SHA, "x"):
        (folder / name).symlink_to(victim)
    with pytest.raises(SlotError, match=f"{SHA} is a link"):
        store.prune(1)
    (folder / SHA).unlink()
    assert store.prune(1)[0] == [], "x is not a release"
    shutil.rmtree(folder)
    folder.symlink_to(victim)
    for change in (lambda: store.prune(1), lambda: store.add(make_bundle("dogs"))):
        with pytest.raises(SlotError, match="releases is a link"):
            change()
    assert not store.whole(release)


def test_a_folder_that_becomes_a_link_at_the_last_moment(store, victim, make_bundle):
    class Raced(Disk):
        def write(self, path, data):
            if path.parent != self.root:
                path.parent.rmdir()
                path.parent.symlink_to(victim)
            super().write(path, data)

    with pytest.raises(SlotError, match="is a link"):
        Store(store.root, Raced(store.root)).add(make_bundle("cats"))


def test_only_regular_files_are_read(store, release, victim):
    bundle, record = store.path(release), store.root / "current"
    bundle.unlink()
    os.mkfifo(bundle)
    with pytest.raises(SlotError, match=release[:12]):
        store.activate(release)
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(SlotError, match="current is a link or"):
        store.read()
    record.unlink()
    record.symlink_to(victim / "secret")
    with pytest.raises(SlotError, match="current is a link or"):
        store.read()


def test_a_hostile_record(store, release):
    about = {"name": "a", "serial": 0, "state": "good"}
    for content, why in (
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({"chain": ["../../etc"], "releases": {"../../etc": about}}), "'../../etc' is not a SHA-256"),
        (json.dumps({"releases": {SHA: {**about, "name": "\ud800"}}}), "surrogates not allowed"),
        (" " * MAX_RECORD_BYTES + "{}", "has more than"),
    ):
        (store.root / "current").write_text(content)
        with pytest.raises(SlotError, match=why):
            store.read()
    (store.root / "current").write_text("{}".rjust(MAX_RECORD_BYTES))
    assert store.read().chain == (), "the longest that is read"
