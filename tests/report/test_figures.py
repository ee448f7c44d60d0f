"""What the report shows."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest

from edgecnn.bundle.file import read_bundle
from edgecnn.evaluate.answers import HeldOut, write_held_out
from edgecnn.evaluate.statistics import ClassFound
from edgecnn.report.figures import (
    CONFUSED,
    Pair,
    answer_figures,
    bundle_figures,
    confusion,
    int8_name,
    pairs,
    run_answers,
    run_figures,
    summary,
)
from edgecnn.report.sections import accuracy_line, images_line
from edgecnn.run_info import ImportedFrom, InputSize
from edgecnn.runs import FLOAT_GRAPH, IMAGES, LAYERS, PARITY, write_json
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Confidence, StrangerFigures
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


TESTED = Confidence(
    n=13, answered=11, errors=1, share_answered=0.8125, error=0.0375, threshold=0.65, nll=0.9, nll_after=0.8,
    calibration_error=0.21, calibration_error_after=0.07, model="tflite-int8", temperature=1.5,
)  # fmt: skip


def figures_in(line):
    return re.findall(r"\d[\d.,]*\d%?|\d%?", line)


@pytest.mark.parametrize(
    ("interval", "accuracy", "expected"),
    [
        ((0.0, 0.1), 0.04, ["13", "0%", "10%"]),  # as wide as the limit: too few images
        ((0.0, 0.0999), 0.04, ["13", "6.0"]),
        ((0.61, 0.66), 0.645, ["13", "3.5"]),  # the end that is farther away
    ],
)
def test_too_few_images_are_those_whose_interval_is_ten_points_wide(counted, interval, accuracy, expected):
    report, _ = counted
    model = replace(report.models[1], accuracy=accuracy, accuracy_interval=interval)
    line = accuracy_line(report, model)
    shown = [f"{accuracy:.2%}", "95", f"{interval[0]:.2%}", f"{interval[1]:.2%}"]
    assert line.startswith("tflite-int8 ") and figures_in(line.replace("int8", "", 1)) == [*shown, *expected, "53.85%"]
    assert line.endswith("Always answering cat would be right on 53.85%."), "the most frequent class"


@pytest.mark.parametrize(
    ("divided", "words", "figures"),
    [
        ({"divided_by": "photo"}, "divided by photo", []),
        ({"divided_by": "group", "groups": 45, "test_groups": 9}, "are few", ["45", "9"]),
        ({"divided_by": "group", "groups": 450, "test_groups": 10}, "over groups", ["450", "10"]),
        ({"divided_by": "group", "groups": 450, "test_groups": 90}, "over groups", ["450", "90"]),
    ],
)
def test_the_summary_says_whether_photos_or_groups_were_divided(counted, divided, words, figures):
    report, _ = counted
    report = replace(report, data=replace(report.data, **divided))
    line = summary(report, report.models[1])[1]
    assert line == images_line(report.data) and words in line and "divided by" in line
    assert figures_in(line.partition("divided")[2]) == figures and ("few" in line) == ("are few" in words)


def test_the_summary_has_a_sentence_for_each_part_that_the_report_has(counted):
    report, _ = counted
    model = report.models[1]
    first, images = summary(report, model)
    assert first.startswith("tflite-int8 is right on 69.23%") and images == images_line(report.data)
    strangers = StrangerFigures(
        model="tflite-int8", rate=0.05, not_fitted=None, known_images=90, validation_images=40, n=2000, refused=120,
        refused_wrong=70, refused_interval=(0.0504, 0.0712), decide=False,
    )  # fmt: skip
    found = (ClassFound(label="ant", images=7, found=6), ClassFound(label="bee", images=4, found=4))
    report = replace(report, confidence=TESTED, strangers=strangers, found=found)
    _, _, weakest, _, threshold, last = summary(report, model)
    assert weakest.endswith("weakest: ant: 6 of 7 found") and threshold.startswith("Below a score of 0.65")
    assert last.startswith("Strangers (tflite-int8)")
