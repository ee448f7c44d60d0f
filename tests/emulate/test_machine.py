"""QEMU, a board's system files, and bundles run on them."""

import importlib.util
import json
import resource
import shlex
import shutil
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

import edgecnn as package
from edgecnn.boards import RELEASES, emulated_targets
from edgecnn.bundle.file import read_bundle
from edgecnn.emulate import machine
from edgecnn.emulate import machine as systems
from edgecnn.emulate.machine import NAMES, Emulations, Machine, find_qemu
from edgecnn.emulate.on_boards import OnBoards, verify_on_boards
from edgecnn.errors import EmulatorError, OutputError
from edgecnn.verify.parity_report import require_boards


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
        ("kill -ILL $$", r"^illegal instruction \(SIGILL\) on cortex-a72$"),
        ("kill -SEGV $$", r"^segmentation fault \(SIGSEGV\) on cortex-a72$"),
        ("kill -KILL $$", r"^killed \(SIGKILL\) on cortex-a72$"),
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
    assert found == ["killed (SIGKILL) on cortex-a72"]
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


LDADD = """
import ctypes, mmap, os, sys

page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
# ldadd x1, x2, [x0]: an atomic of ARM's Large System Extensions; mov x0, x2; ret
page.write(b"".join(word.to_bytes(4, "little") for word in (0xF8210002, 0xAA0203E0, 0xD65F03C0)))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
fetch_and_add = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)(address)
counter = ctypes.c_int64(40)
if (fetch_and_add(ctypes.addressof(counter), 2), counter.value) != (40, 42):
    raise ImportError("the atomic does not add")
real = next(path for path in sys.path if os.path.exists(os.path.join(path, "ai_edge_litert", "interpreter.py")))
__path__.append(os.path.join(real, "ai_edge_litert"))
__version__ = "0.0.1"
"""
"""A build of LiteRT with an atomic that Cortex-A53 and A72 lack, otherwise the same as the wheel."""


@pytest.fixture(scope="session")
def system():
    """Debian 13's files with LiteRT, from the user's cache."""
    return systems.make_system("trixie", "litert")


@pytest.fixture
def digits(root):
    return root / "models" / "digits" / "digits.edgecnn"


def on(*names, **options):
    return OnBoards(targets=tuple(emulated_targets(names)), **options)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user")
