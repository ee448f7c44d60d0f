"""The table of boards: what is in use, how long ago the last good check was, and what is wrong."""

import json

import pytest

from edgecnn.device.update import SCHEMA
from edgecnn.fleet.ssh import BoardError
from edgecnn.fleet.status import HEADINGS, Gathered, age, read_status, row


def test_the_age_of_a_check_changes_its_unit_at_twice_the_unit():
    ages = [None, 0, 119, 120, 7199, 7200, 172_799, 172_800, 1_000_000]
    assert [age(seconds) for seconds in ages] == [
        "never", "0 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "47 h ago", "2 d ago", "11 d ago",
    ]  # fmt: skip


def test_a_board_is_a_row():
    status = {
        "schema": SCHEMA, "channel": "door", "age_s": 300, "reason": "the server is gone",
        "in_use": {"name": "cats", "serial": 7, "state": "good"}, "bad": {"ab" * 32: "it crashed"},
        "held_back": {"name": "dogs", "serial": 8, "reason": "rolled back by hand"},
    }  # fmt: skip
    assert row(Gathered(host="pi@a", status=read_status(json.dumps(status)))) == (
        "pi@a", "door", "cats serial 7 good", "5 min ago", "the server is gone; dogs serial 8 is held back: rolled back by hand; "
        "abababababab is bad: it crashed",
    )  # fmt: skip
    fresh = {"schema": SCHEMA, "channel": "door", "age_s": 0, "reason": None, "in_use": None, "bad": {}}
    assert row(Gathered(host="b", status=fresh)) == ("b", "door", "no release", "0 s ago", "-")
    lost = row(Gathered(host="c", problem="no answer"))
    assert lost == ("c", "-", "-", "-", "no answer") and len(lost) == len(HEADINGS)
    for text in ("null", "{}", '{"schema": "edgecnn.other/1"}', "["):
        with pytest.raises(BoardError):
            read_status(text)
