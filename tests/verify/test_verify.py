import json

import jsonschema
import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.errors import ParityError, RunError, SplitError
from edgecnn.export import export_path
from edgecnn.networks.predict import model_bytes, model_from_bytes
from edgecnn.runs import CARD, PARITY, QAT_MODEL
from edgecnn.stages.verify import verify
from edgecnn.tables import to_json
from edgecnn.verify import Gate, require_parity
from edgecnn.verify.parity import parity_report


@pytest.fixture(scope="module")
def report(finished_run):
    return parity_report(finished_run)


def verified(run, **options):
    return verify(run, open_dataset(run.recipe.data), **options)


def comparison(report, kind, candidate):
    return next(item for item in report.comparisons if item.kind == kind and item.candidate == candidate)


def test_the_report_follows_its_schema(report, finished_run, schema_of):
    schema = schema_of("parity")
    written = json.loads(finished_run.read(PARITY, "verify"))
    jsonschema.validate(written, schema)
    assert to_json(report) == written, "the report reads back unchanged"


def test_the_report_covers_every_export_and_int8_ones_twice(report, finished_run):
    assert [model.name for model in report.models] == [
        "float", "fake-quantized", "tflite-int8", "tflite-float32", "onnx-int8", "onnx-float32", "tflite-int8-ptq",
    ]  # fmt: skip
    conversions = [item.candidate for item in report.comparisons if item.kind == "conversion"]
    assert conversions == ["tflite-int8", "onnx-int8"]
    assert report.data.test_images == 385
    assert report.passed


def test_figures_are_consistent(report):
    for item in report.comparisons:
        assert item.drop == pytest.approx(100 * (item.accuracy_reference - item.accuracy_candidate))
        # models that agree on a share of the images cannot differ in accuracy by more than the remaining share
        assert abs(item.drop) / 100 <= 1 - item.agreement + 1e-9
    assert comparison(report, "quantization", "tflite-float32").agreement == 1.0
    assert comparison(report, "conversion", "tflite-int8").agreement >= 0.99


@pytest.fixture
def bad_run(own_run, plant):
    """A run whose int8 TFLite file has a wrong last bias."""
    wrong = np.roll(np.linspace(-3, 3, 10), 3)
    plant(own_run, -1, lambda weights, bias: np.copyto(bias.codes, np.rint(wrong / bias.scale).astype(np.int32)))
    return own_run


def test_a_planted_fault_closes_the_gate_and_only_its_drop_may_be_accepted(bad_run):
    bad = verified(bad_run, gate=Gate(max_drop=1.0))
    assert not bad.passed
    assert not comparison(bad, "conversion", "tflite-int8").passed
    assert comparison(bad, "conversion", "onnx-int8").passed
    assert comparison(bad, "quantization", "tflite-int8").failed == ("drop",)
    with pytest.raises(ParityError, match="tflite-int8"):
        require_parity(bad)
    bad = verified(bad_run, gate=Gate(max_drop=100.0))
    assert comparison(bad, "quantization", "tflite-int8").passed
    assert "largest_lsb" in comparison(bad, "conversion", "tflite-int8").failed
    with pytest.raises(ParityError, match="tflite-int8"):
        require_parity(bad)


@pytest.mark.slow
def test_a_conversion_that_is_accepted_is_on_record_in_report_card_and_bundle(bad_run, edgecnn):
    own_run = bad_run
    refused = edgecnn("verify", own_run.path, "--max-drop", 100)
    assert refused.code == ParityError.exit_code and "--accept-conversion" in refused.err
    accepted = edgecnn("verify", own_run.path, "--max-drop", 100, "--accept-conversion")
    assert accepted.code == 0, accepted.err
    assert "WARNING: the conversion of tflite-int8 was accepted" in accepted.out
    report = parity_report(own_run)
    item = comparison(report, "conversion", "tflite-int8")
    assert report.accept_conversion and report.passed and item.accepted and item.failed
    assert not comparison(report, "conversion", "onnx-int8").accepted
    bundled = edgecnn("bundle", own_run.path, "--force")
    assert bundled.code == 0 and "WARNING: the conversion of tflite-int8 was accepted" in bundled.err
    assert "the conversion of tflite-int8 was accepted" in own_run.file(CARD).read_text()


def test_a_good_model_passes_a_strict_gate_of_its_own_drop(report):
    require_parity(report)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"schema": "edgecnn.parity/2"}'])
def test_an_invalid_report_is_refused_with_advice(own_run, content):
    own_run.file(PARITY).write_text(content)
    with pytest.raises(RunError, match=r"parity\.json is not a parity report: .*First: edgecnn verify"):
        parity_report(own_run)


def test_changed_test_images_are_refused(own_run):
    text, recorded = own_run.file("run.json").read_text(), own_run.info.data.split_hashes["test"]
    own_run.file("run.json").write_text(text.replace(recorded, "0" * 64))
    with pytest.raises(RunError) as caught:
        verified(own_run)
    assert "the test split of digits is not the one that" in str(caught.value)
    assert f"it had 385 images, now it has 385 (SHA-256 {recorded[:12]}" in str(caught.value)


def test_nothing_exported(own_run):
    for format_ in ("tflite", "onnx"):
        for precision in ("int8", "float32"):
            export_path(own_run, format_, precision).unlink()
    with pytest.raises(RunError, match="First: edgecnn export"):
        verified(own_run)


def test_only_verify_may_see_test_images(own_run):
    with pytest.raises(SplitError):
        open_dataset(own_run.recipe.data).load(("test",), height=8, width=8, channels=1, stage="train")


def test_model_bytes_round_trip(own_run):
    model = model_from_bytes(own_run.read(QAT_MODEL, "train"))
    again = model_from_bytes(model_bytes(model))
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, other)
