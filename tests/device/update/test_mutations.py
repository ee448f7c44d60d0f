"""Change a file of a release repository again and again: a board accepts no change and never crashes.

Three boards run in separate processes. One gets changes made without a key. One gets changes signed by a thief with the targets and online
keys, which must not crash it. The third checks no signatures, to prove that this test notices.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="updates need the update extra")
pytest.importorskip("cryptography", reason="releases are signed with the release extra")

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.release import operations
from edgecnn.release.keys import Keys
from edgecnn.release.repository import Repository
from edgecnn.runtime.default import shipped_bundle

BOARD = Path(__file__).with_name("mutated_board.py")
PASSPHRASE = "five words of a test"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A folder with a repository's state before and after a release and a new root, and its keys."""
    folder = tmp_path_factory.mktemp("repositories")
    repository, keys = Repository(folder / "after"), Keys([folder / "keys"], lambda name, new: PASSPHRASE)
    operations.init(repository.folder, keys)
    shipped = read_bundle(shipped_bundle())
    for number in (1, 2):
        numbered = folder / f"{number}.edgecnn"
        write_bundle(numbered, dataclasses.replace(shipped.manifest, serial=number), dict(shipped.files))
        operations.add(
            repository, keys, read_bundle(numbered), operations.Offer(channel="door", share=100, accepted="a test")
        )
        if number == 1:
            shutil.copytree(repository.folder, folder / "before")
            operations.refresh(repository, keys, "root")
    return folder


@pytest.mark.parametrize("n", [40, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options", [(), ("--signed",), ("--trusting",)], ids=["without a key", "by a thief", "unchecked"]
)
def test_changed_files_are_refused_and_a_board_that_checks_nothing_is_deceived(repositories, options, n):
    n = n if options == () else max(50, n // 4)
    command = [sys.executable, BOARD, repositories, "--n", str(n), "--seed", "7", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["crashed"] == 0 and result["peak_mib"] < 100, result
    if "--trusting" in options:
        assert result["accepted"] > 0
    else:
        assert result["accepted"] == 0 and result["refused"] > n / 2, result
