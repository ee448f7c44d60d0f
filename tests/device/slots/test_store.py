"""Releases in a folder, their record, and the default bundle."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from edgecnn.bundle.evidence import Verdict
from edgecnn.bundle.file import read_bundle
from edgecnn.device.slots import default, record
from edgecnn.device.slots.default import default_bundle
from edgecnn.device.slots.record import (
    BAD,
    GOOD,
    MAX_REASON,
    MAX_STARTS,
    PENDING,
    ROLLED_BACK,
    Disk,
    Release,
    Slots,
    activated,
    added,
    after_failure,
    after_proof,
    after_start,
    pruned,
    rolled_back,
)
from edgecnn.device.slots.store import (
    LOST,
    UNCOUNTED,
    Store,
    Use,
    about,
    about_text,
    approve,
    choose_for_start,
    class_difference,
    condemn,
    find_release,
)
from edgecnn.errors import BundleError, EngineError, OutputError, SlotError
from edgecnn.files import sha256_file
from edgecnn.runtime.default import SHIPS, shipped_bundle
from edgecnn.runtime.engines import is_installed
from edgecnn.tables import build, to_json

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")


def states(store):
    return {about.name: about.state for about in store.read().releases.values()}


@pytest.fixture
def in_use(store, make_bundle):
    """Add and activate a bundle; by default it has proved itself."""

    def in_use(name, serial=0, good=True):
        release, _ = store.add(make_bundle(name, serial), Use(accept="a test"))
        if good:
            assert choose_for_start(store).release == release
            assert approve(store, release) == []
        return release

    return in_use


def test_a_board_without_releases_runs_none(store):
    assert choose_for_start(store) == (None, "", False, {}, ())
    with pytest.raises(SlotError, match="cannot go back"):
        store.change(record.rolled_back)


def test_a_new_release_is_pending_then_good(store, make_bundle):
    release, slots = store.add(make_bundle("cats", 3))
    assert store.path(release).read_bytes() == make_bundle("cats", 3).read_bytes()
    assert slots.current is None and slots.releases[release].serial == 3
    store.activate(release[:6])
    assert states(store) == {"cats": PENDING}
    assert choose_for_start(store) == (release, "cats", True, {}, ())
    approve(store, release)
    assert states(store) == {"cats": GOOD}
    assert choose_for_start(store).pending is False


def test_a_release_that_never_proves_itself_is_rolled_back_after_its_starts(store, in_use):
    old = in_use("old")
    new = in_use("new", good=False)
    for _ in range(MAX_STARTS):
        assert choose_for_start(store)[:3] == (new, "new", True)
    choice = choose_for_start(store)
    assert choice.release == old and list(choice.refused) == [new]
    assert f"started {MAX_STARTS} times" in choice.refused[new].reason
    assert states(store) == {"old": GOOD, "new": BAD}
    assert choose_for_start(store)[:4] == (old, "old", False, {})


def test_a_condemned_release_is_rolled_back_immediately_and_may_be_tried_again(store, in_use):
    old, new = in_use("old"), in_use("new", good=False)
    choose_for_start(store)
    condemn(store, new, "the self-test failed")
    assert choose_for_start(store).release == old
    assert store.read().releases[new].reason == "the self-test failed"
    store.activate(new, Use(accept="again"))
    assert states(store)["new"] == PENDING and choose_for_start(store).pending


def test_a_release_with_other_classes_needs_an_option(store, in_use, make_bundle):
    old = in_use("old")
    new, _ = store.add(make_bundle("new", labels=("cat", "fox")))
    with pytest.raises(SlotError, match="--other-classes"):
        store.activate(new, Use(accept="a test"))
    assert store.read().current == old
    assert store.activate(new, Use(accept="a test", others=True))[1].current == new


def test_a_release_needs_a_verdict_against_the_one_in_use_or_a_reason_which_is_kept(store, in_use, make_bundle):
    old = in_use("old", 4)
    for verdict, against in (
        (None, ""),
        ("refused", old),
        ("not shown", old),
        ("surely passed", old),
        ("passed", "f" * 64),
    ):
        path = make_bundle("new", 5, verdict=verdict, old=against)
        for add in (lambda path=path: store.add(path, Use()), lambda path=path: store.activate(store.add(path)[0])):
            with pytest.raises(SlotError, match=r"^new: .*--accept REASON") as refused:
                add()
            assert ("edgecnn verify" in str(refused.value)) == (verdict in (None, "passed")), (
                "nobody compared these two"
            )
            assert ("--serial 5 " in str(refused.value)) == (verdict in (None, "passed")), (
                "one more than the serial in use"
            )
            assert store.read().current == old
    assert store.activate(find_release(store.read(), sha256_file(path)), Use(accept="a moved camera"))[
        1
    ].current == sha256_file(path)
    assert store.read().releases[sha256_file(path)].accepted == "a moved camera"
    assert store.activate(old, Use(older=True))[1].current == old, "going back needs no verdict"
    passed, _ = store.add(make_bundle("passed", 5, verdict="passed", old=old), Use(accept="needless"))
    assert store.read().current == passed and store.read().releases[passed].accepted == ""
    by_chain, _ = store.add(
        make_bundle("chained", 6, verdict="passed", old="e" * 64, earlier=["d" * 64, passed]), Use()
    )
    assert store.read().current == by_chain
    with pytest.raises(SlotError, match="control characters"):
        store.add(make_bundle("next", 7), Use(accept="a\nb"))


def test_what_is_refused_is_not_added(store, in_use, make_bundle):
    old = in_use("old", 4)
    for path in (make_bundle("new", 5), make_bundle("older", 3, verdict="passed", old=old)):
        with pytest.raises(SlotError):
            store.add(path, Use())
        assert set(store.read().releases) == {old} == {path.name for path in (store.root / "releases").iterdir()}


def test_a_rollback_to_none_does_not_make_the_next_one_the_first(store, in_use, make_bundle):
    first = in_use("first", 1)
    assert store.change(record.rolled_back).current is None
    store.prune(1)
    with pytest.raises(SlotError, match=f"compared it with {first[:12]}"):
        store.add(make_bundle("other", 2), Use())
    assert store.add(make_bundle("first", 1), Use())[1].current == first, "the same again"
    store.change(record.rolled_back)
    assert store.add(make_bundle("better", 2, verdict="passed", old=first), Use())[1].pending
    untried, _ = store.add(make_bundle("untried", 3), Use(accept="a test"))
    assert store.change(record.rolled_back).current is None, "nothing else has proved itself"
    with pytest.raises(SlotError, match=f"compared it with {first[:12]}"):
        store.activate(untried, Use())


def test_a_first_release_that_never_worked_is_no_yardstick(store, in_use, make_bundle):
    in_use("untried", good=False)
    store.change(record.rolled_back)
    assert store.add(make_bundle("first"), Use())[1].pending
    condemn(store, store.read().current, "no")
    assert store.add(make_bundle("second"), Use())[1].pending


def test_a_folder_is_made_with_its_parents(tmp_path, make_bundle):
    store = Store(tmp_path / "var" / "lib" / "edgecnn")
    release, _ = store.add(make_bundle("cats"), Use())
    assert store.whole(release) and store.read().current == release


def test_a_bundle_describes_itself_with_the_figures_of_the_model_that_runs_here(make_bundle):
    """Of 1,234 test images, with the interval from low to high; a report about other models, or of nonsense, says nothing."""
    bundle = read_bundle(make_bundle("cats"))
    model = bundle.manifest.files["models/int8.tflite"]

    def described(*rows, images=1234):
        report = {"models": [{"sha256": name, "accuracy": a, "accuracy_interval": i} for name, a, i in rows]}
        text = json.dumps({**report, "data": {"test_images": images}}).encode()
        return about(replace(bundle, files={**bundle.files, "parity.json": text}))

    found = described(("f" * 64, 0.5, [0.4, 0.6]), (model, 0.8765, [0.75, 0.9]))
    assert (found.accuracy, found.interval, found.images) == (0.8765, (0.75, 0.9), 1234)
    words = about_text(found)
    assert (words["accuracy"], words["region"]) == ("87.65% of 1,234 test images", "the whole image")
    assert described((model, 1, [1, 1])).accuracy == 1 and described((model, 0, [0, 0.1])).accuracy == 0
    assert described((model, 0.5, [0.6, 0.4])).interval is None
    for nonsense in (described(), described((model, 1.01, [0.9, 1])), described((model, -0.01, [0, 1]))):
        assert (nonsense.accuracy, nonsense.images, about_text(nonsense)["accuracy"]) == (None, 0, "unknown")
    five, six = (found._replace(labels=tuple("abcdef"[:count])) for count in (5, 6))
    assert [about_text(one)["classes"] for one in (five, six)] == ["5: a, b, c, d, e", "6: a, b, c, d, e and 1 more"]
    assert (class_difference(six, five), class_difference(five, six), class_difference(five, five)) == (
        "adds f",
        "lacks f",
        "",
    )
    assert about_text(five._replace(verdict=Verdict("refused", "it drops")))["verdict"] == "refused: it drops"


def test_the_first_release_rolls_back_to_none(store, in_use):
    release = in_use("first", good=False)
    condemn(store, release, "no")
    assert choose_for_start(store).release is None


def test_only_a_good_release_is_a_rollback_target(store, in_use):
    old = in_use("old")
    in_use("untried", good=False)
    newest = in_use("newest", good=False)
    assert store.read().chain == (newest, old)


def test_manual_rollbacks_one_after_the_other(store, in_use):
    first, second = in_use("first", 1), in_use("second", 2)
    assert store.change(record.rolled_back).current == first
    assert states(store)["second"] == GOOD
    assert store.change(record.rolled_back).current is None
    assert store.activate(second, Use(accept="a test"))[1].chain == (second,)
    assert choose_for_start(store)[:3] == (second, "second", False), "it has proved itself before"


def test_an_older_release_needs_an_option(store, in_use, make_bundle):
    in_use("five", 5)
    older, _ = store.add(make_bundle("four", 4))
    with pytest.raises(SlotError, match=r"serial number 4, .*older .*release in use, 5"):
        store.activate(older, Use(accept="a test"))
    assert store.activate(older, Use(accept="a test", older=True))[1].current == older
    assert store.add(make_bundle("unnumbered"), Use(accept="a test"))[1].pending


def test_a_bundle_added_again_keeps_its_state_and_is_repaired(store, in_use, make_bundle):
    release = in_use("cats")
    store.path(release).write_bytes(b"damaged")
    store.add(make_bundle("cats"))
    assert store.whole(release) and states(store) == {"cats": GOOD}


def test_a_bundle_that_no_engine_here_runs_is_refused(store, make_bundle, monkeypatch):
    monkeypatch.setattr("edgecnn.runtime.engines.is_installed", lambda name: name == "litert")
    with pytest.raises(EngineError, match="onnx"):
        store.add(make_bundle("other", format_="onnx"))
    assert not store.root.exists()


def test_a_file_that_is_not_a_bundle_is_refused(store, tmp_path):
    (tmp_path / "a.edgecnn").write_bytes(b"PK")
    with pytest.raises(BundleError):
        store.add(tmp_path / "a.edgecnn")


def test_a_release_is_named_by_four_or_more_digits_of_its_hash(store, in_use):
    release = in_use("cats")
    for name in ("", release[:3], f"{release[:4]}x", "release"):
        with pytest.raises(SlotError, match="no release begins with"):
            store.activate(name)
    for name in (release[:4], release[:9].upper(), release):
        assert store.activate(name)[0] == release
    one, other = ("abcd" + digit * 60 for digit in "01")
    slots = record.added(record.added(store.read(), one, "one", 1), other, "other", 2)
    assert find_release(slots, "abcd1") == other
    with pytest.raises(
        SlotError, match=f"^2 releases begin with 'abcd'; .* Known: {other[:12]}, {one[:12]}, {release[:12]}"
    ):
        find_release(slots, "abcd")


def test_prune_keeps_releases_that_may_be_needed(store, in_use, make_bundle):
    oldest, old, current = in_use("oldest"), in_use("old"), in_use("current")
    bad = in_use("bad", good=False)
    condemn(store, bad, "no")
    waiting, _ = store.add(make_bundle("waiting"))
    (store.root / "releases" / ("f" * 64)).mkdir()  # the remains of an add after a power cut
    gone, slots = store.prune(keep=2)
    assert set(gone) == {oldest, bad, "f" * 64}
    assert slots.chain == (current, old) and set(slots.releases) == {current, old, waiting}
    assert {path.name for path in (store.root / "releases").iterdir()} == {current, old, waiting}


def test_a_bundle_that_is_removed_while_in_use(store, in_use):
    """The service continues with the bundle in memory; its next start uses the previous release."""
    old, new = in_use("old"), in_use("new")
    store.path(new).unlink()
    choice = choose_for_start(store)
    assert choice.release == old and [(*choice.refused,), choice.refused[new].reason] == [(new,), LOST]
    assert states(store) == {"old": GOOD, "new": BAD}
    with pytest.raises(SlotError, match=r"missing or damaged\. Add it again"):
        store.activate(new)


def test_two_bundles_that_are_lost_at_once_and_one_before_them(store, in_use):
    first, second, third = in_use("first"), in_use("second"), in_use("third", good=False)
    for release in (second, third):
        store.path(release).unlink()
    choice = choose_for_start(store)
    assert (choice.release, choice.name, list(choice.refused)) == (first, "first", [third, second])
    assert states(store) == {"first": GOOD, "second": BAD, "third": BAD}
    assert set(store.read().held) == {second, third}


def test_a_spent_release_whose_predecessor_is_lost_makes_way_for_the_one_before(store, in_use):
    first, second, third = in_use("first"), in_use("second"), in_use("third", good=False)
    for _ in range(MAX_STARTS):
        assert choose_for_start(store).release == third
    store.path(second).write_bytes(b"damaged")
    choice = choose_for_start(store)
    assert choice.release == first and {name: about.reason for name, about in choice.refused.items()} == {
        third: f"it was started {MAX_STARTS} times and did not prove itself",
        second: LOST,
    }


class FailingDisk(Disk):
    def __init__(self, root, number):
        super().__init__(root)
        self.number = number

    def write(self, path, data):
        path.touch()
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "No space left.*Free some space"), (errno.EROFS, "Read-only file system")]
)
def test_a_full_or_a_read_only_disk(store, in_use, make_bundle, number, message):
    """Nothing new is added, a good release is served, and one whose starts cannot be counted is not tried."""
    old, new = in_use("old"), in_use("new", good=False)
    before = (store.root / "current").read_bytes()
    broken = Store(store.root, FailingDisk(store.root, number))
    with pytest.raises(OutputError, match=message):
        broken.add(make_bundle("newest"))
    with pytest.raises(OutputError, match=message):
        broken.change(record.rolled_back)
    choice = choose_for_start(broken)
    assert choice.release == old and [(*choice.refused,), choice.refused[new].reason] == [(new,), UNCOUNTED]
    assert any("cannot write" in problem for problem in choice.problems)
    assert (store.root / "current").read_bytes() == before
    assert not [path for path in store.root.rglob("*") if path.name.endswith(".new")]
    assert choose_for_start(store).release == new, "once there is room, it is tried"


def test_a_bad_release_is_not_run_again_even_with_a_full_disk(store, in_use):
    old, new = in_use("old"), in_use("new", good=False)
    choose_for_start(store)
    broken = Store(store.root, FailingDisk(store.root, errno.ENOSPC))
    assert condemn(broken, new, "no")
    choice = choose_for_start(store, avoid={new})
    assert (choice.release, choice.refused, choice.problems) == (old, {}, ()), "its own reason is known already"
    assert states(store)["new"] == PENDING, "it is not recorded as lost"


def test_a_damaged_record(store, in_use):
    in_use("old")
    whole = json.loads((store.root / "current").read_text())
    (about,) = whole["releases"].values()
    unknown = {**whole, "chain": [*whole["chain"], "f" * 64]}
    path = {**whole, "releases": {**whole["releases"], "../../etc": about}}
    large = json.dumps(whole).encode().ljust((1 << 20) + 1)
    (store.root / "current").write_bytes(large[:-1])
    assert store.read().current == whole["chain"][0], "a record of 1 MiB is read"
    tables = [json.dumps(table).encode() for table in (unknown, path)]
    for content in (b"{", b"[]", b'{"chain": ["a"]}', b'{"schema": "edgecnn.slots/2"}', b"\xff", large, *tables):
        (store.root / "current").write_bytes(content)
        with pytest.raises(SlotError, match="current"):
            store.read()
        choice = choose_for_start(store)
        assert choice.release is None and "current" in choice.problems[0]


def test_two_concurrent_changes(store, in_use):
    release = in_use("old")
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom edgecnn.device.slots.store import Store\n"
        "def slow(slots):\n print('in', flush=True)\n sys.stdin.read()\n return slots\n"
        "Store(Path(sys.argv[1])).change(slow)"
    )
    command = [sys.executable, "-c", script, str(store.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(SlotError, match="another command is changing the releases"):
            store.activate(release)
        assert choose_for_start(store).release == release, "a good release needs no change"
        other.kill()
    assert store.activate(release)[1].current == release, "a lock ends with its process"


def test_nothing_depends_on_the_clock(store, in_use, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 0.0)
    in_use("new", 2)
    assert json.loads((store.root / "current").read_text())["chain"] == list(store.read().chain)


def test_everybody_can_read_what_root_adds(store, make_bundle):
    before = os.umask(0o077)
    try:
        release, _ = store.add(make_bundle("cats"))
    finally:
        os.umask(before)
    assert store.path(release).stat().st_mode & 0o777 == 0o644
    assert (store.root / "current").stat().st_mode & 0o777 == 0o644
    assert store.path(release).parent.stat().st_mode & 0o777 == 0o755


OLD, MIDDLE, NEW, NEXT = (digit * 64 for digit in "abcd")


def release(name, serial=0, state=PENDING, reason=""):
    return Release(name=name, serial=serial, state=state, reason=reason)


def a_record(*chain, starts=0, **states):
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
    slots = a_record(NEW, OLD, starts=2, new=PENDING, next=PENDING)
    assert after_start(slots).starts == 3
    slots = activated(slots, NEXT)
    assert (slots.chain, slots.starts) == ((NEXT, OLD), 0), "an unproven release is not a rollback target"
    for count in (1, 2, 3):
        slots = after_start(slots)
        assert (slots.current, slots.starts) == (NEXT, count)
    slots = after_start(slots)
    assert (slots.chain, slots.starts, slots.releases[NEXT].state) == ((OLD,), 0, BAD)
    assert "3" in slots.releases[NEXT].reason
    assert after_start(slots) == slots, "a good release is started as often as need be"
    assert after_start(a_record(NEW, OLD, starts=9, new=PENDING)).current == OLD, "a record that says too many"


def test_a_release_that_was_bad_is_tried_again_and_a_good_one_is_trusted():
    slots = a_record(MIDDLE, OLD, new=BAD)
    again = activated(slots, NEW)
    assert again.chain == (NEW, MIDDLE, OLD) and again.releases[NEW] == release("new", 3)
    assert again.pending and not activated(slots, NEXT).pending
    assert activated(slots, MIDDLE) is slots, "it is in use, and stays so"
    bad = a_record(MIDDLE, OLD, middle=BAD)
    assert activated(bad, MIDDLE).releases[MIDDLE].state == PENDING and activated(bad, MIDDLE).chain == (MIDDLE, OLD)
    assert activated(bad, NEW).chain == (NEW, OLD), "a bad one is no rollback target"


def test_an_older_release_is_put_in_use_only_with_an_option():
    slots = a_record(MIDDLE)
    with pytest.raises(SlotError, match=r"serial number 1, .*older .*release in use, 2"):
        activated(slots, OLD)
    assert activated(slots, OLD, older=True).chain == (OLD, MIDDLE)
    same = added(slots, "e" * 64, "same", 2)
    assert activated(same, "e" * 64).current == "e" * 64, "as old is not older"
    unnumbered = added(slots, "f" * 64, "unnumbered", 0)
    assert activated(unnumbered, "f" * 64).current == "f" * 64


def test_only_the_release_in_use_proves_itself_or_fails():
    slots = a_record(NEW, MIDDLE, OLD, starts=2, new=PENDING)
    for other in (MIDDLE, NEXT):
        assert after_proof(slots, other) == after_failure(slots, other, "no") == slots
    good, bad = after_proof(slots, NEW), after_failure(slots, NEW, "it crashed")
    assert (good.chain, good.starts, good.releases[NEW].state) == ((NEW, MIDDLE, OLD), 0, GOOD)
    assert (bad.chain, bad.starts, bad.releases[NEW]) == ((MIDDLE, OLD), 0, release("new", 3, BAD, "it crashed"))


def test_a_manual_rollback_keeps_the_states_and_resets_the_count_of_starts():
    slots = a_record(NEW, OLD, starts=2, new=PENDING)
    back = rolled_back(slots)
    assert (back.chain, back.starts, back.releases) == ((OLD,), 0, slots.releases)
    assert rolled_back(back).current is None and not rolled_back(back).pending
    with pytest.raises(SlotError):
        rolled_back(rolled_back(back))


def test_what_was_left_by_hand_or_went_bad_is_held_until_it_is_used_again():
    slots = a_record(NEW, MIDDLE, OLD, new=PENDING)
    back = rolled_back(slots)
    assert back.held == {NEW: ROLLED_BACK}
    failing = after_failure(slots, NEW, "x" * 1000)
    assert failing.held == {NEW: "x" * MAX_REASON}
    assert after_failure(activated(back, NEW), NEW, "it crashed").held == {NEW: "it crashed"}
    assert activated(back, NEW).held == {}, "someone decided otherwise"
    assert pruned(back, 1).held == back.held and NEW not in pruned(a_record(MIDDLE, new=BAD), 1).releases
    good = a_record(NEW, MIDDLE, OLD)
    assert activated(good, OLD, older=True).held == dict.fromkeys((NEW, MIDDLE), ROLLED_BACK), "two at once"
    assert activated(a_record(NEW), MIDDLE, older=True).held == {NEW: ROLLED_BACK}, "not in the chain, but older"
    assert activated(good, OLD, older=True, signed=True).held == {}, "the channel's own way back"
    assert activated(good, NEXT).held == {}, "replaced by a newer one"


def test_the_last_proved_release_is_known_when_none_is_in_use():
    assert rolled_back(rolled_back(a_record(NEW, OLD))).last == OLD
    assert rolled_back(a_record(NEW, new=PENDING)).last == "", "it never proved itself"
    kept = rolled_back(activated(added(rolled_back(a_record(OLD)), "f" * 64, "other", 9), "f" * 64, accepted="why"))
    assert (kept.last, kept.current, kept.releases["f" * 64].accepted) == (OLD, None, "why")


def test_pruning_keeps_the_first_of_the_chain_and_untried_releases():
    slots = a_record(NEW, MIDDLE, OLD, next=PENDING)
    assert pruned(a_record(NEW, MIDDLE, OLD, new=PENDING), 1).chain == (NEW, MIDDLE), "what a pending one goes back to"
    kept = pruned(slots, 2)
    assert kept.chain == (NEW, MIDDLE) and set(kept.releases) == {NEW, MIDDLE, NEXT}
    assert set(pruned(a_record(NEW, OLD, next=BAD), 2).releases) == {NEW, OLD}


@pytest.fixture
def board(store, tmp_path, monkeypatch):
    """Make the test's folder the board's folder of releases; nothing is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(default, "ROOT", store.root)


