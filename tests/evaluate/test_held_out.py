"""Held-out answers, and the quality of scores."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecnn.data.splits import SplitGroup, split_groups_text
from edgecnn.evaluate import answers
from edgecnn.evaluate.answers import (
    CHUNK,
    Answers,
    HeldOut,
    answers_csv,
    contract_of,
    in_chunks,
    joined_folds,
    read_held_out,
    timed,
    write_held_out,
)
from edgecnn.evaluate.statistics import (
    SUM_TOLERANCE,
    answered_at,
    expected_calibration_error,
    is_scores,
    nll,
    score_figures,
)
from edgecnn.labels import SPLITS_CSV
from edgecnn.recipe import build_recipe
from edgecnn.run_info import DataInfo, GroupInfo, InputSize, RunInfo
from edgecnn.runs import IMAGES, LEFT_OUT, Run, create_run
from edgecnn.runtime.decision import ABSTAIN, decide, softmax


def held(hashes, classes, fold, float_, int8):
    eye = 2 * np.eye(3, dtype=np.float32)
    return HeldOut(
        hashes=np.array(hashes), sources=np.array([f"{one}.jpg" for one in hashes]), classes=np.array(classes),
        fold=np.full(len(hashes), fold), float=2 * eye[float_], int8=eye[int8], similarity=np.linspace(0.2, 0.4, len(hashes)),
    )  # fmt: skip


PARTS = (held(["c", "a"], [1, 2], 1, [2, 1], [0, 0]), held(["b"], [0], 2, [1], [2]))


def test_a_bundles_answers_are_sorted_by_hash_and_name_the_class_then_float_then_int8():
    rows = answers_csv(joined_folds(PARTS), ("cat", "dog", "fox")).decode().splitlines()
    score = np.exp(2) / (np.exp(2) + 2)
    assert rows == [
        "sha256,class,fold,float,int8,score",
        f"a,fox,1,dog,cat,{score:.4f}",
        f"b,cat,2,dog,fox,{score:.4f}",
        f"c,dog,1,fox,cat,{score:.4f}",
    ]


def test_damaged_answers_of_folds_are_not_used(tmp_path):
    run, made = Run(tmp_path), joined_folds(PARTS)
    assert read_held_out(run) is None
    write_held_out(run, made)
    assert read_held_out(run).sha256 == made.sha256 != joined_folds(PARTS[:1]).sha256
    write_held_out(run, replace(made, fold=made.fold[:2]))
    assert read_held_out(run) is None, "one photo lacks its fold"


def recorded(folder):
    """Make a run folder that records no images."""
    run = create_run(build_recipe({"data": {"source": "not-here"}}), folder / "run")
    hashes = dict.fromkeys(("train", "validation", "test"), "a" * 64)
    data = DataInfo(
        name="d", title="D", native_shape=(8, 8, 3), labels=("cat", "dog"), fingerprint="b" * 64, split_hashes=hashes,
        split_sizes=dict.fromkeys(hashes, 9), used={"train": 9, "validation": 9}, duplicates=(), conflicts=(),
    )  # fmt: skip
    size = InputSize(height=8, width=8, channels=3)
    run.write_info(RunInfo(state="trained", data=data, input=size, parameters=1234, versions={}))
    return run


def test_the_images_that_taught_a_model_include_those_in_two_splits_and_mark_test_images_like_them(
    tmp_path, monkeypatch
):
    run = recorded(tmp_path)
    assert answers.taught_images(run) is None and answers.images_csv(run) is None, "a named dataset"
    rows = ("train,cat,aa,1", "test,cat,bb,2", "validation,cat,cc,3", "test,cat,aa,4", "test,dog,dd,5")
    run.file(IMAGES).write_text("\n".join(["split,class,sha256,file", *rows, ""]))
    known = {"aa": "train", "bb": "test", "cc": "validation", "dd": "test"}
    assert answers.taught_images(run) == known, "aa was trained on"
    run.file(LEFT_OUT).write_text("sha256,with\ndd,bb\naa,bb\n")
    assert answers.taught_images(run) == known | {"dd": answers.TIED}
    monkeypatch.setattr(answers, "MOST", 4)
    assert answers.images_csv(run).decode().splitlines() == [
        "sha256,split",
        "aa,train",
        "bb,test",
        "cc,validation",
        "dd,tied",
    ]
    info = run.info
    groups = GroupInfo(by="(.+)_", splits={"test": 2})
    run.write_info(replace(info, data=replace(info.data, groups=groups)))
    names = {"aa": "pile B", "bb": "pile A", "cc": "pile B", "dd": "pile C"}
    run.file(SPLITS_CSV).write_text(
        split_groups_text({64 * one[0]: SplitGroup(text, "train", "", "(.+)_") for one, text in names.items()})
    )
    monkeypatch.setattr(answers, "taught_images", lambda run: {64 * one[0]: split for one, split in known.items()})
    assert [line[62:] for line in answers.images_csv(run).decode().splitlines()[1:]] == [
        "aa,train,1", "bb,test,2", "cc,validation,1", "dd,test,3",
    ], "numbers, no names"  # fmt: skip
    monkeypatch.setattr(answers, "MOST", 3)
    assert answers.images_csv(run) is None


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_every_image_is_run_once_in_order_and_progress_ends_with_all(count):
    images, seen, progress = np.arange(count)[:, None], [], []
    outputs = in_chunks(
        lambda batch: seen.append(len(batch)) or 2 * batch, images, "m", lambda *done: progress.append(done)
    )
    assert np.array_equal(outputs, 2 * images) and sum(seen) == count and max(seen) <= CHUNK
    assert progress == [("m", min(end, count), count) for end in range(CHUNK, count + CHUNK, CHUNK)]


def test_only_models_without_a_time_are_timed(monkeypatch):
    common = {
        "format": "onnx",
        "precision": "float32",
        "engine": "none",
        "size_bytes": 1,
        "sha256": "",
        "values": np.zeros((1, 2)),
    }
    models = [
        Answers(name=name, ms_per_image=ms, call=len, **common) for name, ms in (("a", 0.0), ("b", None), ("c", 2.5))
    ]
    monkeypatch.setattr(
        "edgecnn.evaluate.answers.measure_interleaved",
        lambda calls, **options: {name: SimpleNamespace(p50_ms=7.12345, p90_ms=9.0) for name in calls},
    )
    assert [(item.name, item.ms_per_image) for item in timed(models, np.zeros(3))] == [
        ("a", 0.0),
        ("b", 7.1235),
        ("c", 2.5),
    ]


def test_an_input_that_is_not_square_keeps_its_sides():
    contract = contract_of(build_recipe({"data": {"source": "d"}}), (20, 48, 3))
    assert (contract.height, contract.width, contract.channels) == (20, 48, 3)


SCORES = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]], np.float32)
CLASSES = np.array([0, 1, 1, 2, 2])


def answers_scores(values, unit):
    return Answers(
        name="m", format="onnx", precision="float32", engine="none", size_bytes=1, sha256="", values=values, unit=unit
    )


def test_scores_are_a_softmax_of_logits_and_given_scores_stay():
    assert np.allclose(answers_scores(np.log(SCORES) + 7, "logit").scores, SCORES, atol=1e-6)
    assert answers_scores(SCORES, "score").scores is SCORES


def test_the_effect_of_a_threshold_and_a_temperature():
    """The second and the last image are wrong. A temperature of 0.5 squares the scores and normalises each row to a sum of 1."""
    found = score_figures(np.log(SCORES), CLASSES, 0.5, 0.75)
    squared = SCORES**2 / (SCORES**2).sum(axis=1, keepdims=True)
    assert squared.max(axis=1) == pytest.approx([0.7826, 0.5952, 0.9074, 0.9697, 0.9939], abs=1e-4)
    assert (found.n, found.answered, found.errors, found.threshold) == (5, 4, 1, 0.75)
    assert (found.share_answered, found.error) == (0.8, 0.25)
    assert found.nll == pytest.approx(-np.log([0.6, 0.4, 0.7, 0.8, 0.05]).mean(), abs=1e-6)
    assert found.nll_after == pytest.approx(-np.log(squared[range(5), CLASSES]).mean(), abs=1e-6)
    # each image is alone in its bin, so the error is the mean distance of the scores from 1 or from 0
    assert found.calibration_error == pytest.approx((0.4 + 0.5 + 0.3 + 0.2 + 0.9) / 5, abs=1e-6)


def test_a_score_at_the_threshold_is_answered():
    scores, right = np.array([0.25, 0.5, 0.75], np.float32), np.array([True, False, True])
    found = answered_at(scores, right, 0.5)
    assert (found.answered, found.errors, found.error) == (2, 1, 0.5)
    assert answered_at(scores, right, 0.8).error is None


def test_outputs_are_scores_if_each_row_is_one():
    assert is_scores(SCORES, 0.0)
    for row in ([0.7, 0.2, 0.2], [0.2, 0.2, 0.2], [1.5, -0.3, -0.2], [3.0, 2.0, 1.0]):
        assert not is_scores(np.vstack([SCORES, row]), 0.0)
    apart = np.array([[0.5, 0.25, 0.25 + 2 * SUM_TOLERANCE]])
    assert not is_scores(apart, 0.0) and is_scores(apart, 1 / 256), "half a code off each"


def drawn(count, classes):
    random = np.random.default_rng(count)
    return random.normal(scale=2.0, size=(count, classes)).astype(np.float32), random.integers(0, classes, count)


def test_nll_is_the_mean_log_of_the_true_class_score():
    logits, classes = drawn(200, 10)
    expected = -np.mean(np.log(softmax(logits)[np.arange(200), classes]))
    assert nll(logits, classes) == pytest.approx(expected, rel=1e-5)
    assert nll(np.zeros((4, 10), np.float32), classes[:4]) == pytest.approx(np.log(10))
    assert nll(np.array([[1e4, 0.0]], np.float32), np.array([1])) == pytest.approx(1e4)


def ece_by_loop(scores, classes, bins):
    """The definition, bin by bin."""
    score, right = scores.max(axis=1), scores.argmax(axis=1) == classes
    total = 0.0
    for index in range(bins):
        inside = (score > index / bins) & (score <= (index + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - score[inside].mean())
    return total


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 80))
def test_the_calibration_error_equals_its_definition(seed, bins, n):
    random = np.random.default_rng(seed)
    scores = softmax(random.normal(scale=3, size=(n, 4)))
    classes = random.integers(0, 4, n)
    assert expected_calibration_error(scores, classes, bins) == pytest.approx(
        ece_by_loop(scores, classes, bins), abs=1e-12
    )


def test_a_score_at_the_edge_of_a_bin_belongs_to_the_bin_below():
    """In (0, 0.5] a score of 0.5 is right, and in (0.5, 1] one of 0.75 is wrong. They do not cancel out."""
    scores = np.array([[0.5, 0.3, 0.2], [0.75, 0.15, 0.1]])
    assert expected_calibration_error(scores, np.array([0, 1]), 2) == pytest.approx((0.5 + 0.75) / 2)
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0]), 2) == 0, "1 is in the last bin"


def test_the_calibration_error_of_known_scores():
    certain = np.tile(np.array([[1.0, 0.0]], np.float32), (10, 1))
    assert expected_calibration_error(certain, np.zeros(10, int)) == 0
    assert expected_calibration_error(certain, np.ones(10, int)) == 1
    assert expected_calibration_error(certain, np.array([0] * 7 + [1] * 3)) == pytest.approx(0.3)


def test_an_image_is_answered_exactly_when_the_classifier_answers():
    logits, classes = drawn(300, 4)
    scores = softmax(logits)
    top, right = scores.max(axis=1), scores.argmax(axis=1) == classes
    for threshold in (0.0, 0.5, 0.9, float(top[17]), 1.0):
        decisions = [decide(row, "abcd", threshold=threshold).decision for row in scores]
        answered = np.array([decision != ABSTAIN for decision in decisions])
        result = answered_at(top, right, threshold)
        assert result.answered == answered.sum()
        assert result.errors == (answered & ~right).sum()
        assert result.share_answered == answered.mean()
        assert result.error == (result.errors / result.answered if result.answered else None)
