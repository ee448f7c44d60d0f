"""Temperature and threshold: chosen on validation, carried by the bundle, applied by the runtime."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.canonical import pack
from edgecnn.bundle.manifest import Manifest
from edgecnn.bundle.read import parse_bundle, read_bundle
from edgecnn.calibrate.confidence import fit_confidence
from edgecnn.calibrate.temperature import FEWEST
from edgecnn.data import open_dataset
from edgecnn.errors import BundleError, RunError, ThresholdError
from edgecnn.evaluate.scores import score_figures
from edgecnn.runs import CARD, CONFIDENCE, PARITY
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import softmax
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.verify import verify


def drawn(n=4000, true_temperature=3.0, seed=0):
    """Draw logits and classes of a model that is overconfident by the factor `true_temperature`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, 5))
    scores = softmax(logits)
    classes = np.array([random.choice(5, p=row) for row in scores])
    return (true_temperature * logits).astype(np.float32), classes


def test_temperature_and_threshold_match_a_known_truth():
    found = fit_confidence(*drawn(), target_error=0.1)
    assert found.temperature == pytest.approx(3.0, rel=0.1)
    validation = found.validation
    assert validation.calibration_error_after < 0.03 < validation.calibration_error
    assert validation.nll_after < validation.nll
    assert validation.error <= found.choice.bound <= 0.1
    fresh = score_figures(*drawn(seed=1), found.temperature, found.threshold)
    assert fresh.error <= 0.1 and 0 < fresh.share_answered < 1


def test_without_errors_no_temperature_is_fitted():
    logits = 0.1 * np.eye(3, dtype=np.float32)[[0, 1, 2] * 40]
    found = fit_confidence(logits, np.array([0, 1, 2] * 40))
    assert (found.temperature, found.threshold, found.choice) == (1.0, 0.0, None)
    assert found.not_fitted == "no error on validation images"


def test_no_temperature_is_fitted_on_few_images():
    logits, classes = drawn(FEWEST)
    assert fit_confidence(logits, classes).temperature > 1.5
    assert fit_confidence(logits, classes).not_fitted is None
    few = fit_confidence(logits[:-1], classes[:-1])
    assert few.temperature == 1.0
    assert few.not_fitted == "99 validation images, at least 100 are needed"


def test_a_run_with_few_validation_images_reports_that_no_temperature_was_fitted(own_run, edgecnn, monkeypatch):
    monkeypatch.setattr("edgecnn.calibrate.confidence.FEWEST", 1000)
    own_run.file(CONFIDENCE).unlink()
    why = "no temperature was fitted (206 validation images, at least 1000 are needed)"
    assert why in edgecnn("verify", own_run.path, "--full").out
    assert why in edgecnn("bundle", own_run.path, "--force").out
    assert why in own_run.file(CARD).read_text()
    assert read_bundle(bundle_path(own_run)).manifest.temperature == 1.0


def test_a_target_that_cannot_be_proved_is_refused():
    with pytest.raises(ThresholdError):
        fit_confidence(*drawn(n=60), target_error=0.05)


def test_the_bundle_carries_the_choices_and_the_runtime_applies_them(own_run, edgecnn):
    result = edgecnn("verify", own_run.path, "--target-error", 0.2, "--full")
    assert result.code == 0, result.err
    assert "ignores that the epoch was chosen on the same validation images" in result.out
    result = edgecnn("bundle", own_run.path, "--force", "--json")
    assert result.code == 0, result.err
    chosen = json.loads(result.out)["confidence"]
    manifest = read_bundle(bundle_path(own_run)).manifest
    assert (manifest.temperature, manifest.threshold) == (chosen["temperature"], chosen["threshold"])
    assert manifest.provenance["confidence"] == chosen and chosen["model"] == "models/int8.tflite"
    assert chosen["choice"]["error"] <= chosen["choice"]["bound"] <= 0.2
    card = own_run.file(CARD).read_text()
    assert "Scores: logits are divided by" in card
    assert "ignores that the epoch was chosen on the same validation images" in card

    split = open_dataset(own_run.recipe.data).load(("validation",), **vars(own_run.info.input), stage="bundle")[
        "validation"
    ]
    bundle = read_bundle(bundle_path(own_run))
    sure = Classifier.load(bundle_path(own_run), precision="int8")
    images = split.images[:40]
    scores = softmax(sure.model.logits(images) / np.float32(5.0)).max(axis=1)
    threshold = float(np.median(scores))
    classifier = Classifier(
        dataclasses.replace(bundle, manifest=dataclasses.replace(manifest, temperature=5.0, threshold=threshold)),
        sure.model,
    )
    for image, score in zip(images, scores, strict=True):
        assert classifier.classify(image, threshold=0.0).top[0].score == pytest.approx(float(score), rel=1e-5)
        if abs(score - threshold) > 1e-5:
            assert (classifier.classify(image).decision == "abstain") == (score < threshold)
    assert np.mean(scores < threshold) > 0.4


@pytest.mark.parametrize("options", [(), ("--target-error", 0.2)])
def test_train_export_verify_bundle_suffices(own_run, edgecnn, options):
    """In the README's order, the bundle's report has the test figures of the bundle's own scores without a second verify."""
    for name in (CONFIDENCE, PARITY, "stages.json"):
        own_run.file(name).unlink()
    bundle_path(own_run).unlink()
    assert edgecnn("verify", own_run.path, *options).code == 0
    result = edgecnn("bundle", own_run.path)
    assert result.code == 0, result.err
    assert result.err.splitlines() == [f"run {own_run.path}"], "nothing is left to do"
    bundle = read_bundle(bundle_path(own_run))
    tested = json.loads(bundle.files["parity.json"])["confidence"]
    assert (tested["temperature"], tested["threshold"]) == (bundle.manifest.temperature, bundle.manifest.threshold)
    assert (tested["choice"] is not None) == bool(options)


@pytest.mark.parametrize("damage", [None, b"{", b'{"temperature": 2.0}', "other"])
def test_scores_that_were_not_verified_are_not_bundled(own_run, edgecnn, tmp_path, damage):
    chosen = json.loads(own_run.file(CONFIDENCE).read_text())
    own_run.file(CONFIDENCE).unlink()
    if damage == "other":
        own_run.file(CONFIDENCE).write_text(json.dumps({**chosen, "temperature": chosen["temperature"] + 1}))
    elif damage is not None:
        own_run.file(CONFIDENCE).write_bytes(damage)
    result = edgecnn("bundle", own_run.path, "--out", "out.edgecnn")
    assert result.code == RunError.exit_code and "First: edgecnn verify" in result.err
    assert not (tmp_path / "out.edgecnn").exists()


def test_a_target_that_cannot_be_met_leaves_the_test_split_untouched(own_run, edgecnn):
    before = own_run.file(PARITY).read_bytes()
    result = edgecnn("verify", own_run.path, "--target-error", 0.001)
    assert result.code == ThresholdError.exit_code, result.err
    assert own_run.file(PARITY).read_bytes() == before


def test_other_validation_images_are_refused(own_run):
    text = own_run.file("run.json").read_text()
    own_run.file("run.json").write_text(text.replace(own_run.info.data.split_hashes["validation"], "0" * 64))
    own_run.file(CONFIDENCE).unlink()
    with pytest.raises(RunError, match=r"validation .*digits"):
        verify(own_run, open_dataset(own_run.recipe.data))


def test_the_manifest_omits_values_without_effect(finished_run):
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