@pytest.mark.usefixtures("board")
def test_classify_uses_the_release_in_use(store, root, edgecnn, tmp_path):
    release, _ = store.add(root / "models" / "digits" / "digits.edgecnn")
    Image.new("L", (16, 16), 99).save(tmp_path / "photo.png")
    assert f"({SHIPS})" in edgecnn("classify", "photo.png").err, "it is not in use yet"
    store.activate(release)
    assert f"model digits: {store.path(release)} (in use on this board)" in edgecnn("classify", "photo.png").err
    assert f"{store.path(release)} (in use on this board)" in edgecnn("selftest", "--engine", "litert").err
    assert default_bundle(shipped_bundle()).reason == "requested"
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    (tmp_path / "runs" / "latest" / "a.edgecnn").touch()
    assert default_bundle().reason == "of the last run"


@pytest.mark.usefixtures("board")
def test_a_machine_without_releases_uses_the_bundle_that_ships(monkeypatch, tmp_path):
    monkeypatch.setattr(default, "ROOT", tmp_path / "no" / "slots")
    assert default_bundle() == (shipped_bundle(), SHIPS)


@pytest.mark.usefixtures("board")
def test_a_release_that_only_root_can_read_is_mentioned(monkeypatch):
    def refuse(path):
        raise PermissionError

    monkeypatch.setattr(default, "os", SimpleNamespace(stat=refuse))
    assert default_bundle().reason == f"{SHIPS}; if a release is in use on this board, only root can read it: use sudo"
