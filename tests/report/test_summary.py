"""The answer to "Is it good?": each sentence's figures, from tables that can be counted by hand."""

import re
from dataclasses import replace

import pytest

from edgecnn.report.figures import Confusion
from edgecnn.report.summary import WEAKEST, accuracy_line, summary, threshold_line, weakest_line
from edgecnn.report.table import images_line
from edgecnn.verify.parity_report import Confidence, StrangerFigures

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox")

CELLS = ((0, 0, 3), (0, 5, 1), (1, 1, 5), (2, 2, 1), (2, 0, 1), (3, 1, 2), (3, 3, 3), (3, 4, 1), (5, 5, 9), (5, 0, 1))
"""Ants are right 3 times of 4, bees 5 of 5, cats 1 of 2, dogs 3 of 6 and foxes 9 of 10; no image shows an eel."""

TESTED = Confidence(
    n=13, answered=11, errors=1, share_answered=0.8125, error=0.0375, threshold=0.65, nll=0.9, nll_after=0.8,
    calibration_error=0.21, calibration_error_after=0.07, model="tflite-int8", temperature=1.5,
)  # fmt: skip


def matrix(*cells):
    return Confusion(model="m", cells=cells, most_confused=())


def figures_in(line):
    return re.findall(r"\d[\d.,]*\d%?|\d%?", line)


def test_the_weakest_classes_are_the_three_of_lowest_accuracy_and_the_larger_comes_first():
    """Dogs and cats tie at one half; bees have no mistake, and eels no images."""
    line = weakest_line(matrix(*CELLS), LABELS)
    named = re.findall(r"(\w+) \((\d+) of (\d+) ", line)
    assert named == [("dog", "3", "6"), ("cat", "1", "2"), ("ant", "3", "4")] and len(named) == WEAKEST
    assert figures_in(line)[-2:] == ["1", "6"] and " has no test images" in line, "the eels"
    assert " have no test images" in weakest_line(matrix(*CELLS), (*LABELS, "gnu")), "the eels and gnus"


def test_a_class_without_a_mistake_is_never_weak():
    line = weakest_line(matrix((0, 0, 1200), (0, 1, 34), (1, 1, 7), (2, 2, 5)), LABELS[:3])
    assert re.findall(r"(\w+) \(([\d,]+) of ([\d,]+)", line) == [("ant", "1,200", "1,234")]
    assert "test images" not in line, "every class has some"
    perfect = weakest_line(matrix((0, 0, 4), (1, 1, 7)), LABELS[:2])
    assert "no mistakes" in perfect and not figures_in(perfect)


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
    ],
)
def test_the_summary_says_whether_photos_or_groups_were_divided(counted, divided, words, figures):
    report, _ = counted
    report = replace(report, data=replace(report.data, **divided))
    line = accuracy_line(report, report.models[1])
    assert words in line and figures_in(line.partition("53.85%")[2]) == figures
    assert ("few" in line.partition("53.85%")[2]) == ("are few" in words)
    assert all(figure in images_line(report.data) for figure in figures) and "divided by" in images_line(report.data)


def test_the_summary_has_a_sentence_for_each_part_that_the_report_has(counted):
    report, _ = counted
    model = report.models[1]
    first, last = summary(report, model, None, LABELS[:3])
    assert first.startswith("tflite-int8 is right on 69.23%") and last.startswith("Strangers: the device assigns")
    strangers = StrangerFigures(
        model="tflite-int8", rate=0.05, not_fitted=None, known_images=90, validation_images=40, n=2000, refused=120,
        refused_wrong=70, refused_interval=(0.0504, 0.0712), decide=False,
    )  # fmt: skip
    report = replace(report, confidence=TESTED, strangers=strangers)
    first, weakest, threshold, last = summary(report, model, matrix((0, 0, 6), (0, 2, 1), (1, 1, 4)), LABELS[:3])
    assert weakest.startswith("Weakest classes: ant (6 of 7") and threshold.startswith("Below a score of 0.65")
    assert last.startswith("Strangers (tflite-int8)")


def test_the_threshold_is_given_with_the_share_answered_and_then_its_errors(counted):
    report, _ = counted

    def line(**values):
        (text,) = threshold_line(replace(report, confidence=replace(TESTED, **values)))
        return text

    assert figures_in(line()) == ["0.65", "81.25%", "3.75%"]
    assert figures_in(line(threshold=0.01, error=0.0)) == ["0.01", "81.25%", "0.00%"], "0 errors are a figure"
    assert figures_in(line(share_answered=0.0, error=None)) == ["0.65", "0.00%"]
    assert figures_in(line(threshold=0.0)) == [], "it always answers"
