"""A board's files: made once, completely or not at all."""

import json
import shlex
import sys
import threading

import pytest

from edgecnn.emulate import debian, sysroot, wheels
from edgecnn.errors import EmulatorError, OutputError


def maker(made):
    def make(folder):
        made.append(folder)
        (folder / "file").write_text("whole")
        return {"versions": {"a": "1"}}

    return make


def test_an_existing_sysroot_is_reused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, home = [], sysroot.boards_home()
    assert home == tmp_path / "edgecnn" / "boards"
    path = sysroot.keep(home / "root", {"release": "trixie"}, maker(made))
    assert sysroot.keep(home / "root", {"release": "trixie"}, maker(made)) == path
    assert sysroot.keep(home / "root", {"release": "bookworm"}, maker(made)) != path
    assert len(made) == 2 and (path / "file").read_text() == "whole"
    assert json.loads((path / sysroot.MADE).read_text()) == {"release": "trixie", "versions": {"a": "1"}}


@pytest.mark.parametrize("error", [KeyboardInterrupt, EmulatorError("no package")])
def test_an_interruption_leaves_nothing(tmp_path, error):
    def make(folder):
        (folder / "half").touch()
        raise error

    with pytest.raises((KeyboardInterrupt, EmulatorError)):
        sysroot.keep(tmp_path / "root", {}, make)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    path = sysroot.keep(tmp_path / "root", {}, maker([]))
    (path / sysroot.MADE).unlink()  # half of it
    left = tmp_path / f".{path.name}.abc.tmp"
    left.mkdir()
    made = []
    assert sysroot.keep(tmp_path / "root", {}, maker(made)) == path
    assert len(made) == 1 and not left.exists() and (path / sysroot.MADE).exists()


def test_two_concurrent_callers_make_it_once(tmp_path):
    made, inside, go = [], threading.Event(), threading.Event()

    def slow(folder):
        inside.set()
        assert go.wait(10)
        return maker(made)(folder)

    first = threading.Thread(target=sysroot.keep, args=(tmp_path / "root", {}, slow))
    second = threading.Thread(target=sysroot.keep, args=(tmp_path / "root", {}, maker(made)))
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
        sysroot.keep(tmp_path / "boards" / "root", {}, maker([]))


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

    monkeypatch.setattr(debian, "fetch", fetch)
    monkeypatch.setattr(debian, "unpack", unpack)
    monkeypatch.setattr(wheels, "install", install)
    monkeypatch.setattr(sysroot, "host_python", lambda python: sys.executable)
    system = sysroot.make_system("trixie", "litert", packages=["v4l-utils"], home=tmp_path / "home")
    assert asked == [(["libpython3.13-stdlib", "libstdc++6", "python3.13-minimal", "v4l-utils"], "trixie")]
    assert system.versions == {"numpy": "2.0", "libpython3.13-minimal": "1:3.13.5-2"}
    assert list(system.site.rglob("engine.*.pyc"))
    assert system.machine("cortex-a72", [tmp_path]).paths == (tmp_path, system.site)
    assert sysroot.make_system("trixie", "litert", packages=["v4l-utils"], home=tmp_path / "home") == system
    assert len(asked) == 1


def test_the_hosts_python_of_a_version(program, tmp_path):
    version = ".".join(map(str, sys.version_info[:2]))
    assert sysroot.host_python(version) == sys.executable
    program("python9.9", "echo 9.8", alone=True)
    assert sysroot.host_python("9.9") is None and sysroot.host_python("9.7") is None
    assert sysroot.host_python("9.8") is None
    path = program("python9.9", "echo 9.9", alone=True)
    assert sysroot.host_python("9.9") == str(path)


def test_without_that_python_the_boards_own_compiles(program, tmp_path, monkeypatch):
    monkeypatch.setattr(sysroot, "host_python", lambda python: None)
    program("qemu-aarch64", f'echo "$@" > {shlex.quote(str(tmp_path / "log"))}')
    sysroot.compile_all(tmp_path / "site", tmp_path / "root", "3.13", lambda *state: None)
    said = (tmp_path / "log").read_text()
    assert said.startswith(f"-cpu max -L {tmp_path}/root {tmp_path}/root/usr/bin/python3.13 -m compileall")
    assert said.rstrip().endswith(str(tmp_path / "site"))
