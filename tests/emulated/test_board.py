import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
