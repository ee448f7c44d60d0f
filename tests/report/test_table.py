"""Tables and lines of reports."""

import re
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from edgecnn.calibrate.confidence import Choice
from edgecnn.cli.verify import print_report
from edgecnn.labels import text_table
from edgecnn.report.sections import (
    EPOCH_CHOSEN,
    abstains_line,
    against_float,
    boards_section,
    comparisons_table,
    conversion_lines,
    flip_lines,
    fold_lines,
    images_line,
    int8_lines,
    matrix_section,
    models_table,
    program_lines,
    score_lines,
    stranger_line,
    warnings_of,
)
from edgecnn.run_info import Validated, Validation
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import (
    BoardRow,
    Confidence,
    Data,
    Int8Choice,
    MatrixCell,
    MatrixRow,
    ModelRange,
    PairedFigures,
    QatAgainstPtq,
    StrangerFigures,
)

BOARD = BoardRow(
    target="rpi-zero2w", cpu="cortex-a53", release="trixie", model="models/int8.onnx", split="golden", images=1000, accuracy=0.8641,
    accuracy_here=0.8639, agreement=0.9998, rows_that_differ=12, largest_difference=1, unit="LSB", limit=1, selftest=True, failed=(),
    passed=True, error=None, engine="onnxruntime 1.32.0 (CPUExecutionProvider)", against="onnxruntime 1.32.0 (CPUExecutionProvider)",
    versions={"python": "3.13.5"}, qemu="10.0",
)  # fmt: skip


