"""The tables in a terminal: no line is wider than it, and nothing is left out."""

import re
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from edgecnn.cli.parity import print_report
from edgecnn.report.table import (
    BOARD_HEADINGS,
    COMPARISON_HEADINGS,
    HEADINGS,
    board_rows,
    comparison_rows,
    flip_lines,
    matrix_table,
    parity_rows,
    score_lines,
    stranger_lines,
    text_table,
)
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import BoardRow, Confidence, MatrixCell, MatrixRow, StrangerFigures

BOARD = BoardRow(
    target="rpi-zero2w", cpu="cortex-a53", release="trixie", model="models/int8.onnx", split="golden", images=1000, accuracy=0.8641,
    accuracy_here=0.8639, agreement=0.9998, rows_that_differ=12, largest_difference=1, unit="LSB", limit=1, selftest=True, failed=(),
    passed=True, error=None, engine="onnxruntime 1.32.0 (CPUExecutionProvider)", against="onnxruntime 1.32.0 (CPUExecutionProvider)",
    versions={"python": "3.13.5"}, qemu="10.0",
)  # fmt: skip


def words(text):
    return sorted(re.findall(r"[^\s-]+", text))


def test_a_table_that_fits_is_one_table():
    rows = [("a", "1", "x"), ("bc", "22", "yy")]
    assert text_table(("name", "n", "what"), rows).splitlines() == [
        "name   n  what", "----  --  ----", "a      1  x", "bc    22  yy",
    ]  # fmt: skip
    assert text_table(("name", "n", "what"), rows, 14) == text_table(("name", "n", "what"), rows)


def test_columns_that_do_not_fit_follow_below_with_the_first_column():
    rows = [("a", "1", "x"), ("bc", "22", "a long cell")]
    assert text_table(("name", "n", "what"), rows, 14).splitlines() == [
        "name   n", "----  --", "a      1", "bc    22", "",
        "name  what", "----  -----------", "a     x", "bc    a long cell",
    ]  # fmt: skip


