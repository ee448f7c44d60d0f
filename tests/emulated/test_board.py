"""An emulated board with a camera, and a deployment."""

import importlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from debian_image import build, make_disk
from machine import NEEDED_BY_DEBIAN, boot_debian, lacking
from PIL import Image

from edgecnn import __version__
from edgecnn.errors import EmulatorError


def test_it_is_an_arm64_debian_machine_with_only_the_base_install(board):
    machine = board.run(["uname", "-m", "-r"], check=True).out.split()
    assert machine[1] == "aarch64" and machine[0].endswith("-arm64")
    assert board.run(["edgecnn", "--version"], check=True).out == f"edgecnn {__version__}\n"
    script = "import importlib.util as u; print([n for n in ('tensorflow', 'onnxruntime', 'sklearn', 'cv2') if u.find_spec(n)])"
    assert board.run(["python3.13", "-c", script], check=True).out == "[]\n"


def test_the_doctor_finds_no_problem(board):
    done = board.run(["edgecnn", "doctor", "--json"], check=True)
    findings = json.loads(done.out)["findings"]
    assert [finding for finding in findings if finding["severity"] in ("error", "warning")] == []
    found = {finding["check"]: finding["result"] for finding in reversed(findings)}
    assert "aarch64" in found["architecture"]
    assert any("/dev/video0" in finding["result"] for finding in findings if finding["check"] == "cameras")
    assert found["engines"].startswith("litert") and "intact" in found["bundle"]


def test_the_shipped_bundle_proves_itself(board):
    done = board.run(["edgecnn", "selftest", "--json"], check=True, timeout=120)
    report = json.loads(done.out)
    assert report["passed"]
    rows = {row["model"]: row for row in report["rows"] if row["passed"] is not None}
    assert rows["models/int8.tflite"]["engine"] == "litert" and rows["models/int8.tflite"]["images"] == 16


def test_the_camera_is_listed(board):
    done = board.run(["edgecnn", "cameras", "--json"], check=True)
    assert "/dev/video0" in done.out and "vivid" in done.out


