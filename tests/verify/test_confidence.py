"""Temperature and threshold: chosen on validation, carried by the bundle, applied by the runtime."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.manifest import Manifest
from edgecnn.bundle.read import parse_bundle, read_bundle
from edgecnn.bundle.write import pack
from edgecnn.data import open_dataset
from edgecnn.errors import BundleError, RunError, ThresholdError
from edgecnn.pipeline import bundle_path, confidence_stage
from edgecnn.runs import CONFIDENCE
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import softmax
from edgecnn.verify.confidence import confidence_figures, fit_confidence


def drawn(n=4000, true_temperature=3.0, seed=0):
    """Draw logits and classes of a model that is too sure by the factor `true_temperature`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, 5))
    scores = softmax(logits)
    classes = np.array([random.choice(5, p=row) for row in scores])
    return (true_temperature * logits).astype(np.float32), classes


def test_temperature_and_threshold_are_right_where_the_truth_is_known():
    found = fit_confidence(*drawn(), target_error=0.1)
    assert found["temperature"] == pytest.approx(3.0, rel=0.1)
    validation = found["validation"]
    assert validation["calibration_error_after"] < 0.03 < validation["calibration_error"]
    assert validation["nll_after"] < validation["nll"]
    assert validation["error"] <= found["choice"]["bound"] <= 0.1
    fresh = confidence_figures(*drawn(seed=1), found["temperature"], found["threshold"])
    assert fresh["error"] <= 0.1 and 0 < fresh["share_answered"] < 1


def test_without_an_error_the_data_set_no_temperature():
    logits = 0.1 * np.eye(3, dtype=np.float32)[[0, 1, 2] * 20]
    found = fit_confidence(logits, np.array([0, 1, 2] * 20))
    assert (found["temperature"], found["threshold"], found["choice"]) == (1.0, 0.0, None)


def test_a_target_that_cannot_be_proved_is_refused():
    with pytest.raises(ThresholdError, match="answered images would do"):
        fit_confidence(*drawn(n=60), target_error=0.05)


def test_the_bundle_carries_what_was_chosen_and_the_runtime_applies_it(own_run, edgecnn):
    result = edgecnn("bundle", own_run.path, "--target-error", 0.2, "--force", "--json")
    assert result.code == 0, result.err
    chosen = json.loads(result.out)["confidence"]
    manifest = read_bundle(bundle_path(own_run)).manifest
    assert (manifest.temperature, manifest.threshold) == (chosen["temperature"], chosen["threshold"])
    assert manifest.provenance["confidence"] == chosen and chosen["model"] == "models/int8.tflite"
    assert chosen["choice"]["error"] <= chosen["choice"]["bound"] <= 0.2
    assert "Scores: logits are divided by" in own_run.read("card.md", "bundle").decode()

    split = open_dataset(own_run.recipe.data).load(("validation",), **own_run.info["input"], stage="bundle")[
        "validation"
    ]
    bundle = read_bundle(bundle_path(own_run))
    sure = Classifier.load(bundle_path(own_run), precision="int8")
    images = split.images[:40]
    scores = softmax(sure.model.logits(images) / np.float32(5.0)).max(axis=1)
    threshold = float(np.median(scores))
    classifier = Classifier(
        bundle._replace(manifest=dataclasses.replace(manifest, temperature=5.0, threshold=threshold)), sure.model
    )
    for image, score in zip(images, scores, strict=True):
        assert classifier.classify(image, threshold=0.0).top[0].score == pytest.approx(float(score), rel=1e-5)
        if abs(score - threshold) > 1e-5:
            assert (classifier.classify(image).decision == "abstain") == (score < threshold)
    assert np.mean(scores < threshold) > 0.4


def test_the_choice_is_kept_and_needs_the_images_once(own_run, reporter):
    first = confidence_stage(own_run, None, reporter)
    own_run.file("recipe.toml").write_text(
        own_run.file("recipe.toml").read_text().replace('source = "digits"', 'source = "moved"')
    )
    assert confidence_stage(own_run, None, reporter) == first
    own_run.file(CONFIDENCE).unlink()
    with pytest.raises(LookupError, match="moved"):
        confidence_stage(own_run, None, reporter)


def test_other_validation_images_are_refused(own_run, reporter):
    info = own_run.info
    info["data"]["split_hashes"]["validation"] = "0" * 64
    own_run.write_info(info)
    with pytest.raises(RunError, match="Bundle on the same data"):
        confidence_stage(own_run, None, reporter)


def test_the_manifest_leaves_out_what_changes_nothing(finished_run):
    bundle = read_bundle(bundle_path(finished_run))
    plain = dataclasses.replace(bundle.manifest, temperature=1.0, threshold=0.0)
    table = json.loads(plain.to_json())
    assert "temperature" not in table and "threshold" not in table
    assert Manifest.from_json(plain.to_json()) == plain
    other = dataclasses.replace(plain, temperature=1.5, threshold=0.25)
    assert Manifest.from_json(other.to_json()) == other
    assert parse_bundle(pack(other, bundle.files), bundle.path).manifest == other
    for key, value in {"temperature": 0.0, "threshold": 1.5}.items():
        with pytest.raises(BundleError, match=key):
            Manifest.from_json(json.dumps({**table, key: value}).encode())
