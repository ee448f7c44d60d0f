"""What commands show as they go, what they count, and when they fail; test_golden.py has their lines."""

import contextlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecnn.cli.progress import clock
from edgecnn.errors import DoctorError, FindingsError, ImageError, PartialFailure


def test_a_benchmark_shows_each_step_once_or_its_percentage_in_a_terminal(capsys, monkeypatch):
    from edgecnn.cli.benchmark import Progress, note_load

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
    from edgecnn.device.doctor import checks
    from edgecnn.device.doctor.finding import Finding

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
    from edgecnn.cli.classify_files import show_each, show_text

    top = [SimpleNamespace(label="cat", score=0.625), SimpleNamespace(label="dog", score=0.25)]

    def work(source):
        if source.endswith("1.jpg"):
            raise ImageError("it is cut off")
        reason = "below_threshold" if source.endswith("2.jpg") else None
        return SimpleNamespace(top=top, reason=reason, decision="abstain")

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
    from edgecnn.cli.review import fetch, located
    from edgecnn.fleet import kept, ssh

    asked = []

    def fetch_kept(board, remote, folder, progress):
        asked.append((remote, folder))
        for count in range(1, 251):
            progress(count)
        return 250

    monkeypatch.setattr(ssh.Sessions, "connect", lambda self, host: contextlib.nullcontext())
    monkeypatch.setattr(kept, "fetch_kept", fetch_kept)
    monkeypatch.setattr(kept, "remote_folder", lambda board: "/srv/own")
    fetch("pi@door", None, tmp_path)
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

    monkeypatch.setattr(status, "gather", gather)
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