def test_a_script_runs_jobs_on_it_and_returns_their_exit_codes(board, root):
    command = [sys.executable, "tools/board/run.py", "--put", "LICENSE", "--", "sh", "-c", "ls; echo no >&2; exit 7"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "LICENSE\n"
    assert done.stderr.endswith("no\n")


def test_a_command_that_takes_too_long_is_killed_and_the_consoles_last_lines_are_shown(board):
    with pytest.raises(
        EmulatorError, match=r"sleep 60 was killed on the board after its limit of 1 s(.|\n)*last lines:\n."
    ):
        board.run(["sleep", "60"], timeout=1)
    assert "sleep 60" not in board.run(["ps"], check=True).out


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_no_board_is_left_running(root, board, name, code):
    command = [sys.executable, "tools/board/run.py", "--", "sleep", "300"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        for line in script.stderr:
            if "ready after" in line:
                break
        left = children(script.pid)
        assert any("qemu-system-aarch64" in text for text in left.values())
        script.send_signal(getattr(signal, name))
        assert script.wait(timeout=60) == code
    deadline = time.monotonic() + 60
    while any(alive(number) for number in left):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def children(parent):
    """Return the command lines of a process's children by process id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):  # it ended while we were looking
            continue
    return found


def alive(number):
    """Return whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def answers(line):
    """Return the fields that a frame and a file share."""
    return line["decision"], line["top"]


def scores(line):
    """Return the score of each label in a line."""
    return {item["label"]: item["score"] for item in line["top"]}


def test_pictures_from_the_camera_are_classified_like_the_same_files(feed, classifying, pictures, colours, as_files):
    seen = {}
    feed.format("RGB3")
    feed.show(pictures[0])
    with classifying("--camera") as lines:
        opened = lines.event("camera_opened")
        assert opened["source"] == "/dev/video0" and "RGB3 640x480" in opened["about"]
        for path in [*pictures, *colours]:
            seen[path] = answers(lines.frame(after=feed.show(path)))
        assert lines.signal("TERM") == 143
        assert lines.event("ended")["reason"] == "signal"
    assert len(pictures) == 20 and len({as_files[path]["decision"] for path in pictures}) >= 5
    assert seen == {path: answers(as_files[path]) for path in [*pictures, *colours]}


def test_yuyv_changes_no_label(feed, classifying, pictures, colours, as_files):
    seen = {}
    feed.format("YUYV")
    feed.show(pictures[0])
    with classifying("/dev/video0", form="YUYV") as lines:
        assert "YUYV 640x480" in lines.event("camera_opened")["about"]
        for path in pictures:
            seen[path] = lines.frame(after=feed.show(path))["decision"]
        for path in colours:
            line = lines.frame(after=feed.show(path))
            assert scores(line) == pytest.approx(scores(as_files[path]), abs=0.05)
    assert seen == {path: as_files[path]["decision"] for path in pictures}


def test_red_stays_red_and_blue_stays_blue_if_the_camera_swaps_them(feed, classifying, colours, as_files):
    feed.format("BGR3")
    feed.show(colours[0])
    with classifying("/dev/video0", form="BGR3") as lines:
        assert "BGR3 640x480" in lines.event("camera_opened")["about"]
        for path in colours:
            assert answers(lines.frame(after=feed.show(path))) == answers(as_files[path])


def test_a_region_of_the_cameras_picture_is_classified_like_the_same_region_of_files(
    board, feed, classifying, pictures, as_files
):
    region, shown = "0.3,0.2,0.45,0.6", pictures[:3]
    done = board.run(
        ["edgecnn", "classify", *shown, "--region", region, "--json", "--top-k", "10"], check=True, timeout=120
    )
    expected = {line["source"]: answers(line) for line in map(json.loads, done.out.splitlines())}
    feed.format("RGB3")
    feed.show(shown[0])
    with classifying("--camera", "--region", region) as lines:
        assert lines.event("camera_opened")["region"] == [0.3, 0.2, 0.45, 0.6]
        seen = {}
        for path in shown:
            line = lines.frame(after=feed.show(path))
            assert line["region"] == [0.3, 0.2, 0.45, 0.6]
            seen[path] = answers(line)
    assert seen == expected
    assert all(seen[path] != answers(as_files[path]) for path in shown), "the region is not the whole picture"


def test_a_captured_picture_equals_the_scene(board, feed, colours):
    feed.format("RGB3")
    feed.show(colours[0])
    command = [
        "edgecnn",
        "capture",
        "--camera",
        "--label",
        "seen",
        "--interval",
        "0.1",
        "--count",
        "1",
        "--out",
        "taken",
    ]
    board.run(command, check=True)
    (name,) = board.run(["ls", "taken/seen"], check=True).out.split()
    taken, shown, swapped = (pixels(board.get(path)) for path in (f"/root/taken/seen/{name}", *colours))
    assert np.abs(taken - shown).mean() < 2 < 10 < np.abs(taken - swapped).mean()


def pixels(encoded):
    """Return an image's RGB pixels in a type that can be subtracted."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools" / "board"))


LIMIT_S = 300
"""The longest wait for a release to become good."""

CONFIG = """Host board
    HostName 127.0.0.1
    Port {port}
    User root
    IdentityFile "{key}"
    StrictHostKeyChecking accept-new
    UserKnownHostsFile "{folder}/known"
"""
OPTIONS = "width = 320\nheight = 180\nmax_fps = 2\ngood_after = 3\n"


@pytest.fixture
def debian_board(tmp_path, ssh_config):
    """A booted board that `ssh board` reaches; skipped, with the reason, if it cannot be emulated."""
    missing = lacking(NEEDED_BY_DEBIAN)
    if missing:
        pytest.skip(missing)
    make_disk(tmp_path / "disk")
    with boot_debian(build(), tmp_path / "disk", limit_s=1500) as machine:
        ssh_config.write_text(CONFIG.format(port=machine.port, key=machine.folder / "key", folder=tmp_path))
        yield machine


def test_the_package_by_ssh_and_a_second_time(debian_board, release, edgecnn, root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools")
    package = importlib.import_module("deb").build("arm64", tmp_path / "dist")
    (tmp_path / "service.toml").write_text(OPTIONS)
    release("photos", 1)

    def deploy():
        done = edgecnn("deploy", "board", "--deb", package, "--options", "service.toml", "--json")
        assert done.code == 0, done.out + done.err
        return json.loads(done.out)

    first = deploy()
    assert first["installed"].startswith("package ") and first["status"]["in_use"]["name"] == "photos"
    (tmp_path / "boards.txt").write_text("board\n")
    deadline = time.monotonic() + LIMIT_S
    while "photos serial 1 good" not in (shown := edgecnn("release", "status", "--hosts", "boards.txt")).out:
        assert time.monotonic() < deadline, (
            shown.out + debian_board.run(["journalctl", "-u", "edgecnn", "-n", "40"]).out
        )
        time.sleep(5)
    again = deploy()
    assert (again["installed"], again["files"]) == ("", 0)
    assert again["sent_bytes"] + again["received_bytes"] < 10_000
    print(f"first {first['seconds']:.0f} s and {first['sent_bytes']:,} bytes, again {again['seconds']:.0f} s")
