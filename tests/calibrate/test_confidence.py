"""Temperature, threshold and strangers' limit, chosen from answers to validation images."""

import dataclasses
import json
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("scipy", reason="the workstation side needs the train extra")
pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from scipy.stats import binom

from edgecnn.bundle.evidence import VALIDATION, read_validation, score_counts
from edgecnn.bundle.file import pack, parse_bundle, read_bundle, write_bundle
from edgecnn.bundle.manifest import Manifest
from edgecnn.calibrate.confidence import (
    TEMPERATURES,
    THRESHOLDS,
    VALUES,
    ChosenConfidence,
    choose_threshold,
    cross_fitted_scores,
    cross_fitted_strangers,
    fit_confidence,
    fit_temperature,
    known_codes,
    least_count,
    limit_of,
    similar_to,
)
from edgecnn.data import open_dataset
from edgecnn.errors import BundleError, RunError, SelftestError, ThresholdError
from edgecnn.evaluate.statistics import expected_calibration_error, nll, score_figures
from edgecnn.export import convert, export, export_path
from edgecnn.export.flatbuffer import read
from edgecnn.export.onnx import with_features
from edgecnn.interop import program_files
from edgecnn.labels import STRANGER
from edgecnn.recipe import build_recipe
from edgecnn.report.sections import stranger_line
from edgecnn.runs import CARD, CONFIDENCE, KNOWN, MEDIAPIPE, PARITY, STRANGERS, create_run
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import Strangers, softmax
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.selftest import require_pass, selftest
from edgecnn.stages.bundle import bundle_path, bundle_stage
from edgecnn.stages.choose import Choosing
from edgecnn.stages.train import train_stage
from edgecnn.stages.verify import verify
from edgecnn.train.settle import settle
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Gate
from edgecnn.verify.predictions import stored_strangers


def calibrated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth, and classes drawn from it."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2.0, size=(n, 10)).astype(np.float32)
    cumulated = np.cumsum(softmax(logits), axis=1)
    classes = (random.random((n, 1)) > cumulated).sum(axis=1).clip(max=9)
    return logits, classes


@pytest.mark.parametrize("planted", [0.3, 1.0, 2.5, 8.0])
def test_a_planted_temperature_is_recovered(planted):
    logits, classes = calibrated(20_000, 1)
    found = fit_temperature(logits * np.float32(planted), classes)
    assert found == pytest.approx(planted, rel=0.03)
    assert nll(logits * planted, classes, found) <= min(
        nll(logits * planted, classes, found * factor) for factor in (0.98, 1.0, 1.02)
    )


def test_the_temperature_removes_calibration_error_and_changes_no_answer():
    logits, classes = calibrated(20_000, 2)
    sure = logits * np.float32(3)
    before = expected_calibration_error(softmax(sure), classes)
    mended = softmax(sure / np.float32(fit_temperature(sure, classes)))
    assert before > 0.1
    assert expected_calibration_error(mended, classes) < 0.015
    assert np.array_equal(mended.argmax(axis=1), sure.argmax(axis=1))


