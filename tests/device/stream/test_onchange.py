"""A user's command: one at a time, the newest state last, and the loop never waits for it."""

import shlex
import time

import pytest

from edgecnn.device.stream.events import StateChangedEvent
from edgecnn.device.stream.onchange import LIMIT_S, OnChange

SAY = "sh -c 'echo \"$EDGECNN_STATE,$EDGECNN_PREVIOUS,$EDGECNN_SCORE\" >> said'"


def change(state, previous, score):
    return StateChangedEvent(ts=0.0, source="fake", state=state, previous=previous, score=score, reason=None, seq=None)


def said(events):
    return [event.message for event in events]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def settle(command):
    """Let everything run to its end; return the failures."""
    return command.finish(20)


def test_a_state_that_no_environment_can_hold_is_a_failure_but_not_the_end(tmp_path):
    on_change = OnChange("true")
    on_change.take(change("a\0b", None, 0.5))
    assert said(on_change.poll()) == ["true: embedded null byte"]
    on_change.take(change("a", None, 0.5))
    assert on_change.poll() == []
    assert on_change.finish(5.0) == []


def test_the_state_is_in_its_environment(tmp_path):
    command = OnChange(SAY)
    command.take(change("red fox", None, 0.75))
    assert settle(command) == []
    command.take(change(None, "red fox", None))
    assert command.finish(10) == []
    command.take(change("abstain", None, 0.0))
    assert settle(command) == []
    assert (tmp_path / "said").read_text() == "red fox,,0.750000\n,red fox,\nabstain,,0.000000\n"


def test_there_is_no_shell(tmp_path):
    command = OnChange("touch 'a b' $HOME ;")
    command.take(change("cat", None, 1.0))
    settle(command)
    assert {path.name for path in tmp_path.iterdir()} == {"a b", "$HOME", ";"}


def test_while_one_runs_the_newest_state_waits(tmp_path):
    command = OnChange("sh -c 'while [ ! -e go ]; do sleep 0.01; done; echo $EDGECNN_STATE >> said'")
    command.take(change("0", None, 1.0))
    command.poll()
    for number in range(1, 100):
        command.take(change(str(number), None, 1.0))
        assert command.poll() == []
    (tmp_path / "go").touch()
    settle(command)
    assert (tmp_path / "said").read_text() == "0\n99\n"


def test_its_failure_is_reported():
    for text, why in (("sh -c 'exit 3'", "sh: exit code 3"), ("sh -c 'kill -9 $$'", "sh: ended by SIGKILL")):
        command = OnChange(text)
        command.take(change("cat", None, 1.0))
        assert said(settle(command)) == [why]


def test_a_program_that_is_gone(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = OnChange(shlex.quote(str(program)))
    program.unlink()
    command.take(change("cat", None, 1.0))
    assert said(command.poll()) == [f"{program}: No such file or directory"]


def test_a_command_that_never_ends_is_stopped(children):
    now = [0.0]
    command = OnChange("sleep 1000", clock=lambda: now[0])
    command.take(change("cat", None, 1.0))
    before = children()
    command.poll()
    now[0] = LIMIT_S - 1
    assert command.poll() == [] and len(children() - before) == 1
    now[0] = LIMIT_S
    assert said(command.poll()) == [f"sleep: still running after {LIMIT_S:.0f} s, terminated"]
    assert children() == before


def test_the_end_also_ends_its_children(children, gone, tmp_path):
    command = OnChange("sh -c 'trap \"\" TERM; sleep 1000 & echo $! > pid; touch up; wait'")
    command.take(change("cat", None, 1.0))
    before = children()
    command.poll()
    while not (tmp_path / "up").exists():
        time.sleep(0.005)
    command.take(change("dog", "cat", 1.0))
    assert command.finish(0) == [] and children() == before
    gone((tmp_path / "pid").read_text().strip())


def test_a_command_that_cannot_run():
    for text in ("", "   ", "no-such-program x", "sh '"):
        with pytest.raises(ValueError, match=r"not found|cannot be split"):
            OnChange(text)


def test_at_the_end_it_has_the_given_seconds_and_no_more(children):
    before = children()
    for text, seconds, failures in (
        ("sleep 20", 1.01, ["sleep: still running at the end, terminated"]),
        ("true", 0.99, []),
    ):
        command = OnChange(text)
        command.take(change("cat", None, 1.0))
        assert said(command.finish(seconds)) == failures and children() == before
