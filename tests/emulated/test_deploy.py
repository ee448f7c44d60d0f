"""`edgecnn deploy` of the Debian package over ssh to a board with Debian's own systemd: the service marks the release good."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tools" / "board"))

from debian_image import build, make_disk
from machine import NEEDED_BY_DEBIAN, boot_debian, lacking

LIMIT_S = 300
"""The longest wait for a release to become good."""

CONFIG = """Host board
    HostName 127.0.0.1
    Port {port}
    User root
    IdentityFile "{key}"
    StrictHostKeyChecking accept-new
    UserKnownHostsFile "{folder}/known"
"""
OPTIONS = "width = 320\nheight = 180\nmax_fps = 2\ngood_after = 3\n"


@pytest.fixture
def debian_board(tmp_path, ssh_config):
    """A booted board that `ssh board` reaches; skipped, with the reason, if it cannot be emulated."""
    missing = lacking(NEEDED_BY_DEBIAN)
    if missing:
        pytest.skip(missing)
    make_disk(tmp_path / "disk")
    with boot_debian(build(), tmp_path / "disk", limit_s=1500) as machine:
        ssh_config.write_text(CONFIG.format(port=machine.port, key=machine.folder / "key", folder=tmp_path))
        yield machine


def test_the_package_by_ssh_and_a_second_time(debian_board, release, edgecnn, root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools")
    package = importlib.import_module("deb").build("arm64", tmp_path / "dist")
    (tmp_path / "service.toml").write_text(OPTIONS)
    release("photos", 1)

    def deploy():
        done = edgecnn("deploy", "board", "--deb", package, "--options", "service.toml", "--json")
        assert done.code == 0, done.out + done.err
        return json.loads(done.out)

    first = deploy()
    assert first["installed"].startswith("package ") and first["status"]["in_use"]["name"] == "photos"
    (tmp_path / "boards.txt").write_text("board\n")
    deadline = time.monotonic() + LIMIT_S
    while "photos serial 1 good" not in (shown := edgecnn("release", "status", "--hosts", "boards.txt")).out:
        assert time.monotonic() < deadline, (
            shown.out + debian_board.run(["journalctl", "-u", "edgecnn", "-n", "40"]).out
        )
        time.sleep(5)
    again = deploy()
    assert (again["installed"], again["files"]) == ("", 0)
    assert again["sent_bytes"] + again["received_bytes"] < 10_000
    print(f"first {first['seconds']:.0f} s and {first['sent_bytes']:,} bytes, again {again['seconds']:.0f} s")
