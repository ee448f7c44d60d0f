"""A stream's view in a terminal."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from edgecnn.cli.view import HIDE, SHOW, WHOLE_SCREEN, View
from edgecnn.device.stream.events import (
    CameraBackEvent,
    CameraLostEvent,
    CameraOpenedEvent,
    FrameDamagedEvent,
    StateChangedEvent,
)
from edgecnn.device.stream.results import FrameResult
from edgecnn.runtime.decision import Score


class Terminal(io.StringIO):
    """A terminal that records its output, with a size and clock set by the test."""

    encoding = "utf-8"
    columns, rows, now = 60, 24, 100.0


@pytest.fixture
def terminal():
    return Terminal()


@pytest.fixture
def view(terminal):
    with View(
        terminal, model="pets", clock=lambda: terminal.now, size=lambda: (terminal.columns, terminal.rows)
    ) as one:
        yield one


def result(label="cat", score=0.5, dropped=1234):
    top = (Score(label, 0, score), Score("dog", 1, 0.25))
    latency = {"decode": 1.0, "preprocess": 2.0, "infer": 0.5}
    return FrameResult(
        seq=0, ts=0, age_ms=0, source="fake", image=b"", lead=0.25,
        top=top, decision=label, reason=None, state=label, state_since=0, latency_ms=latency,
        dropped=dropped,
    )  # fmt: skip


def event(kind, **details):
    return kind(ts=0, source="fake", **details)


def screen(text):
    """Return the visible lines after applying the escape sequences."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
            assert row >= 0
        elif part == "\x1b[J":
            lines = [*lines[:row], ""]
        elif part == WHOLE_SCREEN[:4]:
            lines, row = [""], 0
        elif not part.startswith(("\x1b", "\r")):
            lines[row] = part
    return lines


def test_the_state_bars_and_figures(view, terminal):
    view.show(event(StateChangedEvent, state="cat", previous=None, score=0.5, reason=None, seq=0))
    for _ in range(5):
        terminal.now += 0.2
        view.show(result())
    lines = screen(terminal.getvalue())
    assert lines[0] == "cat 50.00%"
    assert lines[1].startswith("cat ") and lines[1].endswith("50.00%  " + "█" * 14)
    assert lines[2].startswith("dog ") and lines[2].endswith("25.00%  " + "█" * 7)
    assert lines[3] == "2.5 frames/s  3.5 ms  1,234 dropped  model pets" and lines[4:] == [""]


def test_it_is_drawn_at_most_ten_times_per_second(view, terminal):
    for _ in range(1000):
        terminal.now += 0.001
        view.show(result())
    assert 9 <= terminal.getvalue().count("frames/s") <= 11


def test_events_stay_above(view, terminal):
    view.show(event(CameraOpenedEvent, about="a script", live=True))
    terminal.now += 1
    view.show(result())
    view.show(event(FrameDamagedEvent, message="no end", seq=1, count=3))
    lines = screen(terminal.getvalue())
    assert lines[:2] == ["camera: fake: a script", "frame damaged: no end (3 times)"] and "frames/s" in lines[5]
    view.show(event(CameraLostEvent, reason="stall", message="fake: no frame for 5.0 s."))
    lines = screen(terminal.getvalue())
    assert lines[2:4] == ["camera lost (stall): fake: no frame for 5.0 s.", "waiting for the camera"], (
        "no old result is shown as new"
    )
    view.show(event(CameraBackEvent, about="a script", after_s=2.0, attempts=1))
    assert "frames/s" in screen(terminal.getvalue())[-2]


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (10, 2), (20, 3), (33, 24)])
def test_small_terminals(view, terminal, columns, rows):
    terminal.columns, terminal.rows = columns, rows
    for _ in range(3):
        terminal.now += 1
        view.show(result())
    last = terminal.getvalue().rpartition(WHOLE_SCREEN)[2]
    lines = screen(last)
    assert max(map(len, lines)) <= max(1, columns - 1) and len(lines) <= max(2, rows)


def test_after_a_resize_the_screen_is_redrawn(view, terminal):
    view.show(result())
    terminal.columns = 40
    terminal.now += 1
    view.show(result())
    assert terminal.getvalue().count(WHOLE_SCREEN) == 1


def test_labels_that_would_move_the_cursor(view, terminal):
    view.show(result(label="\x1b[2Jcat\n"))
    assert "?[2Jcat?" in terminal.getvalue() and "\x1b[2J" not in terminal.getvalue()


def test_terminals_without_unicode(terminal):
    terminal.encoding = "ascii"
    with View(terminal, model="pets", clock=lambda: terminal.now, size=lambda: (60, 24)) as view:
        view.show(result(label="Kätzchen"))
    assert "K?tzchen" in terminal.getvalue() and "#######" in terminal.getvalue() and terminal.getvalue().isascii()


def test_the_cursor_comes_back(terminal):
    with pytest.raises(KeyboardInterrupt), View(terminal, model="pets", size=lambda: (60, 24)):
        raise KeyboardInterrupt
    assert terminal.getvalue() == HIDE + SHOW


def test_in_a_terminal_until_a_signal(root, tmp_path, spawn):
    pty = pytest.importorskip("pty", reason="there are no terminals here")
    from edgecnn.runtime.engines import engines_for, is_installed

    if not any(map(is_installed, engines_for("tflite"))):
        pytest.skip("no TFLite engine is installed")
    terminal, inner = pty.openpty()
    process = spawn(
        [sys.executable, "-m", "edgecnn", "classify", "synthetic:64x48?fps=20", "--warm-up", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "XDG_DATA_HOME": "none"},
        stdout=inner,
        stderr=subprocess.DEVNULL,
    )
    os.close(inner)
    shown = b""
    deadline = time.monotonic() + 30
    while b"frames/s" not in shown and time.monotonic() < deadline:
        shown += os.read(terminal, 4096)
    process.send_signal(signal.SIGTERM)
    while True:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait(20) == 143
    os.close(terminal)
    assert shown.startswith(HIDE.encode()) and shown.endswith(SHOW.encode())
    assert b"ended (signal)" in shown
