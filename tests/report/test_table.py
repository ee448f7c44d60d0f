"""The tables in a terminal: no line is wider than it, and nothing is left out."""

import re
from dataclasses import replace

import pytest

from edgecnn.report.table import (
    BOARD_HEADINGS,
    COMPARISON_HEADINGS,
    HEADINGS,
    board_rows,
    comparison_rows,
    parity_rows,
    text_table,
)
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import BoardRow

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


def test_verify_prints_tables_as_wide_as_the_terminal(own_run, edgecnn, monkeypatch):
    plain = edgecnn("verify", own_run.path, "--max-drop", 100).out
    assert max(len(line) for line in plain.splitlines() if "----" in line) > 100, "piped output is unchanged"
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = edgecnn("verify", own_run.path, "--max-drop", 100).out
    rules = [line for line in shown.splitlines() if "----" in line]
    assert len(rules) >= 4 and max(map(len, rules)) <= 80
