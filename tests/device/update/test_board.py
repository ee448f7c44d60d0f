"""What a board does about its channel's release, and the status of the last check."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from edgecnn.boards import UPDATE_SCHEMA
from edgecnn.bundle.channel import (
    Entry,
    Terms,
    entries_of,
)
from edgecnn.device.slots.record import Release, Slots
from edgecnn.device.update import STATUS, last_check
from edgecnn.device.update.board import (
    Board,
    BoardState,
    Held,
    Mark,
    Options,
    Ticks,
    Trust,
    UpdateDecision,
    UpdateOutcome,
    decide,
    read_options,
    read_status,
    remembered,
    write_status,
)
from edgecnn.errors import UpdateError
from edgecnn.files import sha256

BOARD = sha256(b"board")[:32]


def target(number=1, serial=None, *, length=2000, digest=None, changed=None, **terms):
    """Return a release's path and its TUF target."""
    serial = number if serial is None else serial
    digest = digest or sha256(f"{serial}".encode())
    custom = {"edgecnn": {"number": number, "serial": serial, "share": 100, **terms, **(changed or {})}}
    return f"door/photos-{serial}.edgecnn", SimpleNamespace(length=length, hashes={"sha256": digest}, custom=custom)


def read(*targets):
    return entries_of(dict(targets), "door")


def test_what_a_board_does_about_its_channels_release():
    """The note gives the number that the board has had first, then the channel's."""
    one, two = sha256(b"1"), sha256(b"2")
    entries = read(target(1), target(2))

    def decided(current, number=None, serial=None, digest=None, of=entries):
        mark = number and Mark(number=number, serial=serial, sha256=digest)
        return decide(of, BoardState(board=BOARD, current=current, mark=mark))

    new = Mark(number=2, serial=2, sha256=two)
    assert decided(None, of=()) == UpdateDecision(None, False, None, "the channel has no release for this board")
    assert decided(None) == UpdateDecision(entries[1], True, None, "")
    assert decided(one, 1, 1, one) == UpdateDecision(entries[1], True, Mark.of(entries[0]), "")
    assert decided(two, 1, 1, one) == UpdateDecision(entries[1], False, new, "up to date")
    had = "this board has had release {}, and left it; the channel's release for it is 2"
    assert decided(one, 2, 2, two) == UpdateDecision(entries[1], False, new, had.format(2), entries[1]), (
        "a number is tried once"
    )
    assert decided(one, 5, 1, "f" * 64).note == had.format(5)
    assert decided(None, 2, 2, two).install, "its slots are empty"
    with pytest.raises(UpdateError, match=r"release 4 \(photos\) has serial number 1, but this board has had 3"):
        decided("e" * 64, 3, 3, "e" * 64, of=read(target(4, 1)))


def test_a_held_release_is_named_whatever_else_the_board_does():
    """The newest is held; the board stays with what it has, or takes the one between."""
    entries = read(target(1), target(2), target(3))
    one, two, three = (entry.sha256 for entry in entries)

    def decided(held, current, of=entries):
        mark = Mark(number=1, serial=1, sha256=one)
        return decide(of, BoardState(board=BOARD, current=current, held=held, mark=mark))

    assert decided((three,), one) == UpdateDecision(entries[1], True, Mark.of(entries[0]), "", entries[2])
    assert decided((two, three), one) == UpdateDecision(
        entries[0], False, Mark.of(entries[0]), "up to date", entries[2]
    )
    assert decided((two,), one) == UpdateDecision(entries[2], True, Mark.of(entries[0]), ""), (
        "an older one does not matter"
    )
    assert decided((three,), three).held is None, "it is in use"
    assert decided((one, two, three), None) == UpdateDecision(
        None, False, Mark.of(entries[0]), "the channel has no release for this board", entries[2]
    )


def test_a_held_bundle_is_remembered_until_the_slots_say_otherwise():
    about = Release(name="photos", serial=1, state="good")
    slots = Slots(releases={"a": about, "b": about}, held={"a": "it crashed", "d": "rolled back by hand"})
    assert remembered(("c", "b", "a"), slots) == ("a", "c", "d")


NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture
def at(monkeypatch):
    """Set the machine's clock."""
    return lambda moment: monkeypatch.setattr("time.time", moment.timestamp)


