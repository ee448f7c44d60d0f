"""Commands by name: their options and what they print."""

import dataclasses
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ai_edge_litert", reason="the models are TFLite files")
pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
pytest.importorskip("tuf", reason="releases need the extra release")

import jsonschema

from edgecnn.cli.networks import print_costs
from edgecnn.cli.recipes import resolve, stated_values
from edgecnn.cli.workstation_options import Data, read_sides
from edgecnn.device.slots.record import NO_RELEASE
from edgecnn.emulate import on_boards
from edgecnn.errors import (
    BundleError,
    DatasetError,
    EmulatorError,
    OutputExistsError,
    ParityError,
    PartialFailure,
    ReleaseError,
    ServiceError,
    SlotError,
    UnknownNameError,
)
from edgecnn.files import data_folder, sha256_file
from edgecnn.networks import NETWORKS, build_network
from edgecnn.networks.blocks import LayerCost, NetworkCost, describe
from edgecnn.recipe import keys
from edgecnn.region import WHOLE
from edgecnn.runtime.default import SHIPPED
from edgecnn.runtime.engines import engines_for, is_installed
from edgecnn.verify.parity_report import BoardRow


def row(target, **changes):
    """Return a board's row without problems, except for the given changes."""
    fields = {
        "target": target.name, "cpu": target.emulator.cpu, "release": "trixie", "engine": "litert 2.3.0 (XNNPACK)",
        "model": "models/int8.tflite", "against": "litert 2.3.0 (XNNPACK)", "selftest": True, "images": 9, "split": "golden",
        "accuracy": None, "accuracy_here": None, "agreement": 1.0, "rows_that_differ": 0, "largest_difference": 0.0, "unit": "LSB",
        "limit": 1.0, "error": None, "versions": {"python": "3.13.5-2"}, "qemu": "10", "failed": (), "passed": True,
    } | changes  # fmt: skip
    return BoardRow(**fields)


@pytest.fixture
def emulated(monkeypatch):
    """Emulate nothing: record the requests, and return entries with the given changes."""
    asked, changes = [], {}

    def verify_on_boards(bundle, split, on, progress, packages=()):
        asked.append((bundle, split, on))
        return [row(target, **changes) for target in on.targets]

    monkeypatch.setattr(on_boards, "find_qemu", lambda: "qemu-aarch64")
    monkeypatch.setattr(on_boards, "verify_on_boards", verify_on_boards)
    return asked, changes


def test_without_a_run_it_uses_the_default_bundle_of_classify(edgecnn, emulated, monkeypatch, schema_of, tmp_path):
    monkeypatch.delenv("EDGECNN_DATA", raising=False)
    result = edgecnn("verify", "--on", "rpi3,rpi4", "--on", "rpi5", "--sample", 7, "--json", "--out", "boards.json")
    assert result.code == 0, result.err
    ((bundle, split, on),) = emulated[0]
    assert bundle.manifest.name == SHIPPED and split is None and on.sample == 7
    assert [target.name for target in on.targets] == ["rpi3", "rpi4", "rpi5"] and on.engines == ()
    assert "ships with edgecnn" in result.err and "using only the golden images" in result.err
    report = json.loads(result.out)
    assert report["passed"] and report["data"] is None
    assert json.loads((tmp_path / "boards.json").read_text()) == report
    schema = schema_of("parity")
    jsonschema.validate(report, {"$ref": "#/$defs/boards_report", "$defs": schema["$defs"]})


def test_a_bundle_with_its_test_images(edgecnn, emulated, root):
    pytest.importorskip("sklearn", reason="the digits come with it")
    digits = root / "models" / "digits" / "digits.edgecnn"
    result = edgecnn(
        "verify", "--on", "all", "--model", digits, "--engines", "litert,onnxruntime", "--release", "bookworm"
    )
    assert result.code == 0, result.err
    ((_, split, on),) = emulated[0]
    assert split.images.dtype == np.uint8 and len(split.classes) == 385
    assert (on.engines, on.release) == (("litert", "onnxruntime"), "bookworm")
    assert "Handwritten digits" in result.out and "rpi-zero2w (cortex-a53)" in result.out


def test_images_that_are_not_the_bundles_are_refused(edgecnn, emulated, root):
    result = edgecnn(
        "verify", "--on", "rpi4", "--model", root / f"models/{SHIPPED}/{SHIPPED}.edgecnn", "--data", "digits"
    )
    assert result.code == DatasetError.exit_code
    assert f"{SHIPPED}.edgecnn was verified with" in result.err


