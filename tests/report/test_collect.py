"""What the report collects from a run or a bundle: whose answers, which threshold, where the model comes from, and what is missing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from edgecnn.bundle.read import read_bundle
from edgecnn.report.collect import bundle_figures, int8_name, run_figures
from edgecnn.report.figures import CONFUSED, answer_figures, confusion
from edgecnn.run_info import ImportedFrom, InputSize
from edgecnn.runs import FLOAT_GRAPH, LAYERS, PARITY, write_json
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Confidence
from edgecnn.verify.predictions import Predictions, read_predictions

LABELS = ("cat", "dog", "fox")


def confidence(model, temperature):
    return Confidence(
        n=13, answered=11, errors=1, share_answered=0.8125, error=0.0375, threshold=0.65, nll=0.9, nll_after=0.8,
        calibration_error=0.21, calibration_error_after=0.07, model=model, temperature=temperature,
    )  # fmt: skip


def test_the_int8_file_that_chose_the_threshold_is_shown_else_the_first():
    models = [
        SimpleNamespace(name=name, precision=precision)
        for name, precision in (("float", "float32"), ("onnx-int8", "int8"), ("tflite-int8", "int8"))
    ]

    def name(chosen, models=models):
        return int8_name(SimpleNamespace(models=models, confidence=chosen and SimpleNamespace(model=chosen)))

    assert (name("tflite-int8"), name(None), name("gone")) == ("tflite-int8", "onnx-int8", "onnx-int8")
    assert name(None, models[:1]) is None


def test_coverage_follows_the_scores_that_a_device_compares_and_a_score_at_the_threshold_is_answered():
    """Of five answers, the second and the last are wrong. With the temperature, two scores are exactly 0.5."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.55], np.float32)
    predictions = Predictions(
        true=np.array([0, 1, 2, 1, 0]), sources=list("abcde"), pictures={}, scores={"float": scores, "int8": scores},
        answers={"float": np.array([0, 1, 2, 1, 0]), "int8": np.array([0, 2, 2, 1, 1])},
        tempered=np.array([0.75, 0.5, 0.5, 0.25, 0.3], np.float32),
    )  # fmt: skip

    def at(temperature, threshold):
        found = answer_figures(predictions, "int8", temperature, LABELS)
        (point,) = [point for point in found.coverage if point.threshold == threshold]
        return (
            round(point.share_answered, 4),
            round(point.error, 4),
            [(one.model, one.temperature) for one in found.reliability],
        )

    plain = [("float", 1.0), ("int8", 1.0)]
    assert at(1.5, 0.5) == (0.6, round(1 / 3, 4), [*plain, ("int8", 1.5)])
    assert at(1.0, 0.5) == (0.6, round(1 / 3, 4), plain) and at(None, 0.5) == (1.0, 0.4, plain)
    classes = np.arange(CONFUSED + 2)
    matrix = confusion("int8", np.append(classes, 5), np.append(classes, 0) + 1, [str(n) for n in range(CONFUSED + 4)])
    assert len(matrix.most_confused) == CONFUSED and matrix.most_confused[0].true == "0"


def test_a_runs_figures_have_its_own_size_images_and_temperature_and_what_it_lacks(drawn_run):
    run = drawn_run()
    used = {"train": 300, "validation": 40}
    info = replace(run.info, input=InputSize(height=8, width=20, channels=3), data=replace(run.info.data, used=used))
    run.write_info(info)
    report, predictions = parity_report(run), read_predictions(run)

    def figures(**more):
        write_json(run.file(PARITY), replace(report, **more))
        return run_figures(run, predictions)

    def lacks(found):
        return {
            item.part.partition(",")[0]: item.command.rpartition("edgecnn ")[2].split()[0] for item in found.missing
        }

    found = figures()
    origin = found.origin
    assert (origin.input, origin.training_images, origin.validation_images) == ("8x20x3", 300, 40)
    assert (origin.parameters, origin.imported, found.kind, found.name) == (1234, None, "run", "drawn")
    assert lacks(found) == {"stress": "stress", "boards": "verify"} and len(found.reliability) == 2
    assert len(figures(confidence=confidence("tflite-int8", 0.8)).reliability) == 3
    assert len(figures(confidence=confidence("another", 0.8)).reliability) == 2, "another file's temperature"
    run.file(LAYERS).unlink()
    assert lacks(figures()) == {"noise by layer": "layers", "stress": "stress", "boards": "verify"}
    floats = [model for model in report.models if model.precision != "int8"]
    assert "stress" not in lacks(figures(models=tuple(floats))), "it is for int8"
    run.write_info(replace(info, imported=ImportedFrom(file="m.h5", format="Keras", softmax_cut=False, range="r")))
    run.file(FLOAT_GRAPH).write_bytes(b"")
    assert lacks(figures()) == {"stress": "stress", "boards": "verify"}, "it has no fake-quantized model"
    assert figures().origin.imported == "Keras"


def test_a_bundles_figures_have_its_own_size_and_images(root):
    bundle = read_bundle(root / "models/digits/digits.edgecnn")
    manifest = bundle.manifest
    data = manifest.provenance["data"] | {"split_sizes": {"train": 900, "validation": 80, "test": 7}}
    contract = replace(manifest.input, height=8, width=20)
    manifest = replace(manifest, input=contract, provenance=manifest.provenance | {"data": data})
    found = bundle_figures(replace(bundle, manifest=manifest))
    origin = found.origin
    assert (origin.input, origin.training_images, origin.validation_images) == ("8x20x1", 900, 80)
    assert (found.kind, found.name, found.passed, found.flips_in_all) == ("bundle", "digits", True, None)
