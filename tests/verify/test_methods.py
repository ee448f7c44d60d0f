"""int8 from quantization-aware training or post-training quantization: what ships, what else is measured, and the report."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.file import read_bundle
from edgecnn.data import open_dataset
from edgecnn.evaluate.answers import export_answers
from edgecnn.evaluate.statistics import mcnemar_exact
from edgecnn.export import alternative, export_path
from edgecnn.recipe import build_recipe, load_recipe, merge
from edgecnn.runs import CARD, PARITY, QAT_MODEL
from edgecnn.runtime.selftest import selftest
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.pipeline import run_recipe
from edgecnn.stages.verify import verify
from edgecnn.tables import to_json
from edgecnn.verify.parity_report import Gate, require_parity
from edgecnn.verify.parity import parity_report


def valid(run, schema_of):
    jsonschema.validate(json.loads(run.read(PARITY, "verify")), schema_of("parity"))


def kinds(report, candidate):
    return [item.kind for item in report.comparisons if item.candidate == candidate]


def names(report):
    return [model.name for model in report.models]


@pytest.fixture
def ptq_run(own_run):
    """A run whose training chose post-training quantization: the finished run with that choice, taken through the stages again."""
    info = own_run.info
    own_run.write_info(replace(info, int8=replace(info.int8, asked="auto", method="ptq", decided_by="divergence")))
    return own_run


def test_post_training_quantization_is_measured_as_well(finished_run, schema_of):
    report = parity_report(finished_run)
    valid(finished_run, schema_of)
    assert kinds(report, "tflite-int8-ptq") == ["alternative"]
    assert kinds(report, "fake-quantized") == ["alternative"], "the limit holds for what ships"
    found = report.int8.qat_against_ptq
    assert (found.reference, found.candidate, found.n) == ("tflite-int8-ptq", "tflite-int8", 385)
    assert found.drop == pytest.approx(100 * (found.lost - found.gained) / 385)
    assert found.mcnemar_p_worse == mcnemar_exact(found.lost, found.gained, "greater")
    accuracy = {model.name: model.accuracy for model in report.models}
    assert found.accuracy_reference == accuracy["tflite-int8-ptq"]
    assert found.accuracy_candidate == accuracy["tflite-int8"]


def test_it_is_quantized_with_training_images_and_does_not_ship(finished_run):
    assert finished_run.info.representative_dataset.split == "train"
    bundle = read_bundle(bundle_path(finished_run))
    assert not any("ptq" in name for name in bundle.files)
    assert bundle.manifest.provenance["int8"] == to_json(finished_run.info.int8)
    assert finished_run.info.int8.method == "qat"


def test_the_card_states_what_training_gained(finished_run):
    card = finished_run.read(CARD, "bundle").decode()
    assert "int8 was made by quantization-aware training (epoch " in card
    assert (
        "Compared with post-training quantization, quantization-aware training changed the accuracy on the test split by "
        in card
    )
    assert "| tflite-int8-ptq |" in card


def test_a_bad_alternative_does_not_close_the_gate(own_run, plant):
    """Its logits are all one. It would fail the gate, but it does not ship."""

    def zero(*tensors):
        for tensor in tensors:
            tensor.codes.fill(0)

    plant(own_run, -1, zero, "int8-ptq")
    report = verify(own_run, open_dataset(own_run.recipe.data), gate=Gate(max_drop=2.0))
    found = next(item for item in report.comparisons if item.candidate == "tflite-int8-ptq")
    assert found.drop > 50 and found.passed
    require_parity(report)
    assert report.int8.qat_against_ptq.drop < -50


def test_if_it_is_better_it_ships_and_everything_follows(ptq_run, tiny_recipe, reporter, schema_of):
    assert alternative(ptq_run) == ("tflite", "int8-qat")
    qat = export_path(ptq_run, "tflite", "int8").read_bytes()
    ptq = export_path(ptq_run, "tflite", "int8-ptq").read_bytes()
    run_recipe(build_recipe(load_recipe(tiny_recipe)), ptq_run.path, reporter, max_drop=100.0)
    assert export_path(ptq_run, "tflite", "int8").read_bytes() == ptq
    assert export_path(ptq_run, "tflite", "int8-qat").read_bytes() == qat
    report = parity_report(ptq_run)
    valid(ptq_run, schema_of)
    assert names(report) == [
        "float", "tflite-int8", "tflite-float32", "onnx-int8", "onnx-float32", "tflite-int8-qat",
    ]  # fmt: skip
    assert kinds(report, "tflite-int8") == kinds(report, "onnx-int8") == ["quantization"], "no fake-quantized model"
    found = report.int8.qat_against_ptq
    assert (found.reference, found.candidate) == ("tflite-int8", "tflite-int8-qat")
    bundle = read_bundle(bundle_path(ptq_run))
    assert bundle.files["models/int8.tflite"] == ptq
    assert bundle.manifest.provenance["int8"]["method"] == "ptq"
    assert bundle.manifest.provenance["representative_dataset"] == to_json(ptq_run.info.representative_dataset)
    assert selftest(bundle).passed
    assert (
        "int8 was made by post-training quantization, which ties with the other method in agreement and accuracy on validation images"
        in ptq_run.read(CARD, "bundle").decode()
    )


@pytest.mark.slow
def test_a_recipe_with_only_post_training_quantization(tmp_path, monkeypatch, tiny_recipe, tiny_network, reporter):
    monkeypatch.chdir(tmp_path)
    qat = {"method": "ptq"}
    over = {"network": {"name": tiny_network}, "train": {"epochs": 2}, "qat": qat}
    recipe = build_recipe(merge(load_recipe(tiny_recipe), over))
    run, report = run_recipe(recipe, tmp_path / "run", reporter, max_drop=100.0)
    assert not run.file(QAT_MODEL).exists() and [phase for phase, _ in reporter.epochs] == ["float", "float"]
    assert names(report) == ["float", "tflite-int8", "tflite-float32", "onnx-int8", "onnx-float32"]
    assert report.int8.qat_against_ptq is None and alternative(run) is None
    assert selftest(read_bundle(bundle_path(run))).passed
    assert "int8 was made by post-training quantization, as the recipe requests" in run.read(CARD, "bundle").decode()


def test_the_file_used_in_training_is_the_exported_one(finished_run):
    """On validation images, the exports answer as recorded when training chose."""
    dataset = open_dataset(finished_run.recipe.data)
    split = dataset.load(("validation",), **vars(finished_run.info.input), stage="test")["validation"]
    for name, precision in (("qat", "int8"), ("ptq", "int8-ptq")):
        path = export_path(finished_run, "tflite", precision)
        found = export_answers(finished_run, path, "tflite", precision, split.images, lambda *progress: None)
        accuracy = np.mean(np.argmax(found.values, axis=1) == split.classes)
        assert accuracy == getattr(finished_run.info.int8.validation, name).accuracy