def test_the_gate(edgecnn, emulated, root):
    digits = root / "models" / "digits" / "digits.edgecnn"
    emulated[1].update(passed=False, failed=["largest_difference"], largest_difference=2.0)
    result = edgecnn("verify", "--on", "rpi4", "--model", digits)
    assert result.code == ParityError.exit_code == 14
    assert "2 LSB" in result.out and "by 2 LSB (1 allowed)" in result.err
    emulated[1].update(failed=["error"], error="illegal instruction on cortex-a72", largest_difference=None)
    result = edgecnn("verify", "--on", "rpi4", "--model", digits)
    assert result.code == EmulatorError.exit_code == 25
    assert "litert 2.3.0 (XNNPACK)" in result.err and "illegal instruction on cortex-a72" in result.err


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--on", "rpi44"], UnknownNameError, "Did you mean 'rpi4'"),
        (["--on", "rpi4,cuda"], EmulatorError, "cuda"),
        (["--on", "rpi4", "--engines", "tf"], UnknownNameError, "no engine 'tf'"),
        (["--on", "rpi4", "--release", "sid"], UnknownNameError, "no Debian release 'sid'"),
        (["--on", "rpi4", "--model", "none.edgecnn"], BundleError, "none.edgecnn"),
    ],
)
def test_impossible_requests(edgecnn, monkeypatch, arguments, kind, message):
    monkeypatch.setattr(on_boards, "find_qemu", lambda: "qemu-aarch64")
    result = edgecnn("verify", *arguments)
    assert result.code == kind.exit_code and message in result.err, result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--engines", "litert"],
        ["--model", "a.edgecnn"],
        ["--data", "digits"],
        ["--out", "report.json"],
        ["--on", "rpi4", "--model", "a.edgecnn", "--matrix"],
    ],
)
def test_exclusive_options(edgecnn, arguments):
    assert edgecnn("verify", *arguments).code == 2