def test_a_cell_that_is_wider_than_the_terminal_is_folded():
    text = text_table(("name", "what"), [("a", "one two three four five six seven"), ("b", "x")], 26)
    assert text.splitlines()[2:] == ["a     one two three four", "      five six seven", "b     x"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_reports_tables_fit(finished_run, width):
    report = parity_report(finished_run)
    limit = "drop of at most 1.00 points with its whole 95 % interval, agreement of at least 98.50%"
    report = replace(report, comparisons=tuple(replace(item, limit=limit) for item in report.comparisons))
    for headings, rows in (
        (HEADINGS, parity_rows(report)),
        (COMPARISON_HEADINGS, comparison_rows(report)),
        (BOARD_HEADINGS, board_rows([BOARD])),
    ):
        text = text_table(headings, rows, width)
        assert max(map(len, text.splitlines())) <= width
        every = words(" ".join(cell for row in (headings[1:], *(row[1:] for row in rows)) for cell in row))
        shown = words(text)
        for word in set(every):
            assert shown.count(word) >= every.count(word), f"{word} is left out"


def test_a_reports_tables_are_printed_as_wide_as_the_terminal(finished_run, capsys, monkeypatch):
    report = parity_report(finished_run)
    print_report(report, full=True)
    plain = capsys.readouterr().out
    assert max(len(line) for line in plain.splitlines() if "----" in line) > 100, "piped output is unchanged"
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_report(report, full=True)
    rules = [line for line in capsys.readouterr().out.splitlines() if "----" in line]
    assert len(rules) >= 4 and max(map(len, rules)) <= 80


def test_a_line_for_each_model_that_the_gate_judges_and_one_for_the_verdict(counted, capsys):
    """One that does not ship, and a conversion within its limit, have none."""
    report, _ = counted
    print_report(report)
    shown = capsys.readouterr().out.splitlines()
    judged = [item for item in report.comparisons if item.kind not in ("alternative", "conversion", "seen")]
    named = [line.partition(":")[0] for line in shown]
    assert named[1 : len(judged) + 2] == [*(item.candidate for item in judged), "Gate"]
    assert {"69.23%", "84.62%", "15.38"} <= {
        *figures_in(shown[1])
    } and f"{report.models[1].size_bytes:,} bytes" in shown[1]
    failed = replace(report.comparisons[0], kind="conversion", passed=False, failed=("agreement",))
    print_report(replace(report, comparisons=(*report.comparisons, failed), passed=False))
    shown = capsys.readouterr().out.splitlines()
    assert sum("FAILED" in line for line in shown) == 2


def figures_in(line):
    return re.findall(r"\d[\d.,]*\d ?%|\d[\d.,]*", line)


def test_the_tables_figures_match_a_hand_count(counted):
    """11 and 9 of 13 answers are right; int8 loses three dogs and gains a fox."""
    report, _ = counted
    rows = [dict(zip(HEADINGS, row, strict=True)) for row in parity_rows(report)]
    low, high = binomtest(9, 13).proportion_ci(method="wilson")
    expected = {
        "model": "tflite-int8",
        "accuracy": "69.23%",
        "95 % interval": f"{low:.2%} to {high:.2%}",
        "drop": "15.38",
    }
    assert rows[1].items() >= (expected | {"agreement": "69.23%", "bytes": "1,000"}).items()
    assert rows[0].items() >= {"model": "float", "accuracy": "84.62%", "drop": "-", "agreement": "-"}.items()
    (row,) = (dict(zip(COMPARISON_HEADINGS, row, strict=True)) for row in comparison_rows(report))
    low, high = map(float, row["95 % interval"].split(" to "))
    assert -25 < low < 0 < 15.38 < high < 50
    assert (
        row.items()
        >= {"drop": "15.38", "McNemar p": f"{binomtest(3, 4).pvalue:.3g}", "worst class": "dog 75.00"}.items()
    )
    (line,) = flip_lines(report)
    assert figures_in(line.partition(": ")[0])[-2:] == ["4", "13"]
    shown = [part.strip() for part in line.partition(": ")[2].split(";")]
    assert [re.findall("cat|dog|fox", part) for part in shown] == [["dog", "dog", "dog", "cat"]] * 2 + [
        ["dog", "dog", "dog", "fox"]
    ]


def test_the_quality_of_scores_is_stated_in_the_order_of_its_words(counted):
    report, _ = counted
    tested = Confidence(
        n=13, answered=11, errors=1, share_answered=0.8125, error=0.0375, threshold=0.65, nll=0.9, nll_after=0.8,
        calibration_error=0.21, calibration_error_after=0.07, model="tflite-int8", temperature=1.5,
    )  # fmt: skip
    strangers = StrangerFigures(
        model="tflite-int8", rate=0.05, not_fitted=None, known_images=90, validation_images=40, n=2000, refused=120,
        refused_wrong=70, refused_interval=(0.0504, 0.0712), decide=False,
    )  # fmt: skip
    report = replace(report, confidence=tested, strangers=strangers)
    assert figures_in(score_lines(report)[0].partition("): ")[2]) == ["7.00%", "21.00%", "0.65", "81.25%", "3.75%"]
    (line,) = stranger_lines(report)
    assert figures_in(line.partition("): ")[2]) == ["5.00%", "120", "2,000", "6.00%", "95 %", "5.04%", "7.12%", "70"]


def test_an_engines_row_compares_it_with_each_other_engine():
    rows = (
        MatrixRow(
            name="one 1", accuracy=0.9, against=(MatrixCell(name="two 2", agreement=0.98, largest_lsb=3),), note=""
        ),
        MatrixRow(name="gone 3", accuracy=None, against=(), note="no such engine"),
        MatrixRow(
            name="two 2", accuracy=0.8, against=(MatrixCell(name="one 1", agreement=0.97, largest_lsb=2),), note=""
        ),
    )
    lines = matrix_table(rows).splitlines()
    assert [re.split(r"  +", line.strip()) for line in lines[2:4]] == [
        ["(1)", "90.00%", "-", "98.00% 3 LSB", "one 1"],
        ["(2)", "80.00%", "97.00% 2 LSB", "-", "two 2"],
    ]
    assert lines[4].startswith("gone 3") and lines[4].endswith("no such engine")


def test_a_boards_row_has_its_own_figures_before_this_machines():
    (row,) = (dict(zip(BOARD_HEADINGS, row, strict=True)) for row in board_rows([BOARD]))
    expected = {"board": "rpi-zero2w (cortex-a53)", "accuracy": "86.41%", "here": "86.39%", "agreement": "99.98%"}
    assert (
        row.items()
        >= (expected | {"rows that differ": "12", "largest difference": "1 LSB", "self-test": "passed"}).items()
    )


def test_a_board_that_failed_or_did_not_finish_is_not_shown_as_passed():
    golden = replace(
        BOARD, split="golden", accuracy=None, accuracy_here=None, selftest=False, passed=False, images=1200
    )
    ended = replace(
        golden,
        rows_that_differ=None,
        largest_difference=None,
        selftest=None,
        agreement=None,
        error="Illegal instruction",
    )
    rows = [dict(zip(BOARD_HEADINGS, row, strict=True)) for row in board_rows([golden, ended])]
    shown = ("images", "accuracy", "agreement", "rows that differ", "largest difference", "self-test", "gate")
    assert [[row[name] for name in shown] for row in rows] == [
        ["1,200 golden", "-", "99.98%", "12", "1 LSB", "FAILED", "FAILED"],
        ["1,200 golden", "-", "-", "-", "-", "-", "Illegal instruction"],
    ]
    equal = replace(BOARD, rows_that_differ=0, largest_difference=0.0)
    (row,) = board_rows([equal])
    assert row[5:7] == ("0", "0 LSB"), "no difference is a figure"
