"""The emulator, played by shell scripts."""

import shlex
import threading

import pytest

from edgecnn.emulate.qemu import Emulations, Machine, find_qemu, meaning
from edgecnn.errors import EmulatorError


@pytest.fixture
def machine(tmp_path):
    return Machine(cpu="cortex-a72", root=tmp_path / "root", python="3.13", paths=(tmp_path / "a", tmp_path / "b"))


def run(machine, folder, *arguments):
    with Emulations() as emulations:
        return emulations.run(machine, arguments, folder)


def test_without_qemu_the_error_names_the_package(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=r"qemu-aarch64 is not installed.*apt-get install qemu-user"):
        run(machine, tmp_path)


def test_the_static_build_works_too(program):
    path = program("qemu-aarch64-static", "", alone=True)
    assert find_qemu() == str(path)


def test_the_boards_python_runs_in_its_own_environment(program, machine, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "mine")
    program("qemu-aarch64", 'echo "$@"; env; echo note >&2; echo last >&2; exit 18')
    ended = run(machine, tmp_path, "-m", "edgecnn")
    first, *environment = ended.out.splitlines()
    assert first == f"-cpu cortex-a72 -L {tmp_path}/root {tmp_path}/root/usr/bin/python3.13 -m edgecnn"
    assert ended.code == 18 and ended.said == "last"
    assert f"PYTHONHOME={tmp_path}/root/usr" in environment and f"HOME={tmp_path}" in environment
    assert f"PYTHONPATH={tmp_path}/a:{tmp_path}/b" in environment
    assert not any(line.startswith(("PYTHONSTARTUP", "EDGECNN")) for line in environment)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -ILL $$", "^illegal instruction on cortex-a72$"),
        ("kill -SEGV $$", "^segmentation fault on cortex-a72$"),
        ("kill -KILL $$", "^ended by SIGKILL on cortex-a72$"),
        (
            "echo \"qemu-aarch64: unable to find CPU model 'cortex-a72'\" >&2; exit 1",
            "does not support the processor cortex-a72.*qemu-user",
        ),
    ],
)
def test_how_a_process_ends(program, machine, tmp_path, script, message):
    program("qemu-aarch64", script)
    with pytest.raises(EmulatorError, match=message):
        run(machine, tmp_path)


def test_a_signal_without_a_name():
    assert meaning(200) == "signal 200"


def test_leaving_ends_running_processes(program, machine, tmp_path):
    wait, started = (shlex.quote(str(tmp_path / name)) for name in ("wait", "started"))
    program("qemu-aarch64", f"mkfifo {wait}; echo > {started}; read line < {wait}")
    (tmp_path / "started").touch()
    found = []

    def emulate(emulations):
        try:
            emulations.run(machine, [], tmp_path)
        except EmulatorError as error:
            found.append(str(error))

    with Emulations() as emulations:
        thread = threading.Thread(target=emulate, args=(emulations,))
        thread.start()
        while not (tmp_path / "started").read_text():
            assert thread.is_alive(), found
            thread.join(0.01)
    thread.join(10)
    assert found == ["ended by SIGKILL on cortex-a72"]
    with pytest.raises(EmulatorError, match="was stopped"):
        emulations.run(machine, [], tmp_path)
