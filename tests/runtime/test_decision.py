"""Decisions: what counts as an answer, over a stream too, and out-of-distribution images."""

import dataclasses
from functools import partial

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="it is the engine under test")

from edgecnn.bundle.manifest import StrangerLimit
from edgecnn.labels import STRANGER
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.decision import (
    ABSTAIN,
    UNFAMILIAR,
    Smoother,
    Strangers,
    decide,
    p_values,
    similarity,
    softmax,
    unit_rows,
)
from edgecnn.runtime.engines import Tensor, onnxruntime
from edgecnn.runtime.model import Model, bundle_model
from edgecnn.versions import read_cpu

LABELS = ("cat", "dog", "bird")


def test_softmax():
    logits = np.log(np.array([[1, 2, 5], [4, 4, 2]], np.float32))
    scores = softmax(logits)
    assert scores.dtype == np.float32
    assert np.allclose(scores, [[0.125, 0.25, 0.625], [0.4, 0.4, 0.2]], atol=1e-6)


def test_softmax_of_extremes():
    assert np.allclose(softmax(np.array([1e4, -1e4, 1e4], np.float32)), [0.5, 0, 0.5])
    assert np.allclose(softmax(np.full(4, -1e30, np.float32)), 0.25)


def test_best_first():
    top, decision, reason, lead = decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, top_k=2)
    assert [(item.label, item.index) for item in top] == [("dog", 1), ("bird", 2)]
    assert top[0].score == pytest.approx(0.5) and type(top[0].score) is float
    assert (decision, reason) == ("dog", None) and lead == pytest.approx(0.2)


def test_the_first_of_equal_scores_wins():
    top, *_ = decide(np.array([0.3, 0.4, 0.4], np.float32), LABELS)
    assert [item.index for item in top] == [1, 2, 0]


def test_the_first_of_many_equal_scores_wins():
    """An unstable sort may keep the order of a few scores by chance, but not of a thousand."""
    scores = np.array([0.1, 0.3, 0.2, 0.3], np.float32).repeat(250)
    labels = [f"class {index}" for index in range(1000)]
    top, decision, *_ = decide(scores, labels, top_k=1000)
    assert [item.index for item in top] == [*range(250, 500), *range(750, 1000), *range(500, 750), *range(250)]
    assert decision == "class 250"


def test_three_classes_by_default():
    assert len(decide(np.array([0.1, 0.2, 0.4, 0.3], np.float32), (*LABELS, "fox")).top) == 3


def test_top_k_above_the_number_of_classes():
    assert len(decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, top_k=99).top) == 3


@pytest.mark.parametrize(("threshold", "decision"), [(0.5, "dog"), (0.51, ABSTAIN), (1.0, ABSTAIN), (0.0, "dog")])
def test_threshold(threshold, decision):
    result = decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, threshold=threshold)
    assert result.decision == decision
    assert result.reason == (None if decision == "dog" else "below_threshold")
    assert [item.label for item in result.top] == ["dog", "bird", "cat"]


def test_a_score_at_the_threshold_is_enough_and_the_next_smaller_float_is_not():
    for threshold in (0.25, 0.5, 0.75):
        below = np.nextafter(np.float32(threshold), np.float32(0))
        for score, label in ((np.float32(threshold), "cat"), (below, ABSTAIN)):
            assert decide(np.array([score, 0, 0], np.float32), LABELS, threshold=threshold).decision == label
            assert decide(np.array([score, 0, 0], np.float32), LABELS, margin=threshold).decision == label


def test_scores_that_are_not_numbers_abstain():
    assert decide(np.full(3, np.nan, np.float32), LABELS) == ((), ABSTAIN, "no_score", 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"top_k": 0}, *({name: value} for name in ("threshold", "margin") for value in (1.5, -0.1, float("nan")))],
)
def test_out_of_range(wrong):
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        decide(np.array([0.2, 0.5, 0.3], np.float32), LABELS, **wrong)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    ("scores", "threshold", "margin", "decision"),
    [
        ((0.5, 0.3), 0.5, 0.2, ("cat", None)),
        ((0.5, 0.3), 0.51, 0.2, (ABSTAIN, "below_threshold")),
        ((0.5, 0.375), 0.0, 0.126, (ABSTAIN, "below_margin")),
        ((0.5, 0.375), 0.0, 0.125, ("cat", None)),
        ((0.5, 0.5), 0.0, 0.0, ("cat", None)),
        ((1.0,), 1.0, 1.0, ("cat", None)),
    ],
)
def test_threshold_and_margin(scores, threshold, margin, decision, top_k):
    """The margin is to the second class, even if only one class is requested. An abstaining result keeps its classes."""
    result = decide(np.array(scores), LABELS, top_k, threshold, margin)
    assert (result.decision, result.reason) == decision
    assert [item.label for item in result.top] == list(LABELS[: min(top_k, len(scores))])


