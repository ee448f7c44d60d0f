"""The commands of docs/releases.md, in order, are all you need, from the first key to the drill for lost and stolen keys."""

import re
import shlex
import subprocess

import pytest
from tuf.api.exceptions import RepositoryError

from edgecnn.bundle.channel import entries_of
from edgecnn.device.update.board import BoardState, Mark, decide
from edgecnn.files import sha256_file
from edgecnn.release import operations
from edgecnn.release.repository import Repository


@pytest.fixture
def sections(root):
    """Return the commands of the page's first part that need no server, by heading."""
    result, heading, within = {}, "", False
    page = (root / "docs" / "releases.md").read_text(encoding="utf-8")
    for line in page.partition("\n## A board that updates itself")[0].splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("```"):
            within = line == "```sh"
        elif within and not line.startswith(("rsync ", "pip ")):
            result.setdefault(heading, []).append(line)
    return result


@pytest.fixture
def workplace(edgecnn, make_bundle, tmp_path, monkeypatch):
    """Return a function that runs a section's commands in a folder with the bundles that the page mentions."""
    olds = []
    for name, serial in (("photos", 1), ("better", 2), ("newest", 3)):
        verdict = {"verdict": "passed", "old": olds[0], "earlier": olds[1:]} if olds else {}
        olds.insert(0, sha256_file(make_bundle(name, serial, passed=True, **verdict)))
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse battery")
    secret.chmod(0o600)
    monkeypatch.setenv("EDGECNN_RELEASE_PASSPHRASE_FILE", str(secret))

    def run(lines):
        for line in lines:
            program, *arguments = shlex.split(line.replace("3f2a9c", sha256_file(tmp_path / "better.edgecnn")[:6]))
            if program == "edgecnn":
                done = edgecnn(*arguments)
                assert done.code == 0, f"{line}\n{done.err}"
            else:
                subprocess.run([program, *arguments], check=True)

    return run


def test_the_page_from_the_first_key_to_the_drill(sections, workplace, tmp_path, held, tuf_board):
    names = list(sections)
    assert names == [
        "From the first key to a wave",
        "Stopping, and going back",
        "What expires, and who refreshes",
        "When a key is lost or stolen",
        "After a thief",
    ]
    workplace(sections[names[0]])
    repository = Repository(tmp_path / "releases")
    trust = (repository.metadata / "1.root.json").read_bytes()
    early = tuf_board(tmp_path / "early", trust)
    assert early.check(repository.folder) == ["door/better-2.edgecnn", "door/photos-1.edgecnn"]
    workplace(sections[names[1]] + sections[names[2]])
    early.check(repository.folder)
    before = {
        path: path.read_bytes()
        for folder in ("releases", "releases-keys")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file()
    }

    workplace(sections[names[3]])
    assert all(path.read_bytes() == data for path, data in before.items()), "a drill on a copy touches nothing else"
    drill = tmp_path / "drill"
    assert early.check(drill) == tuf_board(tmp_path / "new", trust).check(drill)
    root = Repository(drill).read().root
    for role in root.roles:
        former = repository.read().root.roles[role].keyids
        kept = set(former) & set(root.roles[role].keyids)
        assert len(kept) == (1 if role == "root" else 0), "root-3 is the only key that was neither lost nor stolen"

    thief = Repository(tmp_path / "releases")  # with the keys from before the drill
    operations.refresh(thief, held(tmp_path / "releases-keys"), "targets")
    for path in (drill / "metadata").glob("*.root.json"):
        (thief.metadata / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RepositoryError):
        early.check(thief.folder)

    last = sections[names[4]]
    assert len(last) == 1 and re.fullmatch(r"edgecnn release add .*--allow-older-from [0-9a-f]{64}", last[0])
    workplace([f"{last[0]} --repo drill"])
    assert "door/newest-3.edgecnn" in early.check(drill)
    thiefs = last[0].rpartition(" ")[2]
    deceived = BoardState(board="0" * 32, current=thiefs, mark=Mark(number=2**53, serial=2**53, sha256=thiefs))
    decision = decide(entries_of(Repository(drill).read().targets.signed.targets, "door"), deceived)
    assert decision.install and decision.entry.name == "newest", "the board recovers from the thief's release"