def test_a_temperature_that_the_data_do_not_bound_stays_within_its_limits():
    perfect = np.eye(3, dtype=np.float32)
    assert fit_temperature(perfect, np.array([0, 1, 2])) == pytest.approx(TEMPERATURES[0], rel=1e-3)
    assert fit_temperature(perfect, np.array([1, 2, 0])) == pytest.approx(TEMPERATURES[1], rel=1e-3)


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and whether they are right, with probability score²: an overconfident model."""
    random = np.random.default_rng(seed)
    scores = random.beta(5, 1, n).astype(np.float32)
    return scores, random.random(n) < scores.astype(np.float64) ** 2


def true_error(threshold: float) -> float:
    """The error of `drawn` among scores at or above a threshold: the density of a score s is 5 s⁴."""
    return 1 - (5 / 7) * (1 - threshold**7) / (1 - threshold**5)


def test_the_chosen_threshold_is_the_smallest_whose_bound_is_at_most_the_target():
    scores, right = drawn(3000, 5)
    choice = choose_threshold(scores, right, 0.2)
    assert choice.tried == len(THRESHOLDS) == 100 and (THRESHOLDS[0], THRESHOLDS[61], THRESHOLDS[-1]) == (0, 0.61, 0.99)

    def proved(threshold: float) -> bool:
        """The bound without its formula: at an error of 20 %, this few errors would be rarer than 0.05 / 100."""
        answered = scores >= threshold
        return bool(binom.cdf((answered & ~right).sum(), answered.sum(), 0.2) <= 0.05 / 100)

    assert choice.threshold == next(threshold for threshold in THRESHOLDS if proved(threshold))
    assert choice.threshold > 0
    assert binom.cdf(choice.errors, choice.answered, choice.bound) == pytest.approx(0.05 / 100)
    assert choice.errors / choice.answered < choice.bound <= choice.target_error == 0.2
    assert choice.share_answered == np.mean(scores >= choice.threshold)


def test_the_promise_holds_on_simulated_data():
    """At most 5 % of 100 validation sets may lead to a threshold whose true error is above the target."""
    chosen = [choose_threshold(*drawn(2000, seed), 0.2).threshold for seed in range(100)]
    assert sum(true_error(threshold) > 0.2 for threshold in chosen) <= 5
    assert true_error(float(np.median(chosen))) > 0.15, "the promise holds only because hardly anything is answered"


def test_the_promise_holds_where_an_uncorrected_choice_would_break_it():
    """Uninformative scores, with a true error of 12 % everywhere and a target of 10 %: some threshold may look good by luck."""
    broken = uncorrected = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        scores, right = random.random(600), random.random(600) >= 0.12
        try:
            choose_threshold(scores, right, 0.10)
            broken += 1
        except ThresholdError:
            pass
        answered = scores >= np.array(THRESHOLDS)[:, None]
        errors = (answered & ~right).sum(axis=1)
        uncorrected += bool(np.any(binom.cdf(errors, answered.sum(axis=1), 0.10) <= 0.05))
    assert broken <= 5 < uncorrected


def test_if_no_threshold_qualifies_the_error_names_what_is_missing():
    right = np.ones(100, bool)
    with pytest.raises(
        ThresholdError, match=r"answers 100 of 100 images with 0 errors(.|\n)*149 answered images"
    ) as failure:
        choose_threshold(np.ones(100, np.float32), right, 0.05)
    assert failure.value.exit_code == 23
    assert isinstance(failure.value, ValueError)
    assert str(failure.value).count("\n") <= 2
    scores = np.repeat([0.2, 0.61, 0.9], [40, 50, 10]).astype(np.float32)  # the wrong answers are the unsure ones
    with pytest.raises(ThresholdError, match=r"closest, 0\.\d+, answers 60 of 100 images with 0 errors"):
        choose_threshold(scores, scores > 0.5, 0.02)
    choice = choose_threshold(np.ones(149, np.float32), np.ones(149, bool), 0.05)
    assert (choice.threshold, choice.share_answered, choice.errors) == (0.0, 1.0, 0)


def test_a_target_that_is_not_a_share_is_refused():
    with pytest.raises(ValueError, match="received 5"):
        choose_threshold(np.ones(2), np.ones(2, bool), 5)


def drawn_confidence(n=4000, true_temperature=3.0, seed=0):
    """Draw logits and classes of a model that is overconfident by the factor `true_temperature`."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, 5))
    scores = softmax(logits)
    classes = np.array([random.choice(5, p=row) for row in scores])
    return (true_temperature * logits).astype(np.float32), classes


def test_temperature_and_threshold_match_a_known_truth():
    found = fit_confidence(*drawn_confidence(), target_error=0.1)
    assert found.temperature == pytest.approx(3.0, rel=0.1)
    validation = found.validation
    assert validation.calibration_error_after < 0.03 < validation.calibration_error
    assert validation.nll_after < validation.nll
    assert validation.error <= found.choice.bound <= 0.1
    fresh = score_figures(*drawn_confidence(seed=1), found.temperature, found.threshold)
    assert fresh.error <= 0.1 and 0 < fresh.share_answered < 1


def test_a_run_with_few_validation_images_reports_that_no_temperature_was_fitted(own_run, edgecnn, monkeypatch):
    monkeypatch.setattr("edgecnn.calibrate.confidence.FEWEST", 1000)
    own_run.file(CONFIDENCE).unlink()
    why = "no temperature was fitted (206 validation images, at least 1000 are needed)"
    assert why in edgecnn("verify", own_run.path, "--full").out
    assert why in edgecnn("bundle", own_run.path, "--force", "--full").out
    assert why in own_run.file(CARD).read_text()
    assert read_bundle(bundle_path(own_run)).manifest.temperature == 1.0


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
    assert f"temperature of {manifest.temperature:.3f}" in card
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


def logits_of(count, wrong):
    """Return logits of three classes whose first answers are wrong."""
    classes = np.arange(count) % 3
    answers = (classes + (np.arange(count) < wrong)) % 3
    return 6 * np.eye(3, dtype=np.float32)[answers], classes


