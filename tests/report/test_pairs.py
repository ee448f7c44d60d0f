"""Two runs on common photos: whose answers are counted, and how photos are recognised."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from edgecnn.evaluate.held_out import HeldOut, write_held_out
from edgecnn.report.figures import Pair
from edgecnn.report.pairs import pairs, run_answers
from edgecnn.runs import IMAGES
from edgecnn.verify.predictions import Predictions

ONE = {
    "a": ("cat", "cat"),
    "b": ("cat", "cat"),
    "c": ("dog", "dog"),
    "d": ("dog", "cat"),
    "e": ("fox", "fox"),
    "g": ("fox", "fox"),
}

OTHER = {
    "a": ("cat", "dog"),
    "b": ("cat", "dog"),
    "c": ("dog", "fox"),
    "d": ("dog", "dog"),
    "e": ("dog", "dog"),
    "h": ("cat", "cat"),
}
"""Of the common photos a to e, e has another true class here."""


def test_only_common_photos_with_the_same_class_are_counted_and_the_first_run_is_the_reference():
    (pair,) = pairs([("one", ONE), ("other", OTHER)])
    assert (pair.reference, pair.candidate, pair.n) == ("one", "other", 4)
    assert (pair.accuracy_reference, pair.accuracy_candidate) == (0.75, 0.25)
    assert (pair.lost, pair.gained, pair.drop, pair.agreement) == (3, 1, 50.0, 0.0)
    assert pair.mcnemar_p == pytest.approx(binomtest(1, 4).pvalue)


def test_each_later_run_is_paired_with_the_first_or_the_reason_names_who_lacks_answers():
    apart = {"x": ("cat", "cat")}
    made = list(pairs([("one", ONE), ("other", OTHER), ("empty", {}), ("apart", apart)]))
    assert isinstance(made[0], Pair) and [isinstance(item, str) for item in made] == [False, True, True]
    assert "for empty" in made[1] and "one and apart" in made[2] and "no photo tested both" in made[2]
    (both,) = pairs([("one", {}), ("other", {})])
    assert "for one and other" in both
    assert list(pairs([])) == list(pairs([("one", ONE)])) == []


def test_a_users_test_photos_are_known_by_their_content_and_those_of_a_named_dataset_by_name(drawn_run):
    run = drawn_run(verified=False)
    made = Predictions(
        true=np.array([0, 1, 2]), sources=["1.jpg", "2.jpg", "3.jpg"], answers={"int8": np.array([0, 2, 1]), "float": np.array([1, 1, 1])},
        scores={}, tempered=np.empty(0), pictures={},
    )  # fmt: skip
    named = {"drawn: 1.jpg": ("cat", "cat"), "drawn: 2.jpg": ("dog", "fox"), "drawn: 3.jpg": ("fox", "dog")}
    assert run_answers(run, made, "int8") == named
    listed = [
        "split,class,sha256,file",
        f"train,cat,{'1' * 64},1.jpg",
        f"test,cat,{'2' * 64},1.jpg",
        f"test,dog,{'3' * 64},2.jpg",
    ]
    run.file(IMAGES).write_text("\n".join(listed) + "\n")
    assert list(run_answers(run, made, "int8")) == ["2" * 64, "3" * 64, "drawn: 3.jpg"]
    assert run_answers(run, made, "onnx-int8") == run_answers(run, None, "int8") == run_answers(run, made, None) == {}


def test_with_folds_the_held_out_answers_of_int8_count(drawn_run, fold_info):
    run = drawn_run(verified=False)
    fold = fold_info()
    run.write_info(replace(run.info, folds=(fold,)))
    eye = np.eye(3, dtype=np.float32)
    held = HeldOut(
        hashes=np.array(["1" * 64, "2" * 64]), sources=np.array(["1.jpg", "2.jpg"]), classes=np.array([2, 0]), fold=np.array([1, 2]),
        float=eye[[1, 1]], int8=eye[[0, 2]], similarity=np.zeros(2),
    )  # fmt: skip
    write_held_out(run, held)
    assert run_answers(run, None, None) == {"1" * 64: ("fox", "cat"), "2" * 64: ("cat", "fox")}
