"""The decision stranger: fitted on training and validation images, measured on test images, carried by the bundle."""

import dataclasses
import json
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.validation import VALIDATION, counted, read_validation
from edgecnn.bundle.write import write_bundle
from edgecnn.calibrate.strangers import VALUES, fit_limit, known_codes
from edgecnn.data import open_dataset
from edgecnn.errors import BundleError, RunError, SelftestError
from edgecnn.export import convert, export, export_path
from edgecnn.export.feature_output import with_features
from edgecnn.export.flatbuffer import read
from edgecnn.interop.programs import MEDIAPIPE, program_files
from edgecnn.labels import STRANGER
from edgecnn.recipe import build_recipe
from edgecnn.report.table import stranger_lines
from edgecnn.runs import CARD, KNOWN, PARITY, STRANGERS, create_run
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.selftest import require_pass, selftest
from edgecnn.runtime.stranger import Strangers
from edgecnn.stages.bundle import bundle_path, bundle_stage
from edgecnn.stages.choose import Choosing
from edgecnn.stages.train import train_stage
from edgecnn.stages.verify import verify
from edgecnn.verify.confidence import stored_confidence
from edgecnn.verify.gate import Gate
from edgecnn.verify.parity import parity_report
from edgecnn.verify.strangers import stored_strangers

RATE = 0.3
EXPORTS = (("tflite", "int8"), ("tflite", "float32"), ("tflite", "float16"), ("tflite", "int16x8"), ("onnx", "int8"),
           ("onnx", "float32"), ("onnx", "float16"))  # fmt: skip


def around(random, axes, count, length=16):
    """Draw features near some of the axes, with scores."""
    features = random.normal(0, 0.3, (count, length)).astype(np.float32)
    features[np.arange(count), random.choice(axes, count)] += 2
    return features, random.random(count).astype(np.float32)


@pytest.mark.parametrize(("validation", "rate"), [(100, 0.05), (30, 0.1), (19, 0.05), (200, 0.5)])
def test_known_images_are_refused_at_the_rate(validation, rate):
    refused = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        codes = known_codes(around(random, [0, 1, 2], 60)[0])
        features, scores = around(random, [0, 1, 2], validation)
        limit = fit_limit(scores, features, codes, rate)
        fresh, fresh_scores = around(random, [0, 1, 2], 100)
        refused.append(Strangers(limit, codes).refused(fresh_scores, fresh).mean())
    error = np.std(refused) / np.sqrt(len(refused))
    assert np.mean(refused) == pytest.approx(rate, abs=4 * error)


def test_strangers_are_found():
    random = np.random.default_rng(3)
    codes = known_codes(around(random, [0, 1, 2], 60)[0])
    features, scores = around(random, [0, 1, 2], 100)
    strangers = Strangers(fit_limit(scores, features, codes, 0.05), codes)
    unlike, unlike_scores = around(random, [5, 6], 200)
    assert strangers.refused(unlike_scores, unlike).mean() > 0.95


def test_too_few_validation_images_set_no_limit():
    random = np.random.default_rng(4)
    codes = known_codes(around(random, [0], 20)[0])
    features, scores = around(random, [0], 19)
    assert fit_limit(scores, features, codes, 0.05) is not None
    assert fit_limit(scores[:18], features[:18], codes, 0.05) is None
    assert fit_limit(scores, features, codes[:0], 0.05) is None
    assert fit_limit(scores, features, codes[:2], 0.05).neighbours == 2
    assert len(fit_limit(scores[:1], features[:1], codes, 0.5).scores) == 2, "a bundle has two or more"


def test_with_many_validation_images_a_bundle_keeps_quantiles():
    random = np.random.default_rng(6)
    codes = known_codes(around(random, [0, 1], 60)[0])
    features, scores = around(random, [0, 1], 3000)
    limit = fit_limit(scores, features, codes, 0.05)
    assert len(limit.scores) == len(limit.similarities) == VALUES
    assert limit.scores[0] == pytest.approx(scores.min()) and limit.scores[-1] == pytest.approx(scores.max())
    fresh, fresh_scores = around(random, [0, 1], 3000)
    assert Strangers(limit, codes).refused(fresh_scores, fresh).mean() == pytest.approx(0.05, abs=0.02)


def test_codes_keep_directions():
    features = np.array([[0.001, 0.002], [0, 0], [-300, 100]], np.float32)
    assert known_codes(features).tolist() == [[64, 127], [0, 0], [-127, 42]]


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos, tiny_network):
    """A verified run that recognises strangers, with every kind of export; shared: do not change it."""
    recipe = build_recipe(
        {
            "data": {"source": str(photos)},
            "network": {"name": tiny_network, "height": 12, "width": 12},
            # little training, so that some answers are wrong
            "train": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "augment": "shift", "shift": 0},
            "qat": {"method": "ptq"},
            "stranger": {"rate": RATE, "decide": True},
        }
    )
    made = create_run(recipe, tmp_path_factory.mktemp("runs") / "colours")
    dataset = open_dataset(recipe.data)
    train_stage(recipe, dataset, made, Mock())
    for pair in EXPORTS:
        export(made, *pair, dataset=dataset)
    verify(made, dataset, gate=Gate(max_drop=100.0, accept_conversion=True))
    bundle_stage(made)
    return made


