"""What commands print, and how a stream is drawn in a terminal."""

import array
import contextlib
import fcntl
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecnn.cli.classify_stream import HIDE, SHOW, WHOLE_SCREEN, View
from edgecnn.cli.progress import clock
from edgecnn.device.stream.events import (
    CameraBackEvent,
    CameraLostEvent,
    CameraOpenedEvent,
    FrameDamagedEvent,
    FrameResult,
    StateChangedEvent,
)
from edgecnn.errors import DoctorError, FindingsError, ImageError, PartialFailure
from edgecnn.runtime.decision import Score
from edgecnn.runtime.engines import engines_for, is_installed


def test_a_benchmark_shows_each_step_once_or_its_percentage_in_a_terminal(capsys, monkeypatch):
    from edgecnn.cli.doctor import Progress, note_load

    steps = [
        ("timing", 0, 1200),
        ("timing", 300, 1200),
        ("timing", 301, 1200),
        ("timing", 1200, 1200),
        ("opening", 0, 5),
    ]
    shown = Progress()
    for step in steps:
        shown(*step)
    assert capsys.readouterr().err.splitlines() == ["timing (1,200)", "opening (5)"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress()
    for step in steps:
        shown(*step)
    parts = capsys.readouterr().err.replace("\033[K", "").split("\r")
    assert parts == ["", "timing 0 %", "timing 25 %", "", "opening 0 %"], "erased at the end"
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    for load, noted in ((3.0, []), (3.1, ["3.1", "6"])):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 99.0, 99.0))
        note_load()
        words = capsys.readouterr().err.split()
        assert [word for word in words if word in ("3.0", "3.1", "99.0", "6")] == noted


def test_an_epochs_line_lasts_only_once_validated(capsys):
    pytest.importorskip("rich", reason="the workstation side needs the train extra")
    from edgecnn.cli.progress import ProgressReporter

    epoch = SimpleNamespace(
        phase="qat", epoch=3, epochs=12, loss=0.5, accuracy=0.8125, images_per_s=1234.4, seconds_left=83.2, images=640,
        total_images=6400, validation_accuracy=None, int8_accuracy=None, int8_agreement=None,
    )  # fmt: skip
    with ProgressReporter() as reporter:
        reporter.training(epoch)
        (task,) = reporter.bars.tasks
        assert (task.description, task.completed, task.total, task.visible) == ("qat epoch 3/12", 640, 6400, True)
        assert capsys.readouterr().err == ""
        epoch.images, epoch.validation_accuracy = 6400, 0.75
        reporter.training(epoch)
        assert not reporter.bars.tasks[0].visible
        (line,) = capsys.readouterr().err.splitlines()
        assert "75.00%" in line
        for step, state, total in (((1234, 5000), "1,234 of 5,000", 5000), ((1234, 0), "1,234", None)):
            reporter.working("looking", *step)
            (task,) = reporter.bars.tasks
            assert (task.fields["state"], task.total, task.visible) == (state, total, True)


def test_doctor_counts_each_severity_and_if_quiet_leaves_out_only_what_is_well(capsys, monkeypatch):
    from edgecnn.cli.doctor import doctor
    from edgecnn.device import doctor as checks
    from edgecnn.device.doctor import Finding

    severities = ["ok", "warning", "ok", "note", "ok", "error", "ok", "note", "error", "error"]
    found = [(f"check{n}", Finding(one, f"result{n}")) for n, one in enumerate(severities)]
    found.append(("power", Finding("warning", "weak", means="it throttles", fix="a better supply")))
    monkeypatch.setattr(checks, "examine", lambda system: checks.Diagnosis(tuple(found)))
    for quiet, shown in ((False, [name for name, _ in found]), (True, [n for n, one in found if one.severity != "ok"])):
        with pytest.raises(DoctorError):
            doctor(None, quiet=quiet, json=False)
        *lines, last = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines[:-2]] == shown and last == "4 ok, 2 note, 2 warning, 3 error"
        assert [line.strip() for line in lines[-3:]] == [
            "warning  power          weak", "it throttles", "fix: a better supply"
        ]  # fmt: skip


