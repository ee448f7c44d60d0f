"""Fetching a board's kept pictures by ssh: only missing ones arrive, complete, whatever ends the connection."""

import contextlib
import io
import os
import random
import signal
import subprocess
import tarfile
import time

import pytest

from edgecnn.cli.review import located
from edgecnn.device.keep.folder import kept_pictures
from edgecnn.errors import PartialFailure
from edgecnn.fleet import status as module
from edgecnn.fleet.ssh import BoardError
from edgecnn.fleet.status import fetch_kept


@pytest.fixture
def fetch(here):
    """Return a function that fetches from a folder of this machine."""
    return lambda remote, folder, progress=bool: fetch_kept(here(), str(remote), folder, progress)


class Sent:
    """A board that sends these bytes in answer to anything."""

    def __init__(self, data):
        self.data = data

    @contextlib.contextmanager
    def reading(self, script, stdin=b""):
        yield io.BytesIO(self.data)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_missing_pictures_are_fetched(tmp_path, keep_pictures, fetch):
    remote, folder = tmp_path / "a board's kept", tmp_path / "here" / "kept"
    kept = keep_pictures(remote, scenes=4)
    (remote / "sample.json").write_text("{}")
    expected = files(remote)
    day = kept[0].path.parent
    for name in ("notes.txt", f".{kept[0].path.name}.0123.tmp", "-rf.jpg", "a\nb.jpg"):
        (day / name).write_text("no picture")
    (day / kept[0].path.name.replace("-0", "-9")).symlink_to("/etc/passwd")
    leftover = folder / day.name / ".20261128T101502.500000Z-0.jpg.0123.tmp"  # from a fetch that was killed
    for made in (folder.parent, folder, leftover.parent):
        made.mkdir(mode=0o700)
    leftover.write_text("half")
    counted = []
    assert fetch(remote, folder, counted.append) == 4 and files(folder) == expected
    assert counted == [1, 2, 3, 4]
    assert {oct(path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))} == {"0o700", "0o600"}
    (remote / "labels.jsonl").write_text("{}\n")
    lost = folder / kept[1].path.relative_to(remote)
    lost.unlink()
    lost.with_suffix(".json").unlink()
    assert fetch(remote, folder) == 1 and files(folder) == expected | {"labels.jsonl": b"{}\n"}
    kept[2].path.unlink()
    assert fetch(remote, folder) == 0 and len(kept_pictures(folder)) == 4, "files that the board removes stay here"
    with pytest.raises(BoardError, match=r"^no folder /no/such$"):
        fetch("/no/such", folder)


def test_a_boards_data_is_hostile_or_cut(tmp_path, keep_pictures, monkeypatch):
    name, outside = "./2026-11-28/20261128T101502.500000Z-0.jpg", tmp_path / "outside"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in (
            "../outside",
            f"/{outside}",
            "2026-11-28/../../outside",
            "./labels.jsonl/x",
            f"{name}x",
            "sample.json",
        ):
            entry = tarfile.TarInfo(path)
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        sparse = tarfile.TarInfo(name)
        sparse.pax_headers = {"GNU.sparse.map": f"0,{1 << 50}", "GNU.sparse.size": str(1 << 50)}
        archive.addfile(sparse)
    folder = tmp_path / "kept"
    assert fetch_kept(Sent(buffer.getvalue()), "", folder, bool) == 0
    assert not outside.exists() and list(folder.iterdir()) == []
    for odd in ("x,y", "9" * 5000, "0"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo(name)
            entry.pax_headers = {"GNU.sparse.map": odd}
            archive.addfile(entry)
        with contextlib.suppress(BoardError):
            fetch_kept(Sent(buffer.getvalue()), "", folder, bool)
        assert list(folder.rglob("*.jpg")) == []

    remote = tmp_path / "remote"
    keep_pictures(remote, scenes=12)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(remote.rglob("*.j*")):
            archive.add(path, f"./{path.relative_to(remote)}")
    whole, chance = files(remote), random.Random(1)
    for _ in range(40):
        cut = buffer.getvalue()[: chance.randrange(buffer.tell() - 2 * tarfile.BLOCKSIZE)]
        with contextlib.suppress(BoardError):
            fetch_kept(Sent(cut), "", tmp_path / "cut", bool)
        assert files(tmp_path / "cut").items() <= whole.items()
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 15)  # more than a picture, and than what tarfile reads at a time
    assert buffer.tell() > module.MOST_BYTES, "the limit is for each file, not for all"
    assert fetch_kept(Sent(buffer.getvalue()), "", tmp_path / "each", bool) == 12
    monkeypatch.setattr(module, "MOST_BYTES", 4000)
    with pytest.raises(BoardError, match="a file of more than 4,000 bytes"):
        fetch_kept(Sent(buffer.getvalue()), "", tmp_path / "large", bool)


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.guard)])
def test_after_a_kill_at_any_moment_it_continues(tmp_path, keep_pictures, fetch, kills):
    remote, folder, chance, came = tmp_path / "remote", tmp_path / "kept", random.Random(1), 0
    keep_pictures(remote, scenes=3 * kills)
    for _ in range(kills):
        begun, says = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                fetch(remote, folder, lambda count, says=says: os.write(says, b"."))
            finally:
                os._exit(0)
        os.close(says)
        with open(begun, "rb", buffering=0) as file:
            file.read(1)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        before, came = came, len(kept_pictures(folder))
        assert came >= before and all(kept.read() for kept in kept_pictures(folder))
    assert came > 0
    fetch(remote, folder)
    assert files(folder) == files(remote)


@pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo")
def test_a_board_whose_service_keeps_pictures(boards, tmp_path, keep_pictures):
    boards.make("door", user="pi")
    keep_pictures(tmp_path / "remote", scenes=3)
    packed = subprocess.run(["tar", "-cC", tmp_path / "remote", "."], capture_output=True, check=True).stdout
    into = "sudo -n sh -c 'mkdir -p /etc/edgecnn && mkdir -m 700 /srv /srv/kept && tar -xC /srv/kept && chmod 700 /srv/kept'"
    subprocess.run(["ssh", "door", into], input=packed, check=True)
    photos = tmp_path / "photos"
    with pytest.raises(
        PartialFailure, match=r"^pi@door: its service keeps no pictures: /etc/edgecnn/service.toml has no keep"
    ):
        located("pi@door", photos, None)
    with pytest.raises(
        PartialFailure, match=r"^no folder kpet exists, and as a board it failed: no machine has this name\.$"
    ):
        located("kpet", photos, None)
    boards.run("door", "echo 'keep = \"/srv/kept\"' | sudo -n tee /etc/edgecnn/service.toml")
    boards.counted("door")
    folder, board, _ = located("pi@door", photos, None)
    assert (folder, board) == (tmp_path / "photos-kept" / "door", "door")
    assert files(folder) == files(tmp_path / "remote") and boards.counted("door") > len(packed)
    assert located("pi@door", photos, "/srv/kept")[0] == folder and boards.counted("door") < 25_000