def test_the_report_counts_known_images_that_are_refused(run):
    figures = parity_report(run).strangers
    chosen = stored_strangers(run)
    assert (figures.model, figures.rate, figures.not_fitted) == ("tflite-int8", RATE, None)
    assert figures.known_images == run.info.data.split_sizes["train"] == chosen.known_images
    assert figures.n == run.info.data.split_sizes["test"]
    test = open_dataset(run.recipe.data).load(("test",), **vars(run.info.input), stage="verify")["test"]
    results = Classifier.load(bundle_path(run), precision="int8").classify_batch(test.images)
    refused = [
        result.top[0].index != true
        for result, true in zip(results, test.classes, strict=True)
        if result.decision == STRANGER
    ]
    assert (figures.refused, figures.refused_wrong) == (len(refused), sum(refused))
    assert 0 < sum(refused) != len(refused) - sum(refused), "their numbers differ"
    assert 0 < figures.refused < figures.n / 2
    low, high = figures.refused_interval
    assert low <= figures.refused / figures.n <= high
    text = f"{figures.refused} of {figures.n} test images ({figures.refused / figures.n:.2%}; 95 % interval {low:.2%} to {high:.2%})"
    assert (
        f"the decision is on, as the recipe requests. Its limit is set to refuse {RATE:.2%}"
        in run.file(CARD).read_text()
    )
    assert f"it refuses {text}" in run.file(CARD).read_text()
    (line,) = stranger_lines(
        dataclasses.replace(parity_report(run), strangers=dataclasses.replace(figures, decide=False))
    )
    assert "the decision is off without --strangers" in line and f"it would refuse {text}" in line


def test_every_model_except_int16_gives_features_and_both_int8_files_have_equal_codes(run):
    images = read_bundle(bundle_path(run)).golden_inputs()
    models = {pair: open_engine(None, export_path(run, *pair).read_bytes(), pair[0]) for pair in EXPORTS}
    assert models.pop(("tflite", "int16x8")).features is None
    assert {engine.features.shape[1] for engine in models.values()} == {8}
    (tflite, tflite_features), (onnx, onnx_features) = (
        models["tflite", "int8"].run_both((images ^ 128).view(np.int8)),
        models["onnx", "int8"].run_both(images),
    )
    assert np.array_equal(tflite.view(np.uint8) ^ 128, onnx)
    assert np.array_equal(tflite_features.view(np.uint8) ^ 128, onnx_features)
    for io in ("uint8", "float32"):
        assert len(read(convert(run, "tflite", "int8", io)).outputs) == 1, "other programs expect only the answer"


def test_a_bundle_carries_the_decision_and_its_self_test_covers_the_features(run, tmp_path):
    bundle = read_bundle(bundle_path(run))
    manifest = bundle.manifest
    assert manifest.stranger == dataclasses.replace(stored_strangers(run).limit, decide=True)
    featured = [entry.file for entry in manifest.models if entry.golden_features]
    assert "models/int8.tflite" in featured and "models/int16x8.tflite" not in featured and len(featured) == 6
    report = selftest(bundle)
    require_pass(report)
    wrong = bundle.golden_features(manifest.model("models/int8.tflite")).copy()
    wrong[3, 2] += 20
    files = {**bundle.files, "golden/int8.tflite.features.npy": as_npy(wrong)}
    write_bundle(tmp_path / "wrong.edgecnn", dataclasses.replace(manifest, files={}), files)
    with pytest.raises(SelftestError, match="it differs by 20 LSB"):
        require_pass(selftest(read_bundle(tmp_path / "wrong.edgecnn"), ["litert"]))


def as_npy(array):
    from edgecnn.verify.golden import npy

    return npy(array)


def test_the_device_refuses_images_of_no_class(run, tmp_path, edgecnn, photos):
    bundle = bundle_path(run)
    Image.new("RGB", (12, 12), (250, 250, 40)).save(tmp_path / "yellow.png")
    known = photos / "red" / "0.png"
    line = json.loads(edgecnn("classify", tmp_path / "yellow.png", "--model", bundle, "--json").out)
    assert (line["decision"], line["reason"]) == ("stranger", "unfamiliar") and len(line["top"]) == 3
    assert edgecnn("classify", tmp_path / "yellow.png", "--model", bundle).out.endswith(": stranger\n")
    for option in ("--no-strangers", "--precision=int16x8"):
        line = json.loads(edgecnn("classify", tmp_path / "yellow.png", "--model", bundle, "--json", option).out)
        assert line["decision"] in ("red", "green", "blue") and line["reason"] is None
    said = edgecnn("classify", known, "--model", bundle, "--precision", "int16x8").err
    assert "strangers are not recognised: the model has no features" in said
    off, manifest = tmp_path / "off.edgecnn", read_bundle(bundle).manifest
    limit = dataclasses.replace(manifest.stranger, decide=False)
    write_bundle(off, dataclasses.replace(manifest, files={}, stranger=limit), read_bundle(bundle).files)
    assert "decide" not in json.loads(read_bundle(off).manifest.to_json())["stranger"]
    for options, expected in (((), ("red", "green", "blue")), (("--strangers",), ("stranger",))):
        line = json.loads(edgecnn("classify", tmp_path / "yellow.png", "--model", off, "--json", *options).out)
        assert line["decision"] in expected
    answers = [Classifier.load(bundle, precision=name).classify(known).decision for name in ("int8", "float32")]
    assert answers[0] == answers[1]


