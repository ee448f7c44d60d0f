"""An update on an emulated board, with Debian's own python3-tuf: an older API than this machine's, and no cryptography."""

import importlib.util
import json
import resource
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

import edgecnn as package
from edgecnn.emulate import sysroot
from edgecnn.emulate.qemu import NAMES, Emulations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason=f"{NAMES[0]} is not here: apt-get install qemu-user"),
]

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
    system = sysroot.make_system("trixie", "litert", packages=("python3-tuf",))
    packages = tmp_path / "packages"
    shutil.copytree(
        Path(package.__file__).parent, packages / "edgecnn", ignore=shutil.ignore_patterns("__pycache__", "_data")
    )
    sysroot.compile_all(packages, system.root, system.python, lambda what, done, total: None)
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
