"""`edgecnn verify --on`: refusals, and a bundle without a run."""

import json

import jsonschema
import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="the models are TFLite files")

from edgecnn.emulate import bundles
from edgecnn.errors import BundleError, DatasetError, EmulatorError, ParityError, UnknownNameError
from edgecnn.runtime.default import SHIPPED
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

    monkeypatch.setattr(bundles, "find_qemu", lambda: "qemu-aarch64")
    monkeypatch.setattr(bundles, "verify_on_boards", verify_on_boards)
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
    monkeypatch.setattr(bundles, "find_qemu", lambda: "qemu-aarch64")
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
