"""Power cuts on an emulated board with an ext4 disk while releases change: a sample of the cases that tests/device/slots covers.

Killing QEMU also loses what the board's kernel had not yet written to its disk.
"""

import dataclasses
import random
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.emulate import sysroot
from edgecnn.runtime.default import shipped_bundle

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools" / "board"))

from debian_image import GUEST, PYTHON, build, make_disk
from machine import NEEDED_BY_DEBIAN, lacking, power_on

CUTS = 8
STARTED = re.compile(rb"releases: start (\w+) problems (\d+) lacking (\d+)")


@pytest.fixture(scope="module")
def project(tmp_path_factory, root):
    """A folder for the board: edgecnn, two bundles, and the program that changes releases. Skipped if there is no board."""
    missing = lacking(NEEDED_BY_DEBIAN)
    if missing:
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(root / "edgecnn", folder / "edgecnn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(GUEST / "releases.py", folder)
    (folder / "bundles").mkdir()
    shipped = read_bundle(shipped_bundle())
    for name in ("one", "two"):
        write_bundle(folder / "bundles" / name, dataclasses.replace(shipped.manifest, name=name), shipped.files)
    sysroot.compile_all(folder, build().root, PYTHON, lambda what, done, total: None)
    return folder


def test_after_each_power_cut_a_complete_release_answers(project, tmp_path):
    """Each boot begins with the start of the service, then changes releases until the power is cut at a different moment."""
    make_disk(tmp_path / "disk")
    chance = random.Random(22)
    answered, cut_in = [], []
    for _ in range(CUTS + 1):
        with power_on(build(), tmp_path / "disk", project) as qemu:
            after = chance.randrange(1, 25)
            said = b""
            for line in qemu.stdout:
                said += line
                if line.startswith(b"releases: "):
                    after -= 1
                if not after:
                    break
            time.sleep(chance.random() * 0.1)
            qemu.kill()
        started = STARTED.search(said)
        assert started, said[-2000:].decode(errors="replace")
        answered.append(started[1].decode())
        cut_in.append(said.strip().rpartition(b"releases: ")[2].decode())
        assert (int(started[2]), int(started[3])) == (0, 0), said[-2000:].decode(errors="replace")
    assert answered[0] == "none" and set(answered[1:]) <= {"none", "one", "two"}
    assert set(answered[1:]) & {"one", "two"}, "nothing was ever written"
    print(list(zip(cut_in[:-1], answered[1:], strict=True)))