def test_without_qemu_it_names_the_package(edgecnn, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = edgecnn("verify", "--on", "rpi4")
    assert result.code == EmulatorError.exit_code and "qemu" in result.err


def test_the_input_of_each_network_and_the_one_that_training_chooses(edgecnn, monkeypatch, capfd):
    few = ("article", "resnet8", "efficientnet_lite0_150kb")
    monkeypatch.setattr("edgecnn.networks.NETWORKS", {name: NETWORKS[name] for name in few})
    found = json.loads(edgecnn("networks", "--data", "digits", "--json").out)
    assert set(found) == set(few)
    assert [name for name, entry in found.items() if entry["chosen"]] == ["article"]
    assert found["article"]["input"] == [8, 8, 1] and found["efficientnet_lite0_150kb"]["input"] == [160, 160, 1]
    assert "edgecnn train chooses article" in edgecnn("networks", "resnet8", "--data", "digits").out
    cost = NetworkCost(layers=(), parameters=12_345, macs=6_789_012, int8_bytes=14_321)
    capfd.readouterr()
    print_costs({"article": cost}, {"article": (28, 20, 1)}, layers=False)
    heading, _, row = capfd.readouterr().out.splitlines()
    assert heading.split()[:5] == ["network", "input", "parameters", "MACs", "int8"]
    assert " ".join(row.split()) == "article 28x20x1 12,345 6,789,012 14,321 random weights"
    layers = (LayerCost(name="conv", kind="Conv2D", shape=(14, 10, 8), parameters=1_080, macs=151_200),)
    print_costs({"article": dataclasses.replace(cost, layers=layers)}, {"article": (28, 20, 1)}, layers=True)
    name, heading, _, row = capfd.readouterr().out.splitlines()[-4:]
    assert (name, heading.split()) == ("article", ["layer", "output", "parameters", "MACs", "kind"])
    assert " ".join(row.split()) == "conv (14, 10, 8) 1,080 151,200 Conv2D"
    shown = json.loads(edgecnn("networks", "article", "--height", 28, "--width", 20, "--channels", 1, "--json").out)
    assert shown["article"]["input"] == [28, 20, 1]


def test_a_budget_needs_a_choice_by_the_images(edgecnn):
    result = edgecnn("networks", "--max-kb", "500")
    assert result.code == 2 and "give --data too" in " ".join(result.err.split())
    result = edgecnn("train", "--data", "digits", "--network", "resnet8", "--max-macs", "2e8")
    assert result.code == 2 and "leave --network out" in " ".join(result.err.split())


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
    (("status", "--root-keys", "5"), "--root-keys: works only with init"),
    (("init", "one", "--repo", "two"), "--repo: init takes the folder's name without it"),
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


def test_options_are_checked(edgecnn, tmp_path):
    options = tmp_path / "service.toml"
    options.write_text("good_after = 5\n")
    done = edgecnn("service", "check", "--config", options)
    assert done.code == 0 and done.err == f"{options}: valid\n"
    options.write_text("good_afer = 5\n")
    done = edgecnn("service", "check", "--config", options)
    assert done.code == ServiceError.exit_code
    assert done.err.startswith(f"edgecnn: error: {options}: ") and "Did you mean 'good_after'?" in done.err
    assert edgecnn("service", "check", "--config", "none.toml").code == ServiceError.exit_code


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs on this machine")
@pytest.mark.parametrize("action", ["install", "status", "logs", "remove"])
def test_without_systemd(edgecnn, action):
    done = edgecnn("service", action)
    assert done.code == ServiceError.exit_code


def test_an_action_with_a_typo(edgecnn):
    refused = edgecnn("service", "instal")
    assert refused.code == 2
    assert "received 'instal', expected install, check, status, logs, remove, run" in " ".join(refused.err.split())


def test_status_reports_what_runs(edgecnn, monkeypatch, tmp_path):
    from edgecnn.device.service import config

    shown = {"ActiveState": "active", "SubState": "running", "StatusText": "state: 'cat'", "NRestarts": "0"}
    monkeypatch.setattr(
        config, "unit_properties", lambda host: {"UnitFileState": "enabled", "Result": "success", **shown}
    )
    done = edgecnn("service", "status", "--slots", tmp_path / "none")
    assert done.out.splitlines() == [
        "service active (running), enabled, restarts 0",
        "status  state: 'cat'",
        NO_RELEASE,
    ]
    assert '"ActiveState": "active"' in edgecnn("service", "status", "--json", "--slots", tmp_path / "none").out


@pytest.fixture
def bundle_slot():
    return data_folder("models") / SHIPPED / f"{SHIPPED}.edgecnn"


@pytest.fixture
def slot(edgecnn, tmp_path):
    return lambda *arguments: edgecnn("slot", *arguments, "--slots", tmp_path / "slots")


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_from_a_bundle_to_a_release_in_use_and_back(slot, bundle_slot):
    assert slot("list").out == f"{NO_RELEASE}\n"
    added = json.loads(slot("add", bundle_slot, "--json").out)
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


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_added_and_put_in_use_immediately(slot, bundle_slot):
    done = slot("add", bundle_slot, "--activate")
    assert done.out.startswith("in use  ") and f" {SHIPPED} pending; " in done.out
    assert "only with add" in slot("list", "--activate").err


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_changes_are_named_and_other_classes_need_an_option(slot, bundle_slot, root):
    slot("add", root / "models" / "cifar10-resnet_25kb" / "cifar10-resnet_25kb.edgecnn", "--activate")
    done = slot("add", bundle_slot, "--activate", "--accept", "a larger one")
    assert done.out.splitlines()[0].startswith(
        f"in use  {sha256_file(bundle_slot)[:12]} {SHIPPED} pending; accepted: a larger one; "
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


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_a_typo_is_a_usage_error_of_slot(slot, bundle_slot):
    assert "add, activate, rollback, list, prune" in slot("ad", bundle_slot).err
    assert "name a bundle" in slot("add").err
    assert "prune takes no name" in slot("prune", bundle_slot).err
    assert "works only with activate and add --activate" in slot("add", bundle_slot, "--accept", "why").err
    assert "works only with activate and add --activate" in slot("add", bundle_slot, "--other-classes").err
    assert "works only with prune" in slot("list", "--keep", 1).err
    assert slot("activate", "0000").code == SlotError.exit_code


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_an_intended_rollback_is_reported(slot, edgecnn, bundle_slot, tmp_path):
    import dataclasses

    from edgecnn.bundle.file import read_bundle, write_bundle

    read = read_bundle(bundle_slot)
    for serial in (1, 2):
        write_bundle(tmp_path / f"{serial}.edgecnn", dataclasses.replace(read.manifest, serial=serial), read.files)
        slot("add", tmp_path / f"{serial}.edgecnn")
    releases = {about["serial"]: name for name, about in json.loads(slot("list", "--json").out)["releases"].items()}
    assert slot("activate", releases[2]).code == 0
    refused = slot("activate", releases[1], "--accept", "a test")
    assert refused.code == SlotError.exit_code and "--older" in refused.err
    assert slot("activate", releases[1], "--accept", "a test", "--older").code == 0
    assert f"{releases[2][:12]} {SHIPPED} serial 2 pending: rolled back by hand" in slot("list").out


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_names_and_reasons_cannot_move_the_cursor(slot, tmp_path):
    about = {"name": "\x1b[2Jcats", "serial": 0, "state": "bad", "reason": "no\nin use  forged"}
    (tmp_path / "slots").mkdir()
    (tmp_path / "slots" / "current").write_text(json.dumps({"releases": {"f" * 64: about}}))
    (line,) = slot("list").out.splitlines()[1:]
    assert line == r"-       ffffffffffff \x1b[2Jcats bad: no\nin use  forged; its bundle is missing or damaged"


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_a_folder_that_cannot_be_made(edgecnn, bundle_slot, tmp_path):
    (tmp_path / "file").touch()
    done = edgecnn("slot", "add", bundle_slot, "--slots", tmp_path / "file" / "slots")
    assert done.code == 19 and str(tmp_path / "file") in done.err


KEYS = {"schema", "source", "answer", "index", "score", "box", "where", "decrease", "picture", "map"}


@pytest.fixture
def parse(schema_of):
    """Check JSON lines against the schema, and return them parsed."""
    schema = schema_of("explanation")
    validator = jsonschema.Draft202012Validator(schema)

    def lines(output):
        parsed = [json.loads(line) for line in output.splitlines()]
        for line in parsed:
            validator.validate(line)
        return parsed

    return lines


@pytest.fixture
def model(root):
    return "--model", root / "models" / "digits" / "digits.edgecnn"


@pytest.fixture
def photo(tmp_path):
    """Save a small noise image under a name in the working folder."""

    def save(name, seed=1):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(path, "png")
        return path

    return save


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_lines_and_pictures(edgecnn, photo, tmp_path, model):
    photo("photos/a.png"), photo("photos/sub/b.png", 2)
    result = edgecnn("explain", "photos", *model)
    assert result.code == 0
    one, other = result.out.splitlines()
    assert one.startswith("photos/a.png: ") and one.endswith(": explained/a-explained.png")
    assert other.endswith(": explained/b-explained.png") and " looked at " in other
    with Image.open(tmp_path / "explained" / "a-explained.png") as picture:
        assert picture.size == (2 * 256 + 8, 256 + 2 * 19 + 8), "two panels, and two lines below them"
    assert sorted(path.name for path in (tmp_path / "explained").iterdir()) == ["a-explained.png", "b-explained.png"]


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_json_lines(edgecnn, photo, model, parse):
    source = photo("a.png")
    result = edgecnn("explain", source, "--out", "maps", "--json", *model)
    (line,) = parse(result.out)
    assert set(line) == KEYS
    assert (line["source"], line["picture"]) == (str(source), "maps/a-explained.png")
    map_ = np.array(line["map"])
    assert map_.shape == (8, 8) and np.array_equal(map_, map_.round(3))
    left, top, right, bottom = line["box"]
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    classified = json.loads(edgecnn("classify", source, "--json", *model).out)
    best = classified["top"][0]
    assert (line["answer"], line["index"], line["score"]) == (best["label"], best["index"], best["score"])
    assert line["decrease"] > 0 and line["where"] in edgecnn("explain", source, *model).out


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_an_image_that_cannot_be_decoded_is_skipped(edgecnn, photo, tmp_path, model, json_flag, parse):
    photo("photos/b.png")
    (tmp_path / "photos" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = edgecnn("explain", "photos", "none.png", *model, *json_flag)
    assert result.code == PartialFailure.exit_code
    assert [path.name for path in (tmp_path / "explained").iterdir()] == ["b-explained.png"]
    if json_flag:
        assert [set(line) for line in parse(result.out)] == [
            {"schema", "source", "error"},
            KEYS,
            {"schema", "source", "error"},
        ]
    else:
        assert "photos/a.png: " in result.err and len(result.out.splitlines()) == 1


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_an_existing_picture_is_replaced_only_on_request(edgecnn, photo, tmp_path, model):
    source = photo("a.png")
    before = source.read_bytes()
    assert edgecnn("explain", source, "--out", ".", *model).code == 0
    (tmp_path / "a-explained.png").write_bytes(b"mine")
    result = edgecnn("explain", source, "--out", ".", *model)
    assert result.code == OutputExistsError.exit_code and "a-explained.png" in result.err
    assert (tmp_path / "a-explained.png").read_bytes() == b"mine"
    assert edgecnn("explain", source, "--out", ".", "--force", *model).code == 0
    assert (tmp_path / "a-explained.png").read_bytes()[:4] == b"\x89PNG" and source.read_bytes() == before


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_images_with_the_same_name_do_not_share_a_picture(edgecnn, photo, tmp_path, model):
    for number, name in enumerate(("x/a.png", "y/a.png", "a-2.png")):
        photo(name, number)
    result = edgecnn("explain", "x", "y", "a-2.png", "--force", *model)
    written = [line.rpartition(": ")[2] for line in result.out.splitlines()]
    assert written == [f"explained/{name}-explained.png" for name in ("a", "a-2", "a-2-2")]
    assert len(list((tmp_path / "explained").iterdir())) == 3


NAMES = [
    "<img src=x onerror=alert(1)>.png",
    "\u202egnp.exe",
    "\x1b[2J.png",
    "a\nb.png",
    "ü" * 125 + ".png",
    "é\udcff.png",
]


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind(edgecnn, photo, tmp_path, model, name, parse):
    photo(name)
    assert len((tmp_path / name).name.encode(errors="surrogateescape")) <= 255
    result = edgecnn("explain", tmp_path / name, "--json", *model)
    (line,) = parse(result.out)
    assert line["source"] == str(tmp_path / name).replace("\udcff", r"\udcff")
    (picture,) = (tmp_path / "explained").iterdir()
    assert (
        line["picture"] == f"explained/{picture.name}".replace("\udcff", r"\udcff")
        and picture.read_bytes()[:4] == b"\x89PNG"
    )
    if "\udcff" not in name:
        text = edgecnn("explain", tmp_path / name, "--force", *model).out
        assert len(text.splitlines()) == 1 and not set(text) & {"\u202e", "\x1b"}


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_labels_of_any_kind(parse):
    from pathlib import Path

    from edgecnn.cli.explain import json_line, text_line
    from edgecnn.runtime.occlusion import Occlusion

    for label in ("<script>alert(1)</script>", "\u202egnp\x1b[2J", "ü" * 127):
        found = Occlusion(
            pixels=np.zeros((2, 2, 1), np.uint8), answer=label, index=0, score=0.5,
            map=np.zeros((2, 2), np.float32), box=(0, 0, 0.5, 0.5), decrease=0.0,
        )  # fmt: skip
        text = text_line("a.png", found, Path("a-explained.png"), WHOLE)
        assert not set(text) & {"\u202e", "\x1b"} and "no single place" in text
        (line,) = parse(json_line("a.png", found, Path("a-explained.png"), WHOLE))
        assert line["answer"] == label and line["where"] is None


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_paths_on_standard_input(edgecnn, photo, tmp_path, model, monkeypatch):
    photo("a.png")
    listed = tmp_path / "listed"
    for content, code in ((b"a.png\n", 0), (b"\n", PartialFailure.exit_code)):
        listed.write_bytes(content)
        with listed.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert edgecnn("explain", "-", *model).code == code


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name an image, a folder or a glob"),
        (["a.png", "--fit", "squeeze"], "crop, letterbox, stretch"),
    ],
)
def test_usage_errors(edgecnn, arguments, text):
    result = edgecnn("explain", *arguments)
    assert result.code == 2 and text in result.err


@pytest.mark.slow
def test_the_estimate_is_for_the_recipe(edgecnn, tmp_path):
    settings = ("--network", "article", "--epochs", "7", "--qat-epochs", "3", "--batch-size", "100")
    result = edgecnn("train", "--dry-run", "--json", "--data", "digits", *settings)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    cost = describe(build_network("article", 8, 8, 1, 10))
    assert (found["parameters"], found["macs"], found["int8_bytes"]) == (cost.parameters, cost.macs, cost.int8_bytes)
    assert [(phase["phase"], phase["epochs"]) for phase in found["phases"]] == [("float", 7), ("qat", 3)]
    for phase in found["phases"]:
        size = 100 if phase["phase"] == "float" else 128
        assert phase["steps"] == found["images"]["train"] // size
        assert phase["total_s"] == pytest.approx(phase["epochs"] * phase["steps"] * phase["step_s"])
        assert phase["images_per_s"] == pytest.approx(size / phase["step_s"])
    assert found["seconds"] == pytest.approx(sum(phase["total_s"] for phase in found["phases"]))
    # model and optimizer: Adam keeps two values per trained weight
    assert 4 * 2.9 * cost.parameters < found["checkpoint_bytes"] < 4 * 3.1 * cost.parameters
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_is_printed_with_units_and_how_the_images_are_divided(edgecnn, tmp_path):
    result = edgecnn("train", "--dry-run", "--data", "digits", "--set", "train.precision=bfloat16")
    assert result.code == 0, result.err
    assert "digits: 1,797 images in 10 classes, " in result.err and " for validation" in result.err
    assert "to decode the images" in result.out
    assert "parameters" in result.out and "MACs" in result.out and "bytes as int8" in result.out
    assert "images/s" in result.out and "in total" in result.out
    assert list(tmp_path.iterdir()) == []


def test_it_does_not_resume(edgecnn):
    assert edgecnn("train", "--dry-run", "--resume").code == 2


def test_it_refuses_the_photos_that_training_refuses(edgecnn, tmp_path):
    for label, level in (("cat", 0), ("dog", 100)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (12, 12), (level, number, 7)).save(tmp_path / "photos" / label / f"{number}.png")
    whole = tmp_path / "photos" / "cat" / "0.png"
    for number in range(6):
        (whole.parent / f"broken{number}.png").write_bytes(whole.read_bytes()[: 50 + number])
    dry, real = (edgecnn("train", "--data", "photos", *flags) for flags in (("--dry-run",), ()))
    assert dry.code == real.code == DatasetError.exit_code
    assert dry.err[dry.err.index("edgecnn: error") :] == real.err[real.err.index("edgecnn: error") :]
    assert "6 of 86 images cannot be read" in dry.err and "cat/broken" in dry.err


def test_keys_lists_every_recipe_key(edgecnn):
    result = edgecnn("train", "--keys")
    assert result.code == 0
    for key in keys():
        assert f"\n{key.name} " in f"\n{result.out}" and f"    {key.meaning}\n" in result.out
    assert "train.epochs              whole number; 1 to 10,000\n" in result.out
    listed = json.loads(edgecnn("train", "--keys", "--json").out)
    assert [item["name"] for item in listed] == [key.name for key in keys()]
    assert set(listed[0]) == {"name", "type", "default", "limits", "meaning"}


@pytest.mark.parametrize(("text", "width", "height"), [("128", 128, 128), ("160x96", 160, 96), ("160X96", 160, 96)])
def test_size_is_width_by_height(text, width, height):
    network = resolve(None, None, stated_values(Data(size=read_sides(text)))).network
    assert (network.width, network.height) == (width, height)


def test_size_comes_before_the_recipe(tmp_path):
    (tmp_path / "r.toml").write_text("[network]\nwidth = 32\nheight = 32\n")
    assert resolve(tmp_path / "r.toml", None, stated_values(Data(size=(48, 48)))).network.height == 48
    assert resolve(tmp_path / "r.toml", None, {}).network.height == 32


@pytest.mark.parametrize("text", ["", "x", "12y", "0", "-3", "12x", "1x2x3", "1.5"])
def test_an_invalid_size_is_a_usage_error(edgecnn, text):
    result = edgecnn("train", "--size", text)
    assert result.code == 2
    assert f"received {text!r}, expected WIDTHxHEIGHT or one number, such as 160x120 or 128" in result.err


def test_a_size_out_of_range_names_the_key(edgecnn):
    result = edgecnn("train", "--size", "2000")
    assert result.code == 4 and "network.width " in result.err and " 1 and 1,024" in result.err


def test_the_default_size_is_in_the_help(edgecnn):
    for command in ("train", "run"):
        assert "or 96 if they differ" in " ".join(edgecnn(command, "--help").out.split())
