"""`edgecnn release`, from the first key to a rollback, with the commands as scripts and people type them."""

import json

import pytest

from edgecnn.errors import ReleaseError
from edgecnn.files import sha256_file

pytest.importorskip("tuf", reason="releases need the extra release")


@pytest.fixture
def release(edgecnn, tmp_path, monkeypatch):
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    monkeypatch.setenv("EDGECNN_RELEASE_PASSPHRASE_FILE", str(secret))
    return lambda *arguments: edgecnn("release", *arguments)


def test_from_the_first_key_to_a_rollback(release, make_bundle, tmp_path):
    made = release("init", "--json")
    assert made.code == 0 and json.loads(made.out)["schema"] == "edgecnn.release/1"
    assert made.err.splitlines()[-1] == "trust root, for each board: releases/metadata/1.root.json"
    one = make_bundle("cats", 1, passed=True)
    two = make_bundle("dogs", 2, passed=True, verdict="passed", old=sha256_file(one))
    added = release("add", one, "--to", "door", "--share", 5, "--pilot", "a" * 32)
    size = one.stat().st_size
    assert added.err.startswith(
        f"door/cats-1.edgecnn: release 1, for 5 % of the boards and 1 pilot; {size:,} bytes and "
    )
    folder = tmp_path / "releases" / "metadata"
    fetched = [folder / name for name in ("timestamp.json", "2.snapshot.json", "2.targets.json")]
    metadata = sum(path.stat().st_size for path in fetched)
    assert added.err.endswith(f" and {metadata:,} of metadata for each board\n"), "without the root that boards have"
    assert (
        added.out.splitlines()[-1]
        == f"door         1      5 %  cats-1  {sha256_file(one)[:12]}  {size:,} bytes; 1 pilot"
    )
    assert "    100 %  cats-1" in release("share", "door", 100).out
    release("add", two, "--to", "door", "--share", 100)
    assert "  stopped  dogs-2" in release("stop", "door").out
    back = release("add", one, "--to", "door", "--share", 100, "--allow-older-from", sha256_file(two)[:8], "--json")
    table = json.loads(back.out)
    assert [entry["number"] for entry in table["channels"]["door"]] == [2, 3]
    assert table["channels"]["door"][1]["allow_older"] == {"to": sha256_file(one), "instead_of": [sha256_file(two)]}
    three = make_bundle("eels", 3, passed=True, verdict="passed", old=sha256_file(one))
    release("add", three, "--to", "door", "--share", 100)
    half = release("add", two, "--to", "door", "--share", 100, "--allow-older-from", sha256_file(three)[:8])
    assert "keep it" not in half.err
    half = release("add", one, "--to", "door", "--share", 100, "--allow-older-from", sha256_file(three)[:8])
    kept = f"boards that have door/dogs-2.edgecnn keep it: add --allow-older-from {sha256_file(two)[:12]} to bring them back"
    assert half.err.splitlines()[-1] == kept
    assert release("refresh").code == release("rotate", "online").code == 0
    shown = release("status")
    assert shown.err == "" and shown.out.splitlines()[0].startswith("root       until 20")
    assert shown.out.splitlines()[0].endswith(", 2 of root-1, root-2, root-3")
    assert "goes back from" in shown.out
    numbers = [line.split()[1] for line in shown.out.splitlines() if line.startswith("door ")]
    assert numbers == ["6", "5", "4"], "the newest is first"


def test_a_replaced_repository_is_not_shown_as_ones_own(release, tmp_path):
    release("init")
    release("init", "other")
    (tmp_path / "releases").rename(tmp_path / "former")
    (tmp_path / "other").rename(tmp_path / "releases")
    refused = release("status")
    assert refused.code == 35 and "it is an older copy, or another repository" in refused.err
    (tmp_path / "releases-keys").rename(tmp_path / "stick")
    assert release("status").code == 0, "a user without keys can see the content"


def test_a_failed_gate_needs_a_reason_which_is_shown(release, make_bundle):
    release("init")
    bundle = make_bundle("cats", 1, passed=False)
    refused = release("add", bundle, "--to", "door", "--share", 5)
    assert refused.code == ReleaseError.exit_code == 35
    assert "accepted: one class" in release("add", bundle, "--to", "door", "--share", 5, "--accept", "one class").out


TYPOS = (
    (("ad",), "init, add, share"),
    (("add",), "add: expected BUNDLE; received none"),
    (("add", "x.edgecnn"), "add needs --to and --share"),
    (("share", "door"), "share: expected CHANNEL PERCENT"),
    (("share", "door", "all"), "'all'"),
    (("share", "door", "9" * 5000), "from 0 to 100"),
    (("share", "door", "101"), "from 0 to 100"),
    (("stop", "door", "--accept", "x"), "only with add"),
    (("refresh", "snapshot"), "targets, root"),
    (("rotate",), "rotate: expected KEY..."),
    (("status", "door"), "takes no more arguments"),
    (("stop", "door", "--pilot", "x"), "only with add and share"),
)


def test_a_typo_is_a_usage_error(release):
    for arguments, message in TYPOS:
        result = release(*arguments)
        assert result.code == 2 and message in " ".join(result.err.split()), result.err


def test_without_a_terminal_the_passphrase_has_to_be_in_a_file(release, monkeypatch, tmp_path):
    monkeypatch.delenv("EDGECNN_RELEASE_PASSPHRASE_FILE")
    refused = release("init")
    assert refused.code == 35 and "EDGECNN_RELEASE_PASSPHRASE_FILE" in refused.err
    monkeypatch.setenv("EDGECNN_RELEASE_PASSPHRASE_FILE", str(tmp_path / "nowhere"))
    assert "cannot read the passphrase of EDGECNN_RELEASE_PASSPHRASE_FILE" in release("init", "other").err