def test_all_boards_answer_like_this_machine(edgecnn, digits, system, schema_of):
    result = edgecnn("verify", "--on", "all", "--model", digits, "--sample", 100, "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    schema = schema_of("parity")
    jsonschema.validate(report, {"$ref": "#/$defs/boards_report", "$defs": schema["$defs"]})
    assert [row["cpu"] for row in report["boards"]] == ["cortex-a53", "cortex-a53", "cortex-a72", "cortex-a76"]
    for row in report["boards"]:
        assert row["selftest"] and row["images"] == 100 and row["accuracy"] > 0.9
        assert row["largest_difference"] <= 1 and row["agreement"] >= 0.99
        assert "XNNPACK" in row["engine"] and row["versions"]["python"].startswith("3.13.")


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user")
@pytest.mark.parametrize("release", RELEASES)
def test_every_engine_on_each_debian(digits, release):
    rows = verify_on_boards(
        read_bundle(digits), None, on("rpi4", engines=("all",), release=release), lambda *state: None
    )
    names = [row.engine.split()[0] for row in rows]
    assert names == ["litert", *(["tflite_runtime"] if release == "bookworm" else []), "onnxruntime"]
    for row in rows:
        assert row.passed and row.largest_difference <= 1, row
        assert row.versions["python"].startswith(RELEASES[release])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user")
def test_a_build_for_newer_processors_is_caught(digits, system, tmp_path):
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").write_text(LDADD)
    rows = verify_on_boards(read_bundle(digits), None, on("rpi3,rpi4,rpi5"), lambda *state: None, [tmp_path])
    assert [row.error for row in rows] == [
        "illegal instruction (SIGILL) on cortex-a53",
        "illegal instruction (SIGILL) on cortex-a72",
        None,
    ]
    assert rows[2].passed and rows[2].engine.startswith("litert 0.0.1")
    with pytest.raises(EmulatorError, match=r"litert \S+ on rpi4: illegal instruction .*on cortex-a72"):
        require_boards(rows[1:])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user")
def test_a_run_on_a_board_is_in_its_report_and_card(edgecnn, own_run, system, schema_of):
    result = edgecnn("verify", "--on", "rpi4", "--sample", 50, "--max-drop", 100)
    assert result.code == 0, result.err
    assert "rpi4 (cortex-a72)" in result.out
    report = json.loads(own_run.file("parity.json").read_text())
    jsonschema.validate(report, schema_of("parity"))
    (row,) = report["boards"]
    assert report["passed"] and row["passed"] and row["images"] == 50 and row["split"] == "test"
    assert edgecnn("bundle", "--force").code == 0
    assert "| rpi4 (cortex-a72) | 50 |" in own_run.file("card.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user")
def test_the_boards_own_python_compiles_if_this_machine_has_none(system, tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "host_python", lambda python: None)
    (tmp_path / "module.py").write_text("answer = 42\n")
    systems.compile_all(tmp_path, system.root, system.python, lambda *state: None)
    assert [path.name for path in tmp_path.rglob("*.pyc")] == ["module.cpython-313.pyc"]


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user")
def test_nothing_of_this_machine_is_on_the_boards_path(system, tmp_path):
    code = "import platform, sys; print(platform.machine(), *sys.path[1:], sep='\\n')"
    with Emulations() as emulations:
        ended = emulations.run(system.machine("cortex-a53"), ["-c", code], tmp_path)
    machine, *paths = ended.out.split()
    assert machine == "aarch64"
    assert all(Path(path).is_relative_to(systems.boards_home()) for path in paths)


TIMED = """
import sys, time
begun = time.process_time()
import edgecnn.device.update.run
print(time.process_time() - begun, "cryptography" in sys.modules, "requests" in sys.modules)
"""


@pytest.fixture
def releases(tmp_path):
    """A repository like that of the update tests, dated today."""
    pytest.importorskip("cryptography", reason="releases are signed with the release extra")
    path = Path(__file__).parents[1] / "device/update/conftest.py"
    spec = importlib.util.spec_from_file_location("of_updates", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Repository(tmp_path / "releases", now=datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def board(tmp_path, releases):
    """Run the board's Python; return its output and the processor seconds used."""
    system = systems.make_system("trixie", "litert", packages=("python3-tuf",))
    packages = tmp_path / "packages"
    shutil.copytree(
        Path(package.__file__).parent, packages / "edgecnn", ignore=shutil.ignore_patterns("__pycache__", "_data")
    )
    systems.compile_all(packages, system.root, system.python, lambda what, done, total: None)
    (tmp_path / "board/etc/edgecnn").mkdir(parents=True)
    shutil.copy(releases.folder / "metadata/1.root.json", tmp_path / "board/etc/edgecnn/root.json")
    machine = system.machine("cortex-a72", (packages, system.root / "usr/lib/python3/dist-packages"))
    with Emulations() as emulations:

        def run(*arguments):
            begun = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = emulations.run(machine, arguments, tmp_path)
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            return done, ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime

        yield run


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user")
def test_a_board_with_debians_python3_tuf(board, releases, make_bundle, tmp_path):
    update = ("-m", "edgecnn", "update", "--from", "releases", "--channel", "door", "--prefix", "board")
    imported, _ = board("-c", TIMED)
    seconds, *modules = imported.out.split()
    assert modules[0] == "False", "Ed25519 by Python's own code"
    _, idle = board("-c", "pass")
    old = tmp_path / "old"
    first = releases.add(make_bundle("photos", 1), 1)
    shutil.copytree(releases.folder, old)
    done, took = board(*update)
    assert done.code == 0 and f"in use: {first[:12]} photos serial 1" in done.out, done.err
    second = releases.add(make_bundle("better", 2), 2)
    assert board(*update)[0].code == 0
    status = json.loads(board(*update[:3], "status", "--prefix", "board", "--json")[0].out)
    assert status["reason"] is None and status["in_use"]["sha256"] == second and status["release"]["number"] == 2
    refused, _ = board(*update[:4], str(old), *update[5:])
    assert refused.code == 34 and "older than what this board has already verified" in refused.err
    quiet, quick = board(*update)
    assert "up to date" in quiet.out
    print(
        f"emulated cortex-a72, seconds of the processor: Python starts in {idle:.1f}, imports in {float(seconds):.1f}, "
        f"an update takes {took:.1f} and a quiet one {quick:.1f}"
    )