def named_rows(table):
    return [dict(zip(table.headings, row, strict=True)) for row in table.rows]


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
    for headings, rows in (models_table(report), comparisons_table(report), boards_section([BOARD]).table):
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
    rows = named_rows(models_table(report))
    low, high = binomtest(9, 13).proportion_ci(method="wilson")
    expected = {
        "model": "tflite-int8",
        "accuracy": "69.23%",
        "95 % interval": f"{low:.2%} to {high:.2%}",
        "drop": "15.38",
    }
    assert rows[1].items() >= (expected | {"agreement": "69.23%", "bytes": "1,000"}).items()
    assert rows[0].items() >= {"model": "float", "accuracy": "84.62%", "drop": "-", "agreement": "-"}.items()
    (row,) = named_rows(comparisons_table(report))
    low, high = map(float, row["95 % interval"].split(" to "))
    assert -25 < low < 0 < 15.38 < high < 50
    assert (
        row.items()
        >= {
            "drop": "15.38",
            "lost": "3",
            "gained": "1",
            "McNemar p": f"{binomtest(3, 4).pvalue:.3g}",
            "worst class": "dog 75.00",
        }.items()
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
    calibration, abstains, line = score_lines(report)
    assert figures_in(calibration.partition("): ")[2].rstrip(".")) == ["7.00%", "21.00%", "1.500"]
    assert figures_in(abstains) == ["0.65", "81.25%", "3.75%"]
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
    _, (note,), table = matrix_section(rows)
    assert table.rows == [
        ("(1)", "90.00%", "-", "98.00% 3 LSB", "one 1"),
        ("(2)", "80.00%", "97.00% 2 LSB", "-", "two 2"),
    ]
    assert note.startswith("gone 3") and note.endswith("no such engine")


def test_a_boards_row_has_its_own_figures_before_this_machines():
    (row,) = named_rows(boards_section([BOARD]).table)
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
    rows = named_rows(boards_section([golden, ended]).table)
    shown = ("images", "accuracy", "agreement", "rows that differ", "largest difference", "self-test", "gate")
    assert [[row[name] for name in shown] for row in rows] == [
        ["1,200 golden", "-", "99.98%", "12", "1 LSB", "FAILED", "FAILED"],
        ["1,200 golden", "-", "-", "-", "-", "-", "Illegal instruction"],
    ]
    equal = replace(BOARD, rows_that_differ=0, largest_difference=0.0)
    (row,) = boards_section([equal]).table.rows
    assert row[5:7] == ("0", "0 LSB"), "no difference is a figure"


def test_the_number_of_images_is_given_with_the_number_that_the_data_have():
    data = Data(name="d", title="D", split="test", test_images=1300, test_sha256="a" * 64)
    part = replace(data, images=4700, own_test=False)
    lines = [
        images_line(item)
        for item in (
            data,
            replace(data, split="all"),
            replace(data, split="folds"),
            part,
            replace(part, own_test=True),
        )
    ]
    assert [re.findall(r"\d,\d+", line) for line in lines] == [["1,300"]] * 3 + [["1,300", "4,700"]] * 2
    assert ["all 1,300 images" in line for line in lines] == [False, True, True, False, False]
    assert ["not trained on it" in line for line in lines] == [False, False, True, False, False]
    assert ["its own test split" in line for line in lines] == [False] * 4 + [True]


def test_folds_are_described_with_their_accuracies_in_order_and_their_networks_once(counted, fold_info):
    report, _ = counted
    one = fold_info()
    folds = (one, replace(one, int8_accuracy=0.804), replace(one, int8_accuracy=0.882))
    data = replace(report.data, split="folds", test_images=1300)
    (line,) = fold_lines(replace(report, folds=folds, seen_images=500, data=data))
    assert figures_in(line.replace("int8", "")) == ["1,300", "3", "91.7%", "80.4%", "88.2%", "128", "96.", "500"]
    assert line.count("article at 128x96") == 1 and fold_lines(report) == []


def test_a_models_drop_is_against_the_float_model_and_not_the_file_it_was_made_from(counted):
    report, _ = counted
    (item,) = report.comparisons
    made = replace(item, kind="conversion", reference="fake-quantized", drop=0.5, agreement=0.99, largest_lsb=4)
    again = replace(item, kind="program", reference="other", drop=0.7)
    assert against_float(replace(report, comparisons=(made, item, again))) == {"tflite-int8": item}
    report = replace(report, comparisons=(item, made, again))
    assert models_table(report).rows[1][4] == "15.38"
    rows = comparisons_table(report).rows
    assert [row[0] for row in rows] == ["tflite-int8", "tflite-int8 (against other)"]
    (line,) = conversion_lines(report)
    assert line.startswith("tflite-int8 against fake-quantized: 99.00%") and "at most 4 LSB (passed: " in line
    assert [re.findall(r"answers of (\S+):", line) for line in flip_lines(report)] == [["float"], ["other"]]


def test_each_comparison_shows_its_verdict_its_differences_and_its_worst_class(counted):
    report, _ = counted
    (item,) = report.comparisons
    drops = tuple(replace(one, drop=drop) for one, drop in zip(item.per_class, (-3.25, None, -1.5), strict=True))
    failed = replace(item, passed=False, mean_lsb=0.375, largest_lsb=2, per_class=drops)
    shown = {
        "FAILED: ": failed,
        "passed: ": replace(failed, passed=True),
        "": replace(failed, kind="alternative"),
    }
    for verdict, one in shown.items():
        above = replace(report.chance, not_better=())
        (named,) = named_rows(comparisons_table(replace(report, chance=above, comparisons=(one,))))
        assert named["gate"] == f"{verdict}{item.limit}" and named["LSB mean, max"] == "0.38, 2"
        assert named["worst class"] == "fox -1.50", "the one that gained least"
    chance = replace(report.chance, not_better=("tflite-int8",))
    rows = [comparisons_table(replace(report, chance=chance, comparisons=(one,))).rows[0] for one in (item, failed)]
    assert [row[-1].partition(":")[0] for row in rows] == ["AT CHANCE LEVEL", "FAILED"]
    (plain,) = named_rows(comparisons_table(report))
    assert plain["LSB mean, max"] == "-", "float has no codes"


def test_a_reader_is_warned_of_chance_level_an_accepted_conversion_an_input_range_and_doubts(counted):
    report, _ = counted
    (item,) = report.comparisons
    accepted = replace(item, kind="conversion", accepted=True, failed=("drop", "largest_lsb"), largest_lsb=9)
    given = ModelRange(model="m", name="unit", scale=1 / 255, zero_point=-128, text="as given", warning="is it?")
    assert warnings_of(replace(report, chance=replace(report.chance, not_better=()))) == []
    warned = replace(
        report,
        chance=replace(report.chance, not_better=("tflite-int8",)),
        comparisons=(item, accepted),
        input_ranges=(replace(given, model="fine", warning=None), given),
        doubts=("is this it?",),
    )
    chance, conversion, *others = warnings_of(warned)
    assert figures_in(chance.replace("int8", "")) == ["69.23%", "42%", "87%", "53.85%", "13"]
    assert "drops 15.38 points and differs by 9 LSB" in conversion and others == ["m: is it?", "is this it?"]
    assert conversion_lines(warned)[0].count("ACCEPTED") == 1


def test_a_program_is_compared_with_edgecnns_own_path(counted):
    report, _ = counted
    (item,) = report.comparisons
    own = replace(item, kind="program", candidate="frigate", reference="float")
    other = replace(own, reference="tflite-int8", accuracy_candidate=0.625, accuracy_reference=0.75, agreement=0.8125)
    (line,) = program_lines(replace(report, comparisons=(item, own, other)))
    assert line.startswith("frigate, ") and figures_in(line.replace("int8", "")) == ["62.50%", "13", "75.00%", "81.25%"]
    assert line.index("62.50%") < line.index("tflite-int8") < line.index("75.00%")


def validated(accuracy, agreement, divergence=None):
    return Validated(
        accuracy=accuracy, agreement=agreement, lost=1, gained=2, standard_error=0.01, divergence=divergence
    )


CHOICE = Int8Choice(
    asked="auto", method="qat", decided_by="agreement", epoch=3, rounding="gptq", learning_rate=0.1,
    validation=Validation(
        n=1234, float=validated(0.95, 1.0), qat=validated(0.94, 0.975, 0.25), calibrated=validated(0.91, 0.925),
        qat_nearest=validated(0.93, 0.965), ptq=validated(0.92, 0.955, 0.75),
    ),
)  # fmt: skip


def test_how_int8_was_made_is_stated_with_each_ways_accuracy_and_agreement(counted):
    report, _ = counted

    def figures(choice):
        (line,) = int8_lines(replace(report, int8=choice))
        return figures_in(line.partition("Accuracy on ")[2]), line

    shown, line = figures(CHOICE)
    pairs = ["91.00%", "92.50%", "94.00%", "97.50%", "93.00%", "96.50%", "92.00%", "95.50%"]
    assert shown == ["1,234", "95.00%", *pairs] and "(epoch 3, kernels rounded by GPTQ), which agrees" in line
    assert figures(replace(CHOICE, rounding="nearest"))[0] == ["1,234", "95.00%", *pairs[:4], *pairs[6:]]
    shown, line = figures(replace(CHOICE, epoch=0, rounding="nearest"))
    assert shown == ["1,234", "95.00%", *pairs[2:4], *pairs[6:]] and "(epoch 0)" in line, "it is the calibrated model"
    shown, line = figures(replace(CHOICE, method="ptq", decided_by="accuracy"))
    assert "epoch" not in line and "post-training quantization, which classifies more" in line
    assert "as the recipe requests" in figures(replace(CHOICE, asked="qat"))[1]
    untrained = replace(CHOICE.validation, qat=None, calibrated=None, qat_nearest=None)
    skipped = replace(CHOICE, method="ptq", decided_by=None, epoch=None, rounding=None, validation=untrained)
    shown, line = figures(skipped)
    assert shown == ["1,234", "95.00%", *pairs[6:]] and "agrees with the float model on every validation image" in line
    assert "as the recipe requests" in figures(replace(skipped, asked="ptq"))[1]
    assert int8_lines(report) == []


@pytest.mark.parametrize(("method", "expected"), [("qat", ["0.25", "0.75"]), ("ptq", ["0.75", "0.25"])])
def test_a_tie_is_decided_by_the_divergence_of_the_chosen_method_given_first(counted, method, expected):
    report, _ = counted
    (line,) = int8_lines(replace(report, int8=replace(CHOICE, method=method, decided_by="divergence")))
    assert figures_in(line[line.index("nats") - 20 : line.index("nats")])[-2:] == expected


def test_divergence_that_decided_against_agreement_claims_no_tie(counted):
    report, _ = counted
    tied = replace(CHOICE.validation, ptq=validated(0.94, 0.975, 0.75))
    for validation, expected in ((CHOICE.validation, False), (tied, True)):
        (line,) = int8_lines(replace(report, int8=replace(CHOICE, decided_by="divergence", validation=validation)))
        assert ("ties with" in line) is expected and "diverge less" in line


@pytest.mark.parametrize("ptq", [validated(0.94, 0.975, 0.2), validated(0.92, 0.955, 0.25)])
def test_quantization_aware_training_that_no_figure_chose_says_what_would_have_chosen_the_other(counted, ptq):
    report, _ = counted
    unclear = replace(CHOICE, decided_by=None, validation=replace(CHOICE.validation, ptq=ptq))
    (line,) = int8_lines(replace(report, int8=unclear))
    assert "training (epoch 3, kernels rounded by GPTQ), since the scores of post-training" in line
    assert figures_in(line[line.index("nats") - 20 : line.index("nats")])[-2:] == [f"{ptq.divergence:.3g}", "0.25"]


def test_what_training_gained_has_the_opposite_sign_of_a_drop(counted):
    report, _ = counted
    figures = PairedFigures(
        reference="ptq", candidate="qat", n=200, accuracy_reference=0.9, accuracy_candidate=0.925, drop=-2.5,
        drop_interval=(-6.25, 0.75), drop_upper=0.5, lost=3, gained=8, agreement=0.9,
    )  # fmt: skip
    gain = QatAgainstPtq(**vars(figures), mcnemar_p_worse=0.967)
    line = int8_lines(replace(report, int8=replace(CHOICE, qat_against_ptq=gain)))[1]
    assert re.findall(r"[+-]\d\.\d\d", line) == ["+2.50", "-0.75", "+6.25"]
    assert re.findall(r"(\d) (?:images )?(gained|lost)", line) == [("8", "gained"), ("3", "lost")]
    assert line.rstrip(").").endswith("0.967")
    one = int8_lines(replace(report, int8=replace(CHOICE, qat_against_ptq=replace(gain, gained=1))))[1]
    assert "1 image gained" in one


def test_scores_without_a_temperature_say_why_and_a_bound_after_a_choice_of_epochs_says_what_it_ignores(counted):
    report, _ = counted
    tested = Confidence(
        n=13, answered=0, errors=0, share_answered=0.0, error=None, threshold=0.65, nll=0.9, nll_after=0.9,
        calibration_error=0.21, calibration_error_after=0.07, model="tflite-int8", temperature=1.0, not_fitted="too few",
    )  # fmt: skip
    calibration, abstains, _ = score_lines(replace(report, confidence=tested))
    assert figures_in(calibration.partition("): ")[2].rstrip(".")) == ["21.00%"] and "(too few)" in calibration
    assert figures_in(abstains) == ["0.65", "0.00%"] and abstains.endswith("with no errors.")
    assert score_lines(report) == [] and figures_in(abstains_line(replace(tested, threshold=0.0), None, "images")) == []
    assert "0.00% errors" in abstains_line(replace(tested, error=0.0), None, "images"), "0 errors are a figure"
    chosen = Choice(
        threshold=0.65, n=13, answered=9, errors=1, share_answered=9 / 13, error=1 / 9, bound=0.3, target_error=0.4,
        confidence=0.95, tried=100,
    )  # fmt: skip
    warned = replace(report, confidence=replace(tested, choice=chosen), int8=replace(CHOICE, epoch=0))
    assert score_lines(warned)[2] == EPOCH_CHOSEN, "epoch 0 was chosen as well"
    assert len(score_lines(replace(warned, int8=replace(CHOICE, epoch=None)))) == 3
    assert len(score_lines(replace(warned, confidence=tested))) == 3


def test_strangers_are_refused_only_if_the_decision_is_on(counted):
    report, _ = counted
    figures = StrangerFigures(
        model="tflite-int8", rate=0.05, not_fitted=None, known_images=90, validation_images=40, n=2000, refused=120,
        refused_wrong=70, refused_interval=(0.0504, 0.0712), decide=False,
    )  # fmt: skip
    lines = [stranger_line(replace(report, strangers=replace(figures, decide=decide))) for decide in (False, True)]
    assert ["off without --strangers" in line for line in lines] == [True, False]
    assert ["it would refuse 120" in line for line in lines] == [True, False]
    assert ["it refuses 120" in line for line in lines] == [False, True]
    none = stranger_line(replace(report, strangers=replace(figures, not_fitted="19 are needed")))
    assert "(19 are needed)" in none and "%" not in none and "does not detect strangers" in stranger_line(report)