def test_images_that_could_not_be_read_are_counted_among_all(capfd):
    from edgecnn.cli.classify_files import show_each, show_text, text_line

    top = [SimpleNamespace(label="cat", score=0.625), SimpleNamespace(label="dog", score=0.25)]

    def work(source):
        if source.endswith("1.jpg"):
            raise ImageError("it is cut off")
        reason = "below_threshold" if source.endswith("2.jpg") else None
        return text_line(source, SimpleNamespace(top=top, reason=reason, decision="abstain"))

    names = [str(Path(__file__).parent / name) for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda path: True)
        with pytest.raises(PartialFailure, match=r"^1 of 4 images "):
            show_each(work, names, show_text, "classified")
        show_each(work, names[2:], show_text, "classified")
    out, err = capfd.readouterr()
    assert [line.rpartition("/")[2] for line in out.splitlines()] == [
        "0.jpg: cat 62.50%, dog 25.00%", *["2.jpg: abstain", "3.jpg: cat 62.50%, dog 25.00%"] * 2
    ]  # fmt: skip
    assert err.rpartition("/")[2] == "1.jpg: it is cut off\n"


def test_fetching_a_boards_pictures_is_noted_at_each_hundred_and_ends_with_their_number(monkeypatch, capsys, tmp_path):
    from edgecnn.cli.review import fetch_from_board, located
    from edgecnn.fleet import ssh, status

    asked = []

    def fetch_kept(board, remote, folder, progress):
        asked.append((remote, folder))
        for count in range(1, 251):
            progress(count)
        return 250

    monkeypatch.setattr(ssh.Sessions, "connect", lambda self, host: contextlib.nullcontext())
    monkeypatch.setattr(status, "fetch_kept", fetch_kept)
    monkeypatch.setattr(status, "remote_folder", lambda board: "/srv/own")
    fetch_from_board("pi@door", None, tmp_path)
    assert capsys.readouterr().err.splitlines() == [
        "pi@door: 100 pictures", "pi@door: 200 pictures", f"pi@door: 250 new pictures in {tmp_path}"
    ]  # fmt: skip
    into = tmp_path / "photos"
    assert located("ssh://pi@door", into, "/srv/other") == (tmp_path / "photos-kept" / "door", "door", False)
    assert asked == [("/srv/own", tmp_path), ("/srv/other", tmp_path / "photos-kept" / "door")]
    into.mkdir()
    assert located(str(into), into, None) == (into, "photos", True) and len(asked) == 2


def test_boards_are_listed_as_in_their_file_and_those_that_did_not_answer_are_counted(monkeypatch, capfd, tmp_path):
    pytest.importorskip("tuf", reason="releases need the release extra")
    from edgecnn.cli.release import show_boards
    from edgecnn.fleet import status

    def gather(host, sessions):
        silent = host in ("gate", "barn")
        found = {
            "channel": "door",
            "age_s": 300,
            "reason": None,
            "in_use": {"name": "cats", "serial": 7, "state": "good"},
        }
        return status.Gathered(host=host, problem="no answer" * silent, status=None if silent else found)

    monkeypatch.setattr(status, "ask_status", gather)
    (tmp_path / "boards").write_text("door\ngate\nattic\nbarn\ndoor\nyard\n")
    for as_json in (False, True):
        with pytest.raises(PartialFailure, match=r"^2 of 5 boards "):
            show_boards(tmp_path / "boards", 3, as_json)
    out, hosts = capfd.readouterr().out, ["door", "gate", "attic", "barn", "yard"]
    assert [line.split()[0] for line in out.partition("\n[\n")[0].splitlines()[2:]] == hosts
    assert [board["host"] for board in json.loads(f"[{out.partition(chr(10) + '[')[2]}")] == hosts
    (tmp_path / "boards").write_text("door\nyard\n")
    show_boards(tmp_path / "boards", 3, False)


def test_times_are_minutes_and_seconds_and_from_an_hour_on_hours():
    seconds = (0, 0.6, 59.4, 59.6, 600, 3599.4, 3599.6, 7384, 360_061)
    assert list(map(clock, seconds)) == [
        "0:00", "0:01", "0:59", "1:00", "10:00", "59:59", "1:00:00", "2:03:04", "100:01:01",
    ]  # fmt: skip