def states(smoother, decisions):
    """Return the state after each decision as its first letter, or - for no state."""
    return "".join((smoother.update(decision), (smoother.state or "-")[0])[1] for decision in decisions)


def test_each_frame_is_the_state_without_smoothing():
    assert states(Smoother(), "cdcc") == "cdcc"
    assert (Smoother().frames, Smoother().majority) == (1, False)


def test_a_thousand_frames_at_most():
    assert (Smoother.parse("1000").frames, Smoother.parse("majority:1000").frames) == (1000, 1000)


def test_in_a_row():
    assert states(Smoother.parse("3"), "ccdcccdcdddcc") == "-----cccccddd"


def test_majority():
    assert states(Smoother.parse("majority:5"), "ccdcddcdxxx") == "---ccdddddx"


def test_more_than_half():
    assert states(Smoother.parse("majority:4"), "ccddddcc") == "----dddd"
    assert states(Smoother.parse("majority:3"), "cdd") == "--d"
    assert states(Smoother.parse("majority:6"), "cccddd") == "------"


def test_update_returns_whether_the_state_changed():
    smoother = Smoother(2)
    assert [smoother.update(decision) for decision in "cccdd"] == [False, True, False, False, True]


def test_reset_forgets():
    smoother = Smoother(2)
    assert not smoother.reset()
    smoother.update("c")
    smoother.reset()
    assert not smoother.update("c") and smoother.state is None
    assert smoother.update("c") and smoother.reset() and smoother.state is None


@pytest.mark.parametrize(
    "text", ["0", "-1", "", "x", "2.5", "majority", "majority:", "majority:0", "most:3", ":3", "1001", "²"]
)
def test_invalid_smoothing(text):
    with pytest.raises(ValueError, match="expected"):
        Smoother.parse(text)


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


CPUINFO = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 avx2 {}\nbugs\t\t: none\n"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx512f avx512_vnni", False),
        ("x86_64", "avx_vnni", False),
        ("x86_64", "avx512f", True),
        ("x86_64", "avx512_4vnniw", True),
        ("AMD64", "fma", True),
        ("aarch64", "", False),
    ],
)
def test_sums_saturate_on_x86_without_vnni(machine, flags, expected, tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(CPUINFO.format(flags))
    monkeypatch.setattr(onnxruntime, "read_cpu", partial(read_cpu, tmp_path))
    monkeypatch.setattr(onnxruntime.platform, "machine", lambda: machine)
    assert onnxruntime.sums_saturate() is expected


def test_an_unknown_x86_is_assumed_to_saturate(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "read_cpu", partial(read_cpu, tmp_path))
    monkeypatch.setattr(onnxruntime.platform, "machine", lambda: "x86_64")
    assert onnxruntime.sums_saturate()


def test_sessions_without_saturation_give_the_same_codes(finished_run, monkeypatch):
    """This forces the slower form, which processors without VNNI run. It must open edgecnn's own graphs."""
    import numpy as np

    from edgecnn.export import export_path
    from edgecnn.runtime.engines import open_engine

    if onnxruntime.sums_saturate():
        pytest.skip("on this processor only the slower form gives the right codes")
    data = export_path(finished_run, "onnx", "int8").read_bytes()
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 1), np.uint8)
    monkeypatch.setattr(onnxruntime, "sums_saturate", lambda: False)
    fast = open_engine("onnxruntime", data, "onnx").run(images)
    monkeypatch.setattr(onnxruntime, "sums_saturate", lambda: True)
    np.testing.assert_array_equal(open_engine("onnxruntime", data, "onnx").run(images), fast)
