"""`edgecnn slot`: output and refusals."""

import json

import pytest

from edgecnn.device.slots.record import NO_RELEASE
from edgecnn.errors import SlotError
from edgecnn.files import data_folder, sha256_file
from edgecnn.runtime.default import SHIPPED
from edgecnn.runtime.engines import is_installed

pytestmark = pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")


@pytest.fixture
def bundle():
    return data_folder("models") / SHIPPED / f"{SHIPPED}.edgecnn"


@pytest.fixture
def slot(edgecnn, tmp_path):
    return lambda *arguments: edgecnn("slot", *arguments, "--slots", tmp_path / "slots")


def test_from_a_bundle_to_a_release_in_use_and_back(slot, bundle):
    assert slot("list").out == f"{NO_RELEASE}\n"
    added = json.loads(slot("add", bundle, "--json").out)
    (release,) = added["releases"]
    assert added["current"] is None and added["releases"][release]["state"] == "pending"
    active = slot("activate", release[:8])
    known = "accuracy 86.62% of 5,000 test images; classes 10: airplane, automobile, bird, cat, deer and 5 more"
    assert active.out == f"in use  {release[:12]} {SHIPPED} pending; {known}\n"
    back = slot("rollback")
    assert back.out.splitlines() == [
        NO_RELEASE,
        f"-       {release[:12]} {SHIPPED} pending: rolled back by hand; {known}",
    ]
    assert slot("rollback").code == SlotError.exit_code
    assert slot("prune").err == "removed: none\n"


def test_added_and_put_in_use_immediately(slot, bundle):
    done = slot("add", bundle, "--activate")
    assert done.out.startswith("in use  ") and f" {SHIPPED} pending; " in done.out
    assert "only with add" in slot("list", "--activate").err


def test_changes_are_named_and_other_classes_need_an_option(slot, bundle, root):
    slot("add", root / "models" / "cifar10-resnet_25kb" / "cifar10-resnet_25kb.edgecnn", "--activate")
    done = slot("add", bundle, "--activate", "--accept", "a larger one")
    assert done.out.splitlines()[0].startswith(
        f"in use  {sha256_file(bundle)[:12]} {SHIPPED} pending; accepted: a larger one; "
    )
    assert [" ".join(line.split()) for line in done.err.splitlines()[2:]] == [
        "classes 10: airplane, automobile, bird, cat, deer and 5 more, as before",
        "accuracy 86.62% of 5,000 test images; before: 78.46% of 5,000 test images",
        "fit crop, as before",
        "region the whole image, as before",
    ]
    digits = root / "models" / "digits" / "digits.edgecnn"
    refused = slot("add", digits, "--activate")
    assert refused.code == SlotError.exit_code and refused.err.endswith(
        "digits has other classes than the release in use: it adds 0, 1, 2, 3, 4 and 5 more, and lacks airplane, automobile, bird, cat, "
        "deer and 5 more. To put it in use anyway, add --other-classes\n"
    )
    assert f" {SHIPPED} pending" in slot("list").out.splitlines()[0]
    assert "digits" not in slot("list").out, "what is refused is not added"
    uncompared = slot("add", digits, "--activate", "--other-classes")
    assert uncompared.code == SlotError.exit_code and "nobody has compared it" in uncompared.err
    assert "digits" not in slot("list").out
    added = slot("add", digits, "--activate", "--other-classes", "--accept", "a test")
    assert added.out.splitlines()[0].split()[3] == "digits"
    table = json.loads(slot("list", "--json").out)
    assert table["releases"][table["current"]]["images"] == 385


def test_a_typo_is_a_usage_error(slot, bundle):
    assert "add, activate, rollback, list, prune" in slot("ad", bundle).err
    assert "name a bundle" in slot("add").err
    assert "prune takes no name" in slot("prune", bundle).err
    assert "works only with activate and add --activate" in slot("add", bundle, "--accept", "why").err
    assert slot("activate", "0000").code == SlotError.exit_code


def test_an_intended_rollback_is_reported(slot, edgecnn, bundle, tmp_path):
    import dataclasses

    from edgecnn.bundle.read import read_bundle
    from edgecnn.bundle.write import write_bundle

    read = read_bundle(bundle)
    for serial in (1, 2):
        write_bundle(tmp_path / f"{serial}.edgecnn", dataclasses.replace(read.manifest, serial=serial), read.files)
        slot("add", tmp_path / f"{serial}.edgecnn")
    releases = {about["serial"]: name for name, about in json.loads(slot("list", "--json").out)["releases"].items()}
    assert slot("activate", releases[2]).code == 0
    refused = slot("activate", releases[1], "--accept", "a test")
    assert refused.code == SlotError.exit_code and "--older" in refused.err
    assert slot("activate", releases[1], "--accept", "a test", "--older").code == 0
    assert f"{releases[2][:12]} {SHIPPED} serial 2 pending: rolled back by hand" in slot("list").out


def test_names_and_reasons_cannot_move_the_cursor(slot, tmp_path):
    about = {"name": "\x1b[2Jcats", "serial": 0, "state": "bad", "reason": "no\nin use  forged"}
    (tmp_path / "slots").mkdir()
    (tmp_path / "slots" / "current").write_text(json.dumps({"releases": {"f" * 64: about}}))
    (line,) = slot("list").out.splitlines()[1:]
    assert line == r"-       ffffffffffff \x1b[2Jcats bad: no\nin use  forged; its bundle is missing or damaged"


def test_a_folder_that_cannot_be_made(edgecnn, bundle, tmp_path):
    (tmp_path / "file").touch()
    done = edgecnn("slot", "add", bundle, "--slots", tmp_path / "file" / "slots")
    assert done.code == 19 and str(tmp_path / "file") in done.err