def test_the_bundle_counts_validation_images_by_the_devices_decisions(own, tmp_path):
    path, _ = bundle_stage(own, force=True)
    dataset, confidence, strangers = open_dataset(own.recipe.data), stored_confidence(own), stored_strangers(own)
    confidence = dataclasses.replace(confidence, threshold=0.9)
    Choosing(own, dataset, ("tflite", "int8"), print_nothing).scores(confidence, strangers)
    stated = read_validation({VALIDATION: own.file(VALIDATION).read_bytes()})
    images = dataset.load(("validation",), **vars(own.info.input), stage="choose")["validation"].images
    manifest = read_bundle(path).manifest
    assert (stated.images, stated.limit, stated.model) == (len(images), manifest.stranger.limit, "models/int8.tflite")
    for recognised in (True, False):
        classifier = Classifier.load(path, strangers=recognised)
        results = [classifier.classify(image, threshold=0.9) for image in images]
        assert counted(np.array([result.top[0].score for result in results])) == stated.counts
        shares = tuple(
            float(np.mean([result.decision == name for result in results])) for name in ("abstain", "stranger")
        )
        assert shares == pytest.approx(stated.shares(0.9, recognised)) and sum(shares) > 0
    assert stated.shares(0.8, True)[0] is None, "a different threshold from the one used for the counts"


def test_a_bundle_states_only_the_scores_of_its_own_choices(own, edgecnn):
    path, _ = bundle_stage(own, force=True)
    assert read_validation(read_bundle(path).files) is not None
    table = json.loads(own.file(VALIDATION).read_text())
    own.file(VALIDATION).write_text(json.dumps({**table, "temperature": table["temperature"] + 1}))
    with pytest.raises(RunError, match="First: edgecnn verify"):
        bundle_stage(own, force=True)
    for damage in ({"images": 3}, {"bounds": [0.5]}, {"schema": "edgecnn.validation/2"}):
        with pytest.raises(BundleError, match=VALIDATION):
            read_validation({VALIDATION: json.dumps({**table, **damage}).encode()})


def test_a_file_for_another_program_has_no_second_output(run):
    data = program_files(run, MEDIAPIPE)["model.tflite"]
    assert open_engine(None, data, "tflite").features is None


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run that a test may change."""
    import shutil

    from edgecnn.runs import open_run

    shutil.copytree(run.path, tmp_path / "copy")
    return open_run(tmp_path / "copy")


def print_nothing(what, done, total):
    pass


@pytest.mark.parametrize("name", [STRANGERS, KNOWN])
def test_a_bundle_needs_verified_files(own, name):
    own.file(name).unlink()
    with pytest.raises(RunError, match=r"no figures for its strangers\. First: edgecnn verify"):
        bundle_stage(own, force=True)


def test_a_run_without_the_decision_has_no_part_of_it(finished_run):
    assert parity_report(finished_run).strangers is None
    assert not finished_run.file(STRANGERS).exists()
    assert json.loads(finished_run.read(PARITY, "verify"))["strangers"] is None


def test_few_validation_images_are_reported_and_nothing_is_refused(own, photos, monkeypatch):
    monkeypatch.setattr("edgecnn.stages.choose.limit_of", lambda *arguments: None)
    own.file(STRANGERS).unlink()
    report = verify(own, open_dataset(own.recipe.data), gate=Gate(max_drop=100.0, accept_conversion=True))
    assert report.strangers.refused == 0
    assert "refusing 30% needs at least 3" in report.strangers.not_fitted
    bundle_stage(own, force=True)
    manifest = read_bundle(bundle_path(own)).manifest
    assert manifest.stranger is None and not any(entry.golden_features for entry in manifest.models)
    assert "none are detected" in own.file(CARD).read_text()


def test_the_second_output_does_not_change_the_first(finished_run):
    plain = export_path(finished_run, "tflite", "int8").read_bytes()
    codes = (read_bundle(bundle_path(finished_run)).golden_inputs() ^ 128).view(np.int8)
    one, other = (open_engine(None, data, "tflite") for data in (plain, with_features(plain)))
    assert one.features is None and other.features is not None
    assert np.array_equal(one.run(codes), other.run(codes))
    assert np.array_equal(one.run(codes), other.run_both(codes)[0])
