"""Golden vectors: what is right passes, what differs by more than is allowed does not, and what was not checked says so."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from edgecnn.bundle.manifest import Manifest, ModelEntry
from edgecnn.bundle.read import Bundle
from edgecnn.errors import EngineError, SelftestError, UnknownNameError
from edgecnn.runtime.selftest import allowed, require_pass, selftest

ENGINE = "litert"


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@pytest.fixture
def replay(monkeypatch, fake_engine, contract, pixels, tmp_path):
    """Run a self-test of one model on a fake engine: `replay(golden outputs, tolerance=…, …)`."""
    monkeypatch.setattr("edgecnn.runtime.selftest.is_installed", lambda name: name == ENGINE)
    monkeypatch.setattr("edgecnn.runtime.engines.is_installed", lambda name: name == ENGINE)

    def call(golden, *, tolerance=1.0, unit="LSB", format_="tflite", engine=None, engines=None):
        opened = engine or fake_engine()
        monkeypatch.setattr("edgecnn.runtime.selftest.open_engine", lambda *_, **__: opened)
        entry = ModelEntry(
            file="models/m",
            format=format_,
            precision="int8" if golden.dtype == np.int8 else "float32",
            golden="g",
            tolerance=tolerance,
            tolerance_unit=unit,
            tolerance_reason="",
            golden_engine="fake 1.0 (none)",
        )
        manifest = Manifest(
            name="n", title="t", labels=("a", "b", "c"), input=contract, models=(entry,), defaults={}, provenance={}
        )
        files = {"models/m": b"", "g": npy(golden), manifest.golden_inputs: npy(pixels)}
        return selftest(Bundle(tmp_path, manifest, files, data=b""), engines)

    return call


@pytest.fixture
def right(fake_engine, pixels):
    return fake_engine().run((pixels ^ 128).view(np.int8))


def test_right(replay, right):
    report = replay(right)
    (row,) = report.rows
    assert report.passed and row.passed
    assert (row.engine, row.version, row.images, row.largest_difference, row.top1_changes) == ("fake", "1.0", 6, 0, 0)
    require_pass(report)


def test_off_by_one_and_never_by_two(replay, right):
    shifted = right.copy()
    shifted[0, 0] += 1
    assert replay(shifted).passed
    shifted[0, 0] += 1
    report = replay(shifted)
    assert not report.passed and report.rows[0].largest_difference == 2
    with pytest.raises(SelftestError, match=r"differs by 2 LSB, 1 is allowed"):
        require_pass(report)


def test_other_kernels_are_allowed_two_codes_more():
    entry = SimpleNamespace(tolerance=1.0, tolerance_unit="LSB", golden_engine="litert 2.3.0 (XNNPACK)")
    assert allowed(entry, "XNNPACK") == 1.0 and allowed(entry, "built-in kernels") == 3.0
    entry.tolerance_unit = "logit"
    assert allowed(entry, "built-in kernels") == 1.0


def test_differences_are_widened(replay, fake_engine, pixels):
    """127 and -128 differ by 255 codes, not by 1."""
    golden = np.full((6, 3), -128, np.int8)
    engine = fake_engine()
    engine.run = lambda batch: np.full((len(batch), 3), 127, np.int8)
    assert replay(golden, engine=engine).rows[0].largest_difference == 255


def test_changed_answers_are_counted(replay, right):
    flipped = right.copy()
    best = np.argmax(right[2])
    flipped[2] = -100
    flipped[2, (best + 1) % 3] = 100
    assert replay(flipped).rows[0].top1_changes == 1


def test_float(replay, fake_engine, pixels):
    engine = fake_engine("float32", "float32")
    golden = engine.run(pixels.astype(np.float32) / 128 - 1)
    assert replay(golden + np.float32(0.0005), tolerance=0.001, unit="logit", engine=engine).passed
    assert not replay(golden + np.float32(0.002), tolerance=0.001, unit="logit", engine=engine).passed
    engine.run = lambda batch: np.full((len(batch), 3), np.nan, np.float32)
    assert not replay(golden, tolerance=1e9, unit="logit", engine=engine).passed


def test_output_of_another_type_or_shape(replay, right, fake_engine):
    report = replay(right, engine=fake_engine(output_type="uint8"))
    assert not report.passed and "uint8" in report.rows[0].note
    engine = fake_engine()
    engine.run = lambda batch: np.zeros((len(batch), 4), np.int8)
    assert not replay(right, engine=engine).passed


def test_engine_that_cannot_run_the_model_is_a_failure(replay, right, fake_engine):
    report = replay(right, engine=fake_engine(zero_point=5))
    assert not report.passed and "zero point 5" in report.rows[0].note
    with pytest.raises(SelftestError, match="zero point 5"):
        require_pass(report)


def test_nothing_checked_is_a_failure(replay, right):
    report = replay(right, format_="onnx")
    assert (report.passed, report.rows[0].passed) == (False, None)
    assert report.rows[0].note == "not checked: onnxruntime is not installed"
    with pytest.raises(SelftestError, match="nothing was checked"):
        require_pass(report)


def test_engines_asked_for(replay, right):
    assert replay(right, engines=[ENGINE]).passed
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        replay(right, engines=["onnxruntime"])
    with pytest.raises(UnknownNameError, match="litert"):
        replay(right, engines=["lite"])
    assert replay(right, format_="onnx", engines=[ENGINE]).rows[0].note == "not checked: not asked for"