def test_the_age_of_the_last_good_check_is_in_seconds_and_survives_a_wrong_clock(tmp_path, at):
    def age(**changed):
        written = {
            "schema": UPDATE_SCHEMA,
            "last_check": "2026-11-28T12:00:00Z",
            "last_good": "2026-11-28T11:00:00Z",
            **changed,
        }
        (tmp_path / STATUS).write_text(json.dumps(written))
        return (last_check(tmp_path) or {"age_s": "no check"})["age_s"]

    at(NOW + timedelta(seconds=30.9))
    assert (age(), age(last_good=None), age(schema="edgecnn.update/2")) == (3630, None, "no check")
    assert age(last_good="2026-11-28T12:00:31Z") == 0
    at(datetime(1970, 1, 1, tzinfo=UTC))
    assert age() == 3600, "the check was at least then"
    (tmp_path / STATUS).unlink()
    assert last_check(tmp_path) is None


def test_a_failed_check_keeps_what_the_last_good_one_found(tmp_path, at):
    moment = [NOW]
    board = Board(prefix=tmp_path, clock=lambda: moment[0])
    options = Options(source="https://ann:secret@example.org/r", channel="door")
    terms = Terms(number=7, serial=3, share=100)
    entry = Entry(path="door/photos-3.edgecnn", sha256="a" * 64, length=5, terms=terms)
    at(NOW)
    with board.locked():
        write_status(board, options, "b" * 32, "x" * 1001)
        found = read_status(board)
        assert (found["last_good"], found["age_s"], found["release"], found["clock"]) == (None, None, None, "ok")
        assert found["reason"] == "x" * 1000 and found["last_check"] == "2026-11-28T12:00:00Z"
        later = NOW + timedelta(hours=2)
        write_status(board, options, "b" * 32, UpdateOutcome(entry=entry, now=later, behind=True))
        moment[0] = NOW + timedelta(hours=1)
        write_status(board, options, "b" * 32, "it is gone")
    found = read_status(board)
    assert found["release"] == {"name": "photos", "serial": 3, "number": 7, "sha256": "a" * 64}
    assert (found["last_good"], found["last_check"]) == ("2026-11-28T14:00:00Z", "2026-11-28T14:00:00Z"), (
        "not before it"
    )
    assert (found["clock"], found["reason"], found["channel"], found["board"]) == (
        "behind",
        "it is gone",
        "door",
        "b" * 32,
    )
    assert "secret" not in found["from"] and "example.org/r" in found["from"]
    assert (found["in_use"], found["bad"]) == (None, {})


def test_a_given_option_overrides_the_files_and_a_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stick").mkdir()
    path = tmp_path / "update.toml"
    path.write_text('from = "https://example.org/r"\nchannel = "door"\n')
    assert read_options(path, Options()) == Options(source="https://example.org/r", channel="door")
    assert read_options(path, Options(channel="gate")) == Options(source="https://example.org/r", channel="gate")
    assert read_options(path, Options(source="stick")) == Options(source=str(tmp_path / "stick"), channel="door")
    for text, missing in (('channel = "door"', "from"), ('from = "https://example.org/r"', "channel")):
        path.write_text(text)
        with pytest.raises(UpdateError, match=f"^{missing} is not set"):
            read_options(path, Options())


def test_the_time_since_the_metadata_were_verified_counts_only_this_boots_seconds():
    trust = Trust(anchor="x", root="r", timestamp="t", boot="one", up=100, passed=50)
    assert [trust.age(Ticks(*of)) for of in (("one", 160), ("one", 101), ("one", 40), ("two", 160))] == [
        109,
        50,
        50,
        50,
    ]
    same, new = Held(b"r", b"t", b"s"), Held(b"r", b"t2")
    unchanged, counted = (trust.holding(same, Ticks("one", 160), count=count) for count in (False, True))
    assert (unchanged.boot, unchanged.up, unchanged.passed, unchanged.snapshot) == ("one", 100, 50, "s")
    assert (counted.boot, counted.up, counted.passed) == ("one", 160, 109)
    restarted = trust.holding(new, Ticks("two", 7), count=True)
    assert (restarted.boot, restarted.up, restarted.passed, restarted.timestamp) == ("two", 7, 0, "t2")