@pytest.mark.parametrize(
    ("count", "wrong", "why"),
    [
        (100, 9, None),
        (99, 9, "99 validation images, at least 100 are needed"),
        (100, 0, "no error on validation images"),
    ],
)
def test_a_temperature_needs_a_hundred_images_and_an_error(count, wrong, why):
    made = fit_confidence(*logits_of(count, wrong))
    assert made.not_fitted == why and (why is None) == (made.temperature != 1.0)
    assert (made.threshold, made.choice) == (0.0, None)
    if why is None:  # the score e^(6/T) / (e^(6/T) + 2) is the share that is right, 91 %
        assert made.temperature == pytest.approx(6 / np.log(2 * 0.91 / 0.09), rel=1e-3)
        assert made.validation.calibration_error == pytest.approx(np.exp(6) / (np.exp(6) + 2) - 0.91, abs=1e-5)
        assert made.validation.calibration_error_after < 1e-3


def test_a_threshold_of_the_other_folds_answers_images_that_reach_it_and_figures_name_the_chosen_one():
    logits, classes = logits_of(300, 12)
    found = cross_fitted_scores(logits, classes, np.arange(300) % 2, 0.42)
    assert (found.threshold, found.n, found.answered, found.errors) == (0.42, 300, 300, 12)
    assert found.calibration_error_after < found.calibration_error and found.nll_after < found.nll


@pytest.mark.parametrize(("rate", "count"), [(0.05, 19), (0.3, 3), (0.5, 1), (0.01, 99)])
def test_a_limit_needs_so_many_images_that_one_does_not_exceed_the_rate(rate, count):
    assert least_count(rate) == count


def test_the_limit_is_the_quantile_of_familiarities():
    """Scores and similarities rank four images alike, so their familiarities are 2 log(rank / 4); 0.3 (4 + 1) is between the first two."""
    features = np.array([[1, 0.1], [1, 0.3], [1, 0.6], [1, 0.9]], np.float32)[::-1]
    codes = known_codes(np.array([[1.0, 0.0]]))
    scores = np.array([0.3, 0.5, 0.7, 0.9], np.float32)
    limit = limit_of(scores, similar_to(features, codes), 0.3, codes)
    low, high = 2 * np.log(1 / 4), 2 * np.log(2 / 4)
    assert limit.limit == pytest.approx(low + 0.5 * (high - low))
    assert (limit.rate, limit.length, limit.neighbours, limit.known) == (0.3, 2, 1, "stranger/known.npy")
    assert limit.scores == pytest.approx((0.3, 0.5, 0.7, 0.9)) and list(limit.similarities) == sorted(
        limit.similarities
    )
    assert similar_to(features, codes) == pytest.approx(1 / np.hypot(1, [0.9, 0.6, 0.3, 0.1]))
    assert similar_to(features, codes[:0]).tolist() == [0, 0, 0, 0]


def logits_of_cross_fitted(random, count, sharpness):
    """Return logits of ten classes whose softmax, divided by `sharpness`, is what it claims, and the true classes."""
    calm = random.normal(0, 2, (count, 10))
    chances = np.exp(calm) / np.exp(calm).sum(axis=1, keepdims=True)
    classes = np.array([random.choice(10, p=row) for row in chances])
    return (sharpness * calm).astype(np.float32), classes


def test_each_fold_uses_what_the_others_choose():
    """One fold's scores are four times as confident as the others'. Its own temperature would correct that; theirs does not, and
    with its share in them, theirs are too high."""
    random = np.random.default_rng(1)
    parts = [logits_of_cross_fitted(random, 400, sharpness) for sharpness in (1, 1, 4)]
    logits, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
    fold = np.repeat([1, 2, 3], 400)
    found = cross_fitted_scores(logits, classes, fold, 0.0)
    others = fit_confidence(logits[:800], classes[:800]).temperature
    assert others == pytest.approx(1, rel=0.15)
    sure = score_figures(logits[800:], classes[800:], others, 0.0)
    assert sure.calibration_error_after > 0.2
    temperatures = [fit_confidence(logits[fold != one], classes[fold != one]).temperature for one in (1, 2, 3)]
    assert temperatures[0] > 1.5 < temperatures[1] and temperatures[2] == others
    each = [
        score_figures(logits[fold == one], classes[fold == one], temperature, 0.0)
        for one, temperature in zip((1, 2, 3), temperatures, strict=True)
    ]
    assert found.nll_after == pytest.approx(np.mean([part.nll_after for part in each]), rel=1e-5)
    seen = score_figures(logits, classes, fit_confidence(logits, classes).temperature, 0.0)
    assert found.nll_after > 1.05 * seen.nll_after, "a fit on the images themselves would be too optimistic"
    assert (found.n, found.answered) == (1200, 1200)
    assert found.errors == int(np.sum(logits.argmax(axis=1) != classes))


