"""Real board systems on emulated processors."""

import importlib.util
import json
import resource
import shutil
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

import edgecnn as package
from edgecnn.boards import RELEASES, emulated_targets
from edgecnn.bundle.file import read_bundle
from edgecnn.emulate import machine as systems
from edgecnn.emulate.machine import NAMES, Emulations
from edgecnn.emulate.on_boards import OnBoards, verify_on_boards
from edgecnn.errors import EmulatorError
from edgecnn.verify.parity_report import require_boards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user"),
]

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


def test_a_build_for_newer_processors_is_caught(digits, system, tmp_path):
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").write_text(LDADD)
    rows = verify_on_boards(read_bundle(digits), None, on("rpi3,rpi4,rpi5"), lambda *state: None, [tmp_path])
    assert [row.error for row in rows] == [
        "illegal instruction on cortex-a53",
        "illegal instruction on cortex-a72",
        None,
    ]
    assert rows[2].passed and rows[2].engine.startswith("litert 0.0.1")
    with pytest.raises(EmulatorError, match=r"litert \S+ on rpi4: illegal instruction on cortex-a72"):
        require_boards(rows[1:])


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


def test_the_boards_own_python_compiles_if_this_machine_has_none(system, tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "host_python", lambda python: None)
    (tmp_path / "module.py").write_text("answer = 42\n")
    systems.compile_all(tmp_path, system.root, system.python, lambda *state: None)
    assert [path.name for path in tmp_path.rglob("*.pyc")] == ["module.cpython-313.pyc"]


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
