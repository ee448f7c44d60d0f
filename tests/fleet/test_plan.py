"""What a deploy plans for a board, without one: its files, its options, and the root that it trusts."""

import io
import tarfile

import pytest

pytest.importorskip("tuf", reason="releases need the release extra")

from edgecnn.errors import ReleaseError
from edgecnn.files import sha256


def test_a_board_that_trusts_another_repository_is_left_alone(edgecnn, release, tmp_path):
    from edgecnn.fleet.deploy import ROOT, UPDATE, Offer, Plan
    from edgecnn.fleet.look import Look
    from edgecnn.fleet.software import Wheels
    from edgecnn.fleet.ssh import BoardError

    release("photos", 1)
    first = tmp_path / "releases/metadata/1.root.json"
    assert edgecnn("release", "rotate", "root-1").code == 0
    plan = Plan(software=Wheels(), offer=Offer(tmp_path / "releases"))
    newest = plan.configuration(Look())[ROOT]
    assert newest != first.read_bytes() and newest == (tmp_path / "releases/metadata/2.root.json").read_bytes()
    old = Look(hashes={ROOT: sha256(first.read_bytes())}, source='"https://models.example.org/"')
    assert plan.configuration(old) == {UPDATE: b'from = "https://models.example.org/"\nchannel = "door"\n'}
    other = Look(hashes={ROOT: sha256(b"another")})
    with pytest.raises(BoardError, match=r"root\.json there belongs to another repository\. .*--replace-root"):
        plan.configuration(other)
    assert Plan(**{**vars(plan), "replace_root": True}).configuration(other)[ROOT] == newest

    next((tmp_path / "releases/targets/door").iterdir()).write_bytes(b"half")
    with pytest.raises(ReleaseError, match=r"photos-1\.edgecnn is missing or damaged"):
        Offer(tmp_path / "releases")

    # a server's folder that was replaced by another repository
    (tmp_path / "releases").rename(tmp_path / "ours")
    assert edgecnn("release", "init", "theirs").code == 0
    (tmp_path / "theirs").rename(tmp_path / "releases")
    with pytest.raises(ReleaseError, match="--repo"):
        Offer(tmp_path / "releases")


def test_a_board_gets_the_newest_release_for_all_those_after_it_and_no_file_that_it_has(edgecnn, release, tmp_path):
    """Of five releases, the second and the third are for all boards, the fourth for a pilot, and the fifth is stopped."""
    from edgecnn.fleet.deploy import REPOSITORY, ROOT, UPDATE, File, Offer, Plan, bring
    from edgecnn.fleet.look import Look
    from edgecnn.fleet.software import Wheels

    pilot, other = "a" * 32, "b" * 32
    for serial in (1, 2, 3):
        release("photos", serial)
    for serial in (4, 5):
        release("photos", serial)
        assert edgecnn("release", "share", "door", 0, *(("--pilot", pilot) if serial == 4 else ())).code == 0
    assert edgecnn("release", "stop", "door").code == 0
    plan = Plan(software=Wheels(), offer=Offer(tmp_path / "releases"))

    def serials(board):
        names = [path for path in plan.offer.files(board) if "/targets/door/" in path]
        return sorted(name.removesuffix(".edgecnn").rpartition("-")[2] for name in names)

    assert (serials(pilot), serials(other), serials("")) == (["3", "4"], ["3"], ["3", "4"])

    class Scripted:
        def must(self, what, script, stdin=b""):
            self.script, self.sent = script, stdin

    kept = plan.offer.files(other)
    old = f"{REPOSITORY}/targets/door/0123.photos-2.edgecnn"
    has = {path: source.sha256 for path, source in kept.items()} | {ROOT: "1" * 64, UPDATE: "2" * 64, old: "3" * 64}
    stale = f"{REPOSITORY}/metadata/timestamp.json"
    board = Scripted()
    assert not bring(board, Look(board=other, hashes=has), plan, {}) and board.script == f"rm -f {old}\n", (
        "no option of its own"
    )
    brought = bring(board, Look(board=other, hashes=has | {stale: "4" * 64}), plan, {UPDATE: b"from = 1"})
    assert set(brought) == {stale, UPDATE}
    with tarfile.open(fileobj=io.BytesIO(board.sent)) as archive:
        modes = {entry.name: oct(entry.mode) for entry in archive}
        assert modes == {stale.lstrip("/"): "0o644", UPDATE.lstrip("/"): "0o600"}
    assert isinstance(kept[stale], File) and board.script.endswith(f"rm -f {old}\n")