def test_progress_of_stress_counts_the_time_left(monkeypatch):
    """30 images take 60 s, so the other 70 take 140 s."""
    from edgecnn.cli import stress

    class Bars:
        disable = True

    class Shown:
        bars, lines, notes = Bars, [], []

        def working(self, what, done, total):
            self.lines.append((what, done, total))

        def note(self, text):
            self.notes.append(text)

    now = [1000.0]
    monkeypatch.setattr(stress.time, "monotonic", lambda: now[0])
    progress = stress.progress_of(Shown())
    for passed, done in ((20, 10), (60, 30)):
        now[0] = 1000.0 + passed
        progress(done, 100)
    assert Shown.lines == [
        ("stress, 3:00 left", 10, 100),
        ("stress, 2:20 left", 30, 100),
    ]
    assert Shown.notes == ["stress, 2:20 left: 30 of 100 corrupted images"]


def test_a_finding_as_severe_as_the_limit_fails_and_milder_ones_pass():
    from edgecnn.cli.inspect import fail

    def report(*severities):
        return SimpleNamespace(name="pets", findings=[SimpleNamespace(severity=one) for one in severities])

    fail(report("note", "warning", "error"), "never")
    fail(report("note", "warning"), "error")
    fail(report("note", "note"), "warning")
    for severities, limit, count in (
        (("note", "warning", "error"), "note", "3 findings of severity note or worse. "),
        (("note", "warning", "error"), "warning", "2 findings of severity warning or worse. "),
        (("warning", "error", "note"), "error", "1 finding of severity error. "),
    ):
        with pytest.raises(FindingsError, match=f"^pets: {count}"):
            fail(report(*severities), limit)


UNBUFFERED = {**os.environ, "PYTHONUNBUFFERED": "1"}

needs_engine = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)


def messages(command, **options):
    """Run a command whose standard output is a socket that keeps writes separate; return the content of each write."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, subprocess.Popen(command, stdout=theirs, env=UNBUFFERED, **options) as process:
        theirs.close()
        ours.settimeout(60)
        writes = []
        while data := ours.recv(1 << 20):
            writes.append(data)
    assert process.returncode == 0
    return writes


@needs_engine
@pytest.mark.parametrize(("source", "json_"), [("synthetic:64x48?frames=20", True), ("photo.png", False)])
def test_each_line_is_a_single_write(tmp_path, root, source, json_):
    from PIL import Image

    Image.new("RGB", (40, 40), (9, 99, 199)).save(tmp_path / "photo.png")
    command = [sys.executable, "-m", "edgecnn", "classify", source, *(["--json"] if json_ else [])]
    writes = messages(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert writes
    for data in writes:
        assert data.endswith(b"\n") and data.count(b"\n") == 1
        if json_:
            json.loads(data)


@pytest.mark.parametrize("command", ["targets", "cameras"])
def test_a_document_is_a_single_write(command):
    (data,) = messages([sys.executable, "-m", "edgecnn", command, "--json"])
    json.loads(data)


INTERRUPTED = """
import signal, sys
from edgecnn.cli.options import emit_line

class Stop(Exception): pass

def stop(number, frame):
    raise Stop

signal.signal(signal.SIGUSR1, stop)
try:
    emit_line('"' + "a" * 500_000 + '"')
except Stop:
    sys.stderr.write("stopped\\n")
    sys.stderr.flush()
emit_line('"the next one"')
"""


def test_a_long_line_that_a_signal_interrupts_is_finished_before_the_next(tmp_path):
    """The line fills the pipe: the write is waiting for its reader when the signal arrives."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=UNBUFFERED
    )
    size, held = fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ), array.array("i", [0])
    while held[0] < size:
        assert process.poll() is None
        time.sleep(0.001)
        fcntl.ioctl(process.stdout, termios.FIONREAD, held)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr.readline() == b"stopped\n"
    out, _ = process.communicate(timeout=60)
    assert [len(json.loads(line)) for line in out.splitlines()] == [500_000, 12]


@needs_engine
def test_every_line_of_a_stream_that_is_ended_parses(tmp_path):
    for number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgecnn", "classify", "synthetic:64x48", "--json"],
            bufsize=0, cwd=tmp_path, env=UNBUFFERED, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        # unbuffered: communicate would miss what readline has read ahead
        lines = [process.stdout.readline() for _ in range(2 + 9 * number)]
        process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
        lines += process.communicate(timeout=60)[0].splitlines(keepends=True)
        assert process.returncode == (130 if number % 2 else 143)
        for line in lines:
            assert line.endswith(b"\n") and json.loads(line)
        assert json.loads(lines[-1])["event"] == "ended"


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
