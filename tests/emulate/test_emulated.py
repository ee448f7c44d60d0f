"""Real board systems on emulated processors. This needs apt, pip and QEMU, and once a few minutes for files that stay in the cache."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from edgecnn.boards.targets import RELEASES, emulated_targets
from edgecnn.bundle.read import read_bundle
from edgecnn.emulate import sysroot
from edgecnn.emulate.on_boards import OnBoards, verify_on_boards
from edgecnn.emulate.qemu import NAMES, Emulations
from edgecnn.errors import EmulatorError
from edgecnn.verify.gate import require_boards

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
    return sysroot.make_system("trixie", "litert")


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
    monkeypatch.setattr(sysroot, "host_python", lambda python: None)
    (tmp_path / "module.py").write_text("answer = 42\n")
    sysroot.compile_all(tmp_path, system.root, system.python, lambda *state: None)
    assert [path.name for path in tmp_path.rglob("*.pyc")] == ["module.cpython-313.pyc"]


def test_nothing_of_this_machine_is_on_the_boards_path(system, tmp_path):
    code = "import platform, sys; print(platform.machine(), *sys.path[1:], sep='\\n')"
    with Emulations() as emulations:
        ended = emulations.run(system.machine("cortex-a53"), ["-c", code], tmp_path)
    machine, *paths = ended.out.split()
    assert machine == "aarch64"
    assert all(Path(path).is_relative_to(sysroot.boards_home()) for path in paths)
