"""Images that show none of the classes, detected from features and scores using only numpy."""

import dataclasses

import numpy as np
import pytest

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.labels import STRANGER
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import ABSTAIN, UNFAMILIAR, decide
from edgecnn.runtime.engines import Tensor
from edgecnn.runtime.model import Model, bundle_model
from edgecnn.runtime.stranger import Strangers, p_values, similarity, unit_rows

KNOWN = np.array([[100, 0, 0], [0, 127, 0], [127, 10, 0], [10, 127, 0]], np.int8)
"""Two classes of known images, along two axes of three."""

LIMIT = StrangerLimit(
    known="stranger/known.npy",
    length=3,
    neighbours=2,
    scores=(0.5, 0.75, 1.0),
    similarities=(0.8, 0.9, 1.0),
    limit=-2.5,
    rate=0.05,
)


def test_unit_rows():
    rows = unit_rows(np.array([[3, 4], [0, 0], [0, -2]], np.float32))
    assert rows.dtype == np.float32
    assert np.allclose(rows, [[0.6, 0.8], [0, 0], [0, -1]])


def test_similarity_is_the_mean_over_the_nearest():
    known = unit_rows(np.array([[1, 0], [0, 1], [-1, 0]], np.float32))
    images = np.array([[2, 0], [1, 1]], np.float32)
    assert np.allclose(similarity(images, known, 1), [1, np.sqrt(0.5)])
    assert np.allclose(similarity(images, known, 2), [0.5, np.sqrt(0.5)])
    assert np.allclose(similarity(images, known, 3), [0, np.sqrt(0.5) / 3])


def test_p_values():
    validation = np.array([0.5, 0.6, 1.0])
    found = p_values(np.array([0.4, 0.5, 0.55, 0.8, 1.0, 2.0]), validation)
    assert np.allclose(found, [1 / 4, 2 / 4, 2 / 4, 3 / 4, 1, 1])


def test_familiarity():
    """Computed by hand: the logs of both p-values, and the similarity's distance below the smallest, relative to the smallest's distance
    from the median."""
    limit = dataclasses.replace(LIMIT, neighbours=1)
    strangers = Strangers(limit, np.array([[1, 0, 0]], np.int8))
    features = np.array([[1, 0, 0], [0.85, np.sqrt(1 - 0.85**2), 0], [0.6, 0.8, 0]], np.float32)
    found = strangers.familiarity(np.array([1.0, 0.6, 0.4]), features)
    assert np.allclose(found, [np.log(1 * 1), np.log(2 / 4 * 2 / 4), np.log(1 / 4 * 1 / 4) - 2], atol=1e-5)


def test_strangers_point_elsewhere():
    strangers = Strangers(LIMIT, KNOWN)
    features = np.array([[5, 0, 0], [0, 0, 5], [0, 0.1, 0], [0, 0, 0]], np.float32)
    assert strangers.refused(np.array([0.9, 0.9, 0.9, 0.9]), features).tolist() == [False, True, False, True]
    assert strangers.refused(np.array([0.1]), features[:1]).tolist() == [False], "known features outweigh it"
    between = np.array([[1, 1, 1.2]], np.float32)
    assert strangers.familiarity(np.array([1.0]), between) > strangers.familiarity(np.array([0.5]), between)


def test_the_scale_of_features_does_not_matter():
    strangers, features = Strangers(LIMIT, KNOWN), np.random.default_rng(1).random((50, 3), np.float32)
    scores = np.linspace(0, 1, 50)
    one, other = strangers.familiarity(scores, features), strangers.familiarity(scores, features * np.float32(1000))
    assert np.allclose(one, other, atol=1e-5)


def test_a_stranger_is_not_a_label_and_comes_before_the_threshold():
    scores = np.array([0.2, 0.5, 0.3], np.float32)
    for threshold in (0.0, 1.0):
        result = decide(scores, ("cat", "dog", "bird"), threshold=threshold, stranger=True)
        assert (result.decision, result.reason) == (STRANGER, UNFAMILIAR)
        assert [item.label for item in result.top] == ["dog", "bird", "cat"]
    nothing = decide(np.full(3, np.nan, np.float32), ("cat", "dog", "bird"), stranger=True)
    assert (nothing.decision, nothing.reason) == (ABSTAIN, "no_score")


class Featured:
    """Gives an engine features: the mean of each channel, as codes of scale 0.5 and zero point -3."""

    def __init__(self, engine, length=3):
        self.engine, self.length = engine, length
        self.name, self.version, self.provider, self.format = "fake", "1.0", "none", "fake"
        self.input, self.output = engine.input, engine.output
        self.features = Tensor("features", (1, length), np.dtype(np.int8), 0.5, -3)

    def run(self, batch):
        return self.engine.run(batch)

    def run_both(self, batch):
        means = batch.astype(np.float32).mean(axis=(1, 2))
        return self.engine.run(batch), np.rint(means / 2 - 3).clip(-128, 127).astype(np.int8)


@pytest.fixture
def engine(fake_engine):
    return Featured(fake_engine(scale=1 / 128))


def test_a_models_features_are_real_values(engine, contract, pixels):
    model = Model(engine, contract)
    logits, features = model.logits_and_features(pixels)
    assert np.array_equal(logits, model.logits(pixels))
    codes = model.outputs_and_features(pixels)[1]
    assert codes.dtype == np.int8 and features.dtype == np.float32
    assert np.allclose(features, 0.5 * (codes.astype(float) + 3))


def flat(*colours):
    """Return single-colour images, given as offsets from mid-grey."""
    return [np.full((8, 8, 3), 128 + np.array(colour), np.uint8) for colour in colours]


def test_a_classifier_answers_stranger(engine, contract, held):
    bundle = held(contract, LIMIT)
    classifier = Classifier(bundle, bundle_model(engine, bundle), strangers=Strangers(LIMIT, KNOWN))
    images = flat((100, 0, 0), (0, 100, 0), (0, 0, 100))
    results = classifier.classify_batch(images)
    assert [result.decision for result in results] == ["red", "green", STRANGER]
    assert [result.reason for result in results] == [None, None, UNFAMILIAR]
    assert results[2].top[0].label == "blue"
    for image, result in zip(images, results, strict=True):
        assert classifier.classify(image)[:4] == result[:4]
    without = Classifier(bundle, bundle_model(engine, bundle))
    assert without.classify(images[2]).decision == "blue"


@pytest.mark.parametrize("strangers", [None, Strangers(LIMIT, KNOWN)], ids=["any image", "strangers"])
def test_scores_are_of_the_logits_divided_by_the_temperature(engine, contract, held, strangers):
    """Logits 48.5, -1.5 and -1.5, so that a temperature of 50 leaves a difference of 1."""
    bundle = held(contract, LIMIT, temperature=50.0)
    classifier = Classifier(bundle, bundle_model(engine, bundle), strangers=strangers)
    (red,) = flat((100, 0, 0))
    for result in (classifier.classify(red), *classifier.classify_batch([red])):
        assert [item.index for item in result.top] == [0, 1, 2]
        expected = [np.e / (np.e + 2), 1 / (np.e + 2), 1 / (np.e + 2)]
        assert [item.score for item in result.top] == pytest.approx(expected, abs=1e-5)


def test_features_of_another_length_are_refused(engine, contract, held):
    from edgecnn.errors import EngineError

    with pytest.raises(EngineError, match=r"features have shape \(3,\).* \(4,\)"):
        bundle_model(engine, held(contract, dataclasses.replace(LIMIT, length=4)))
