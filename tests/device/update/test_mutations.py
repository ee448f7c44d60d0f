"""The bench that mutates a repository's files, with a few changes: none is accepted or crashes; without the rule they are accepted."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("tuf", reason="updates need the update extra")
pytest.importorskip("cryptography", reason="releases are signed with the release extra")


def test_changed_files_are_refused_and_the_bench_notices_if_they_are_not(root, tmp_path):
    bench = [sys.executable, root / "tools/bench/mutated_updates.py", "--n", "40", "--seed", "7"]
    subprocess.run([*bench, "--out", tmp_path / "out"], check=True, capture_output=True)
    boards = json.loads((tmp_path / "out").read_text())["boards"]
    deceived = boards.pop("no signature checked")
    assert deceived["accepted"] > 0 and deceived["crashed"] == 0
    for result in boards.values():
        assert (result["accepted"], result["crashed"]) == (0, 0), result["shown"]
        assert result["refused"] > result["n"] / 2 and result["peak_mib"] < 100
