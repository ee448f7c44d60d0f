"""A board's options and the result of its last check, and how long ago its metadata were verified; none of it needs TUF."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from edgecnn.device.update import SCHEMA, STATUS, last_check, status
from edgecnn.device.update.board import Board, Options, Ticks, read_options
from edgecnn.device.update.channel import Entry, Terms
from edgecnn.device.update.trust import Held, Trust
from edgecnn.errors import UpdateError

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture
def at(monkeypatch):
    """Set the machine's clock."""
    return lambda moment: monkeypatch.setattr("time.time", moment.timestamp)


def test_the_age_of_the_last_good_check_is_in_seconds_and_survives_a_wrong_clock(tmp_path, at):
    def age(**changed):
        written = {
            "schema": SCHEMA,
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
        status.write(board, options, "b" * 32, "x" * 1001)
        found = status.read(board)
        assert (found["last_good"], found["age_s"], found["release"], found["clock"]) == (None, None, None, "ok")
        assert found["reason"] == "x" * 1000 and found["last_check"] == "2026-11-28T12:00:00Z"
        later = NOW + timedelta(hours=2)
        status.write(board, options, "b" * 32, status.Good(entry=entry, now=later, behind=True))
        moment[0] = NOW + timedelta(hours=1)
        status.write(board, options, "b" * 32, "it is gone")
    found = status.read(board)
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
