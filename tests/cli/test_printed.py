"""More lines that commands print: their counts, shares and names are those of results written by hand."""

import contextlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgecnn.errors import DoctorError, ImageError, PartialFailure


def test_training_by_folds_ends_with_the_share_of_all_images_that_is_right():
    """90 % of 300 images and 50 % of 100 are 80 % of 400."""
    from edgecnn.cli.train import result_text

    run = SimpleNamespace(path=Path("runs/pets"))
    folds = [SimpleNamespace(images=300, int8_accuracy=0.9), SimpleNamespace(images=100, int8_accuracy=0.5)]
    int8 = SimpleNamespace(method="qat", epoch=0)
    info = SimpleNamespace(int8=int8, folds=folds, validation_accuracy=0.9375)
    assert result_text(run, info, None).startswith("runs/pets: with 2 folds, int8 models classify 80.00% of 400 images")
    info.folds = ()
    assert result_text(run, info, None).endswith("int8 (quantization-aware, epoch 0): 93.75%")
    int8.method = "ptq"
    assert result_text(run, info, None).endswith("int8 (quantized after training): 93.75%")
    assert result_text(None, info, SimpleNamespace(index=2)).startswith("worker 2: ")


def test_an_update_says_which_release_is_in_use_now_or_why_none_was_put_in_use():
    from edgecnn.cli.update import described

    entry = SimpleNamespace(sha256="ab" * 32, name="cats", terms=SimpleNamespace(serial=12, number=7))
    release = "abababababab cats serial 12, release 7"
    for installed, given, expected in (
        (True, entry, f"in use: {release}"),
        (False, entry, f"nothing new: {release}"),
        (False, None, "nothing new"),
    ):
        outcome = SimpleNamespace(entry=given, installed=installed, note="nothing new", user="")
        assert described(outcome) == expected


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


def test_an_epochs_line_has_each_figure_behind_its_name_and_lasts_only_once_validated(capsys):
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
        line = "qat epoch 3/12  loss 0.5000  accuracy 81.25%  1,234 images/s  1:23 left  validation 75.00%"
        epoch.images, epoch.validation_accuracy = 6400, 0.75
        reporter.training(epoch)
        assert not reporter.bars.tasks[0].visible
        epoch.int8_accuracy, epoch.int8_agreement = 0.0, 0.9375
        reporter.training(epoch)
        assert capsys.readouterr().err.splitlines() == [line, f"{line}  int8 0.00%, 93.75% as float"]
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


def test_an_inspections_first_line_counts_images_classes_and_splits_and_findings_follow(capfd):
    pytest.importorskip("jinja2", reason="the workstation side needs the train extra")
    pytest.importorskip("scipy", reason="the workstation side needs the train extra")
    from edgecnn.cli.inspect import print_report

    findings = [
        SimpleNamespace(severity=one, text=f"fault {one}", advice="Fix it.") for one in ("error", "warning", "warning")
    ]
    report = SimpleNamespace(
        name="pets", images=1234, classes=("cat", "dog"), splits={"train": 1000, "validation": 0, "test": 234},
        findings=findings,
    )  # fmt: skip
    print_report(report)
    assert capfd.readouterr().out.splitlines() == [
        "pets: 1,234 images in 2 classes (1,000 train, 234 test): 1 error, 2 warnings",
        "error    fault error. Fix it.", *["warning  fault warning. Fix it."] * 2,
    ]  # fmt: skip


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
    assert located("ssh://pi@door", into, "/srv/other") == (tmp_path / "photos-kept" / "door", "door")
    assert asked == [("/srv/own", tmp_path), ("/srv/other", tmp_path / "photos-kept" / "door")]
    into.mkdir()
    assert located(str(into), into, None) == (into, "photos") and len(asked) == 2


def test_each_board_is_listed_with_its_memory(capsys):
    from edgecnn.cli.targets import targets

    targets()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rpi-zero2w ")]
    assert " ".join(line.split()) == "rpi-zero2w Raspberry Pi Zero 2 W aarch64 cortex-a53 litert 512 MiB"


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
