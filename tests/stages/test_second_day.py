"""From the first model to the third release: what replaces what, by the commands and the lines that they print."""

import json
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed")
pytest.importorskip("tuf", reason="releases need the release extra")

from edgecnn.device.slots.store import Store, approve, choose_for_start
from edgecnn.errors import ReleaseError, SlotError, WorseError
from edgecnn.files import sha256_file

SEED_AND_SIZE = "seed = 3\n[data]\nsource = 'digits'\n[train]\nbatch_size = 32\nshift = 0\nlearning_rate = 0.01\n"
ANY_GATE = ("--max-drop", 100, "--accept-conversion")


@pytest.mark.slow
def test_from_the_first_model_to_the_third_release(edgecnn, tiny_network, tmp_path, monkeypatch, blank_plots):
    """A board takes releases by hand and from a channel. A bad model gets nowhere, and what was rolled back stays away."""
    (tmp_path / "passphrase").write_text("correct horse battery")
    (tmp_path / "passphrase").chmod(0o600)
    monkeypatch.setenv("EDGECNN_RELEASE_PASSPHRASE_FILE", str(tmp_path / "passphrase"))
    (tmp_path / "door.toml").write_text(f"name = 'door'\n{SEED_AND_SIZE}epochs = 4\n[qat]\nepochs = 1\n")
    board = tmp_path / "board"
    slots = Store(board / "var/lib/edgecnn")

    def done(*arguments, code=0):
        finished = edgecnn(*arguments)
        assert finished.code == code, f"{arguments}\n{finished.err}"
        return finished

    def slot(*arguments, code=0):
        return done("slot", *arguments, "--slots", slots.root, code=code)

    def released(bundle, code=0):
        return done("release", "add", bundle, "--to", "door", "--share", 100, code=code)

    def update():
        where = ("--from", "releases", "--root", "releases/metadata/1.root.json", "--channel", "door")
        return done("update", *where, "--prefix", board)

    def proved():
        approve(slots, choose_for_start(slots).release)

    def in_use():
        return slots.read().current

    done("run", "door.toml", "--network", tiny_network, *ANY_GATE)
    done("bundle", "runs/door", "--serial", 1, "--out", "door-1.edgecnn")
    first = sha256_file(Path("door-1.edgecnn"))
    done("release", "init")
    released("door-1.edgecnn")
    slot("add", "door-1.edgecnn", "--activate")
    proved()
    assert in_use() == first, "the first model needs no verdict, and neither the board's folder nor its parents existed"

    done(
        "train",
        "door.toml",
        "--network",
        tiny_network,
        "--epochs",
        1,
        "--set",
        "train.learning_rate=1e-6",
        "--out",
        "runs/bad",
    )
    done("export", "runs/bad")
    done("verify", "runs/bad", *ANY_GATE)
    done("bundle", "runs/bad", "--serial", 9, "--out", "bad.edgecnn")
    refusals = [
        slot("add", "bad.edgecnn", "--activate", code=SlotError.exit_code).err,
        released("bad.edgecnn", code=ReleaseError.exit_code).err,
    ]
    assert [re.findall(r"[0-9a-f]{12}(?=, which is in use)", text) for text in refusals] == [[first[:12]]] * 2
    for text in refusals:
        words = shlex.split(re.search(r": (edgecnn verify .*? --force)", text)[1].replace("RUN", "runs/bad"))
        verify, bundle = words[1 : words.index("&&")], words[words.index("&&") + 2 :]
        done(*verify, *ANY_GATE, code=WorseError.exit_code)
    done(*bundle)
    for add in (
        lambda: slot("add", "runs/bad/bad.edgecnn", "--activate", code=SlotError.exit_code),
        lambda: released("runs/bad/bad.edgecnn", code=ReleaseError.exit_code),
    ):
        assert "it is refused: against door, it drops" in add().err
    assert set(slots.read().releases) == {first} and in_use() == first

    done("run", "door.toml", "--network", tiny_network, "--epochs", 20, "--against", "door-1.edgecnn", *ANY_GATE)
    second = sha256_file(Path("runs/door-2/door-2.edgecnn"))
    slot("add", "runs/door-2/door-2.edgecnn", "--activate")
    proved()
    slot("rollback")
    released("runs/door-2/door-2.edgecnn")
    for _ in range(2):
        assert "door serial 2, is held back: rolled back by hand" in update().out
        assert in_use() == first
    status = json.loads(done("update", "status", "--json", "--prefix", board).out)
    assert (status["held_back"]["sha256"], status["held_back"]["reason"]) == (second, "rolled back by hand")
    assert "rolled back by hand" in done("update", "status", "--prefix", board).out

    done("verify", "runs/door-2", "--against", "runs/door-2/door-2.edgecnn", *ANY_GATE)
    done("bundle", "runs/door-2", "--out", "door-3.edgecnn")
    third = sha256_file(Path("door-3.edgecnn"))
    assert json.loads(slot("add", "door-3.edgecnn", "--activate", "--json").out)["current"] == third, (
        "the board has the first: the third passed against the second, which passed against the first"
    )
    slot("rollback")
    other = tmp_path / "other"
    done("slot", "add", "door-1.edgecnn", "--activate", "--slots", other / "var/lib/edgecnn")
    released("door-3.edgecnn")
    board, slots = other, Store(other / "var/lib/edgecnn")
    assert f"in use: {third[:12]} door serial 3, release 3" in update().out
    accepted = slot("add", "bad.edgecnn", "--activate", "--accept", "a rehearsal")
    assert re.match(r"in use  \w{12} door serial 9 pending; accepted: a rehearsal; ", accepted.out)
