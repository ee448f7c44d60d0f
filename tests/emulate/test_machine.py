"""QEMU, and a board's system files."""

import json
import shlex
import sys
import threading

import pytest

from edgecnn.emulate import machine
from edgecnn.emulate.machine import Emulations, Machine, find_qemu, meaning
from edgecnn.errors import EmulatorError, OutputError


@pytest.fixture
def qemu_machine(tmp_path):
    return Machine(cpu="cortex-a72", root=tmp_path / "root", python="3.13", paths=(tmp_path / "a", tmp_path / "b"))


def run(qemu_machine, folder, *arguments):
    with Emulations() as emulations:
        return emulations.run(qemu_machine, arguments, folder)


def test_without_qemu_the_error_names_the_package(qemu_machine, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=r"qemu-aarch64 is not installed.*apt-get install qemu-user"):
        run(qemu_machine, tmp_path)


def test_the_static_build_works_too(program):
    path = program("qemu-aarch64-static", "", alone=True)
    assert find_qemu() == str(path)


def test_the_boards_python_runs_in_its_own_environment(program, qemu_machine, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONSTARTUP", "mine")
    program("qemu-aarch64", 'echo "$@"; env; echo note >&2; echo last >&2; exit 18')
    ended = run(qemu_machine, tmp_path, "-m", "edgecnn")
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
def test_how_a_process_ends(program, qemu_machine, tmp_path, script, message):
    program("qemu-aarch64", script)
    with pytest.raises(EmulatorError, match=message):
        run(qemu_machine, tmp_path)


def test_a_signal_without_a_name():
    assert meaning(200) == "signal 200"


def test_leaving_ends_running_processes(program, qemu_machine, tmp_path):
    wait, started = (shlex.quote(str(tmp_path / name)) for name in ("wait", "started"))
    program("qemu-aarch64", f"mkfifo {wait}; echo > {started}; read line < {wait}")
    (tmp_path / "started").touch()
    found = []

    def emulate(emulations):
        try:
            emulations.run(qemu_machine, [], tmp_path)
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
        emulations.run(qemu_machine, [], tmp_path)


def maker(made):
    def make(folder):
        made.append(folder)
        (folder / "file").write_text("whole")
        return {"versions": {"a": "1"}}

    return make


def test_an_existing_sysroot_is_reused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, home = [], machine.boards_home()
    assert home == tmp_path / "edgecnn" / "boards"
    path = machine.keep(home / "root", {"release": "trixie"}, maker(made))
    assert machine.keep(home / "root", {"release": "trixie"}, maker(made)) == path
    assert machine.keep(home / "root", {"release": "bookworm"}, maker(made)) != path
    assert len(made) == 2 and (path / "file").read_text() == "whole"
    assert json.loads((path / machine.MADE).read_text()) == {"release": "trixie", "versions": {"a": "1"}}


@pytest.mark.parametrize("error", [KeyboardInterrupt, EmulatorError("no package")])
def test_an_interruption_leaves_nothing(tmp_path, error):
    def make(folder):
        (folder / "half").touch()
        raise error

    with pytest.raises((KeyboardInterrupt, EmulatorError)):
        machine.keep(tmp_path / "root", {}, make)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    path = machine.keep(tmp_path / "root", {}, maker([]))
    (path / machine.MADE).unlink()  # half of it
    left = tmp_path / f".{path.name}.abc.tmp"
    left.mkdir()
    made = []
    assert machine.keep(tmp_path / "root", {}, maker(made)) == path
    assert len(made) == 1 and not left.exists() and (path / machine.MADE).exists()


def test_two_concurrent_callers_make_it_once(tmp_path):
    made, inside, go = [], threading.Event(), threading.Event()

    def slow(folder):
        inside.set()
        assert go.wait(10)
        return maker(made)(folder)

    first = threading.Thread(target=machine.keep, args=(tmp_path / "root", {}, slow))
    second = threading.Thread(target=machine.keep, args=(tmp_path / "root", {}, maker(made)))
    first.start()
    assert inside.wait(10)
    second.start()
    go.set()
    first.join(10)
    second.join(10)
    assert len(made) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "boards").write_text("a file")
    with pytest.raises(OutputError, match="XDG_CACHE_HOME"):
        machine.keep(tmp_path / "boards" / "root", {}, maker([]))


def test_a_system_has_debians_python_and_the_wheels(tmp_path, monkeypatch):
    asked = []

    def fetch(packages, release, cache, progress):
        asked.append((packages, release))
        return [tmp_path / "tzdata_2026_all.deb", tmp_path / "libpython3.13-minimal_1%3a3.13.5-2_arm64.deb"]

    def install(wanted, platform, folder, progress):
        (folder / "engine.py").write_text("answer = 42\n")
        return {"numpy": "2.0"}

    def unpack(debs, root):
        assert debs[0].name.startswith("libpython")
        (root / "usr" / "lib" / "python3.13").mkdir(parents=True)

    monkeypatch.setattr(machine, "fetch_debs", fetch)
    monkeypatch.setattr(machine, "unpack_debs", unpack)
    monkeypatch.setattr(machine, "install_wheels", install)
    monkeypatch.setattr(machine, "host_python", lambda python: sys.executable)
    system = machine.make_system("trixie", "litert", packages=["v4l-utils"], home=tmp_path / "home")
    assert asked == [(["libpython3.13-stdlib", "libstdc++6", "python3.13-minimal", "v4l-utils"], "trixie")]
    assert system.versions == {"numpy": "2.0", "libpython3.13-minimal": "1:3.13.5-2"}
    assert list(system.site.rglob("engine.*.pyc"))
    assert system.machine("cortex-a72", [tmp_path]).paths == (tmp_path, system.site)
    assert machine.make_system("trixie", "litert", packages=["v4l-utils"], home=tmp_path / "home") == system
    assert len(asked) == 1


def test_the_hosts_python_of_a_version(program, tmp_path):
    version = ".".join(map(str, sys.version_info[:2]))
    assert machine.host_python(version) == sys.executable
    program("python9.9", "echo 9.8", alone=True)
    assert machine.host_python("9.9") is None and machine.host_python("9.7") is None
    assert machine.host_python("9.8") is None
    path = program("python9.9", "echo 9.9", alone=True)
    assert machine.host_python("9.9") == str(path)


def test_without_that_python_the_boards_own_compiles(program, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "host_python", lambda python: None)
    program("qemu-aarch64", f'echo "$@" > {shlex.quote(str(tmp_path / "log"))}')
    machine.compile_all(tmp_path / "site", tmp_path / "root", "3.13", lambda *state: None)
    said = (tmp_path / "log").read_text()
    assert said.startswith(f"-cpu max -L {tmp_path}/root {tmp_path}/root/usr/bin/python3.13 -m compileall")
    assert said.rstrip().endswith(str(tmp_path / "site"))
