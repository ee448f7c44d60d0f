"""What a bundle says of the model that it replaces, which anybody may have written."""

import json
from types import SimpleNamespace

import pytest

from edgecnn.bundle.verdict import AGAINST, NOT_SHOWN, verdict_of

GOOD = {"verdict": "passed", "why": "1 point better", "old": {"name": "door-1"}}


def verdict(against):
    return verdict_of(
        SimpleNamespace(files={AGAINST: against if isinstance(against, bytes) else json.dumps(against).encode()})
    )


@pytest.mark.parametrize("word", ["passed", "refused", "not shown"])
def test_a_verdict_is_given_with_the_old_models_name_and_without_control_characters(word):
    assert verdict(GOOD | {"verdict": word, "why": "1 point\x1b[2J"}) == (word, "against door-1, 1 point\\x1b[2J")
    assert verdict_of(SimpleNamespace(files={})) == ("", ""), "not compared"


UNREADABLE = ({}, [GOOD], b"{", b"[" * 100_000, b"\xff")


@pytest.mark.parametrize(
    "against",
    [*(GOOD | wrong for wrong in ({"verdict": "PASSED"}, {"verdict": None}, {"why": 1}, {"old": "a"})), *UNREADABLE],
)
def test_whatever_else_it_says_nothing_was_shown(against):
    assert verdict(against)[0] == NOT_SHOWN