def test_a_threshold_is_chosen_by_the_other_folds():
    random = np.random.default_rng(2)
    logits, classes = logits_of_cross_fitted(random, 1500, 1)
    fold = np.arange(1500) % 5
    chosen = fit_confidence(logits, classes, 0.4)
    found = cross_fitted_scores(logits, classes, fold, chosen.threshold, 0.4)
    assert 0 < found.answered < 1500 and found.error <= 0.4
    assert found.threshold == chosen.threshold
    none = cross_fitted_scores(logits[:60], classes[:60], fold[:60], 0.9, 0.01)
    assert none.answered == 0 and none.error is None, "48 images cannot prove an error of 1 %"


def test_the_limit_for_strangers_refuses_its_rate_of_images_that_did_not_set_it():
    """Each fold has its own feature space: only the distances of its images to its own known images are compared."""
    random = np.random.default_rng(3)
    refused, count = [], 500
    for _ in range(20):
        scores = random.beta(5, 1, count).astype(np.float32)
        similar = random.normal(0.8, 0.05, count)
        images, limited = cross_fitted_strangers(scores, similar, np.arange(count) % 5, 0.05)
        assert limited
        refused.append(images.mean())
    assert np.mean(refused) == pytest.approx(0.05, abs=0.01)
    assert not cross_fitted_strangers(scores[:20], similar[:20], np.arange(20) % 5, 0.05)[1], "16 images are too few"


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
        limit = limit_of(scores, similar_to(features, codes), rate, codes)
        fresh, fresh_scores = around(random, [0, 1, 2], 100)
        refused.append(Strangers(limit, codes).refused(fresh_scores, fresh).mean())
    error = np.std(refused) / np.sqrt(len(refused))
    assert np.mean(refused) == pytest.approx(rate, abs=4 * error)


def test_strangers_are_found():
    random = np.random.default_rng(3)
    codes = known_codes(around(random, [0, 1, 2], 60)[0])
    features, scores = around(random, [0, 1, 2], 100)
    strangers = Strangers(limit_of(scores, similar_to(features, codes), 0.05, codes), codes)
    unlike, unlike_scores = around(random, [5, 6], 200)
    assert strangers.refused(unlike_scores, unlike).mean() > 0.95


def test_too_few_validation_images_set_no_limit():
    random = np.random.default_rng(4)
    codes = known_codes(around(random, [0], 20)[0])
    features, scores = around(random, [0], 19)
    assert limit_of(scores, similar_to(features, codes), 0.05, codes) is not None
    assert limit_of(scores[:18], similar_to(features[:18], codes), 0.05, codes) is None
    assert limit_of(scores, similar_to(features, codes[:0]), 0.05, codes[:0]) is None
    assert limit_of(scores, similar_to(features, codes[:2]), 0.05, codes[:2]).neighbours == 2
    assert len(limit_of(scores[:1], similar_to(features[:1], codes), 0.5, codes).scores) == 2, (
        "a bundle has two or more"
    )


def test_with_many_validation_images_a_bundle_keeps_quantiles():
    random = np.random.default_rng(6)
    codes = known_codes(around(random, [0, 1], 60)[0])
    features, scores = around(random, [0, 1], 3000)
    limit = limit_of(scores, similar_to(features, codes), 0.05, codes)
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
    train_stage(settle(recipe, dataset), dataset, made, Mock())
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
    line = stranger_line(dataclasses.replace(parity_report(run), strangers=dataclasses.replace(figures, decide=False)))
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
    from edgecnn.files import npy

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
    dataset, confidence, strangers = (
        open_dataset(own.recipe.data),
        own.stored(CONFIDENCE, ChosenConfidence),
        stored_strangers(own),
    )
    confidence = dataclasses.replace(confidence, threshold=0.9)
    Choosing(own, dataset, ("tflite", "int8"), print_nothing).scores(confidence, strangers)
    stated = read_validation({VALIDATION: own.file(VALIDATION).read_bytes()})
    images = dataset.load(("validation",), **vars(own.info.input), stage="choose")["validation"].images
    manifest = read_bundle(path).manifest
    assert (stated.images, stated.limit, stated.model) == (len(images), manifest.stranger.limit, "models/int8.tflite")
    for recognised in (True, False):
        classifier = Classifier.load(path, strangers=recognised)
        results = [classifier.classify(image, threshold=0.9) for image in images]
        assert score_counts(np.array([result.top[0].score for result in results])) == stated.counts
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
