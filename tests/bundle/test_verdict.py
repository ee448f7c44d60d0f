"""What a bundle says of the model that it replaces, which anybody may have written."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecnn.bundle.verdict import AGAINST, NOT_SHOWN, REFUSED, bad_reason, objection, verdict_of

OLD, OLDER, OTHER, MODEL = (digit * 64 for digit in "abcd")
GOOD = {
    "verdict": "passed",
    "why": "1 point better",
    "old": {"name": "door-1", "sha256": OLD},
    "new": {"model_sha256": MODEL},
    "earlier": [OLDER],
}


def bundle(against):
    files = (
        {} if against is None else {AGAINST: against if isinstance(against, bytes) else json.dumps(against).encode()}
    )
    manifest = SimpleNamespace(name="door", files={"models/float32.tflite": OTHER, "models/int8.tflite": MODEL})
    return SimpleNamespace(files=files, manifest=manifest)


@pytest.mark.parametrize("word", ["passed", "refused", "not shown"])
def test_a_verdict_is_given_with_the_old_models_name_and_without_control_characters(word):
    found = verdict_of(bundle(GOOD | {"verdict": word, "why": "1 point\x1b[2J"}))
    assert found[:2] == (word, "against door-1, 1 point\\x1b[2J")
    assert found.passed == ((OLD, OLDER) if word == "passed" else ()), (
        "only who passed may replace, itself or by a chain"
    )
    assert verdict_of(bundle(None)) == ("", "", ()), "not compared"


UNREADABLE = ({}, [GOOD], b"{", b"[" * 100_000, b"\xff")
CHANGED = (
    {"verdict": "PASSED"},
    {"verdict": None},
    {"why": 1},
    {"old": "a"},
    {"earlier": 1},
    {"new": {}},
    {"old": {"name": "door"}},
)


@pytest.mark.parametrize("against", [*(GOOD | wrong for wrong in CHANGED), *UNREADABLE])
def test_whatever_else_it_says_nothing_was_shown(against):
    assert verdict_of(bundle(against)) == (NOT_SHOWN, "its against.json cannot be read", ())


def test_a_verdict_on_a_model_that_the_bundle_does_not_contain_does_not_count():
    stale = verdict_of(bundle(GOOD | {"new": {"model_sha256": "e" * 64}}))
    assert stale.word == NOT_SHOWN and "does not contain" in stale.why and stale.passed == ()


def test_a_bundle_replaces_only_what_it_passed_against_itself_or_by_a_chain():
    files = {digest: Path(f"old files/{digest[0]}") for digest in (OLD, OLDER, OTHER)}

    def why(against, *olds):
        return objection(bundle(against), {old: files[old] for old in olds}, 7)

    assert [why(GOOD, *olds) for olds in ((), (OLD,), (OLDER,), (OLD, OLDER))] == [""] * 4
    assert why(None) == "", "the first model needs no comparison"
    for against, olds in (
        (None, (OLD,)),
        (GOOD, (OTHER,)),
        (GOOD, (OTHER, OLD)),
        (GOOD | {"earlier": []}, (OLDER, OLD)),
    ):
        last = next(old for old in reversed(olds) if against is None or old != OLD)
        text = why(against, *olds)
        assert f" {last[:12]}" in text
        words = shlex.split(text.rpartition(": ")[2])
        verify, bundled = words[: words.index("&&")], words[words.index("&&") + 1 :]
        assert verify == ["edgecnn", "verify", "RUN", "--against", str(files[last])]
        assert bundled == ["edgecnn", "bundle", "RUN", "--serial", "7", "--force"]
    for word in (REFUSED, NOT_SHOWN):
        for olds in ((), (OLD,), (OTHER,)):
            assert why(GOOD | {"verdict": word}, *olds) == f"it is {word}: against door-1, 1 point better"


def test_a_reason_is_a_line():
    assert [bool(bad_reason(text)) for text in ("the camera was moved", "x" * 1000, "x" * 1001, "a\nb", "\x1b[2J")] == [
        False, False, True, True, True,
    ]  # fmt: skip
