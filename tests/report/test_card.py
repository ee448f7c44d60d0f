"""The card: whatever the name of a class, file or dataset, Markdown renderers show it and do nothing else with it."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib", reason="the workstation side needs the train extra")

from edgecnn.calibrate.confidence import ChosenConfidence
from edgecnn.calibrate.threshold import Choice
from edgecnn.evaluate.scores import ScoreFigures
from edgecnn.files import canonical_json
from edgecnn.report.card import card, confidence_line, origin_lines
from edgecnn.report.markdown import plain
from edgecnn.report.stress import stress_lines
from edgecnn.run_info import (
    Duplicate,
    ImportedFrom,
    InputSize,
    RepresentativeInfo,
    StartedFrom,
    Unreadable,
)
from edgecnn.stress.stress_report import Condition, Mean, Measured, StressData, Stressed, StressedModel, StressReport
from edgecnn.tables import to_json
from edgecnn.verify.confidence import stored_confidence
from edgecnn.verify.parity import parity_report

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "a | b",
    "[x](javascript:alert(1))",
    "`c`",
    "**&lt;b&gt;**",
    "my_class",
    "\\|",
)


def renderers():
    import markdown
    from markdown_it import MarkdownIt

    yield lambda text: markdown.markdown(text, extensions=["tables"])
    yield MarkdownIt("commonmark").enable("table").render


@pytest.fixture
def text(drawn_run, finished_run):
    run = drawn_run(labels=HOSTILE, n=400, title="</p><script>alert(1)</script>")
    run.write_info(replace(run.info, seconds=1.0))
    return card(run, parity_report(run), stored_confidence(finished_run))


@pytest.mark.parametrize("render", renderers(), ids=("python-markdown", "markdown-it"))
def test_hostile_names_are_shown_and_do_nothing(text, render):
    html = render(text)
    allowed = {"h1", "h2", "p", "ul", "li", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "hr", "strong"}
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= allowed, "no link, picture or script"
    rows = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    cells = [len(re.findall(r"<t[hd]\b", row)) for row in rows]
    assert set(cells) == {9, 8} and len(rows) >= 6, "no more cells than the heading has"
    shown = re.sub(r"&(lt|gt|amp|quot);|&#(\d+);", lambda found: entity(found), html)
    for label in HOSTILE:
        assert label in shown


def entity(found):
    return chr(int(found[2])) if found[2] else {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[found[1]]


def test_usual_names_stay_as_they_are():
    assert plain("tflite-int8, my_class 5 (at most 1.00)") == "tflite-int8, my_class 5 (at most 1.00)"


def numbers_in(line):
    return re.findall(r"\d[\d.,]*\d%?|\d%?", line)


def data_of(run, **values):
    sizes = {"train": 900, "validation": 120, "test": 1300}
    return replace(run.info.data, split_sizes=sizes, used={"train": 870, "validation": 115}, **values)


def test_the_origin_counts_the_images_that_were_used_and_those_left_out(drawn_run):
    info = drawn_run(verified=False).info
    repeated = Duplicate(source="a", split="train", of_source="b", of_split="test")
    files = [Unreadable(source=str(n), split=split, reason="") for n, split in enumerate(("train", "test", None))]
    data = data_of(drawn_run(verified=False), duplicates=(repeated,), unreadable=tuple(files))
    trained, seconds = origin_lines(replace(info, data=data, seconds=1234.4))
    assert numbers_in(trained) == ["870", "115", "1,299", "3", "1"] and numbers_in(seconds) == ["1,234"]
    assert "3 unreadable files were left out" in trained and "1 exact duplicate across" in trained
    fewer = replace(data, duplicates=(repeated,) * 2, unreadable=tuple(files[:1]))
    trained, _ = origin_lines(replace(info, data=fewer, seconds=1.0))
    assert "1 unreadable file was left out" in trained and "2 exact duplicates across" in trained
    started = StartedFrom(run="ImageNet", sha256="a" * 64)
    assert len(origin_lines(replace(info, seconds=0.0, init=started))) == 2, "without a licence there is no line"


def test_the_time_with_folds_includes_theirs_and_an_import_names_its_calibration(drawn_run, fold_info):
    info = replace(drawn_run(verified=False).info, data=data_of(drawn_run(verified=False)))
    fold = fold_info(seconds=1000.0)
    trained, seconds = origin_lines(replace(info, folds=(fold, replace(fold, seconds=300.0)), seconds=40.0))
    assert numbers_in(trained) == ["870", "2"] and numbers_in(seconds) == ["1,340"]
    given = ImportedFrom(file="a.onnx", format="onnx", softmax_cut=False, range="Reads 0 to 1")
    (line,) = origin_lines(replace(info, imported=given))
    assert numbers_in(line) == ["1,300", "0", "1"]
    drawn = RepresentativeInfo(images=500, seed=3, drawn=470)
    (line,) = origin_lines(replace(info, imported=given, representative_dataset=drawn))
    assert numbers_in(line) == ["470", "1,300", "0", "1"]


CHOSEN = ChosenConfidence(
    temperature=1.5, not_fitted=None, threshold=0.65,
    choice=Choice(
        threshold=0.65, n=1300, answered=1001, errors=20, share_answered=0.77, error=0.02, bound=0.0345, target_error=0.04,
        confidence=0.95, tried=100,
    ),
    validation=ScoreFigures(
        threshold=0.65, n=1300, answered=1001, errors=20, share_answered=0.77, error=0.02, nll=0.9, nll_after=0.8,
        calibration_error=0.21, calibration_error_after=0.07,
    ),
)  # fmt: skip


def test_the_card_gives_the_calibration_error_before_and_after_and_the_proved_error():
    chosen = ["0.65", "77.00%", "2.00%", "95%", "3.45%"]
    line = confidence_line(CHOSEN)
    assert numbers_in(line) == ["1.500", "1,300", "21.00%", "7.00%", *chosen] and "validation images" in line
    assert "held-out images" in confidence_line(CHOSEN, folds=True)
    unfitted = confidence_line(replace(CHOSEN, not_fitted="no error on them", temperature=1.0))
    assert numbers_in(unfitted) == ["21.00%", *chosen] and "(no error on them)" in unfitted
    assert numbers_in(confidence_line(replace(CHOSEN, choice=None, threshold=0.0))) == [
        "1.500",
        "1,300",
        "21.00%",
        "7.00%",
    ]


def section(text, heading):
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_the_card_of_an_input_that_is_not_square(drawn_run, counted, root):
    """Height is before width, and boards and a stress test have their parts only if measured."""
    run = drawn_run()
    run.write_info(replace(run.info, seconds=1.0, input=InputSize(height=48, width=20, channels=3)))
    report, _ = counted
    plain_card = card(run, report, CHOSEN)
    assert "`article` (1,234 parameters), input 48x20x3, 3 classes: cat, dog, fox." in plain_card
    assert "Counted images, 13 images, used once" in section(plain_card, "Measured")
    assert [section(plain_card, name) for name in ("On emulated boards", "Under stress")] == ["", ""]
    assert "edgecnn run recipe.toml" in section(plain_card, "Made with") and "b" * 64 in plain_card

    def condition(strength, accuracy, agreement):
        measured = Measured(accuracy=accuracy, interval=(accuracy - 0.03, accuracy + 0.02))
        return Condition(
            strength=strength, value="v", float=None, int8=measured, agreement=agreement, agreement_interval=None
        )

    covered = Stressed(
        corruption="occlusion", unit="u", float=0.7, int8=0.625, agreement=0.875, lost=12.5,
        strengths=(condition(2, 0.75, 0.9), condition(4, 0.5, 0.8)),
    )  # fmt: skip
    turned = replace(covered, corruption="rotation", int8=0.71, float=None, agreement=None, lost=4.0)
    stressed = StressReport(
        schema="edgecnn.stress/1", name="drawn", kind="run",
        data=StressData(name="d", title="D", split="test", images=30, of=1300, sha256="a" * 64),
        seed=7, size_class="small", largest_side=None, models=(StressedModel(name="int8", engine="e", sha256="a" * 64),),
        clean=condition(0, 0.75, 0.95), corruptions=(turned, covered), complete=True, mean_float=None,
        mean_int8=Mean(accuracy=0.66, interval=(0.61, 0.7)), worst="occlusion", trained_robust=False,
        at_least=0.6, passed=True, test_uses=1, seconds=1.0, machine="m", versions={},
    )  # fmt: skip
    run.file("stress-test.json").write_text(canonical_json(to_json(stressed)))
    text = section(card(run, report, CHOSEN), "Under stress")
    assert "D, 30 of 1,300 test images" in text and "seed 7" in text and "this test split 1 time." in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["corruption", "1", "2", "3", "4", "5", "int8", "float", "agreement", "points lost"]
    assert rows[2:] == [
        ["none", *"-----", "75.00%", "-", "95.00%", "-"],
        ["rotation", "-", "75.00%", "-", "50.00%", "-", "71.00%", "-", "-", "4.00"],
        ["occlusion", "-", "75.00%", "-", "50.00%", "-", "62.50%", "70.00%", "87.50%", "12.50"],
        ["mean", *"-----", "66.00%", "-", "-", "9.00"],
    ]
    first, costs = (line for line in text.splitlines() if line.startswith("- "))
    assert numbers_in(first.replace("int8", "")) == [
        "66.00%",
        "61.00%",
        "70.00%",
        "75.00%",
        "72.00%",
        "77.00%",
        "60.00%",
    ]
    assert "passed" in first and "left out" not in first
    assert numbers_in(costs) == ["12.50"] and "occlusion costs the most" in costs
    (failed, _, robust) = stress_lines(replace(stressed, passed=False, complete=False, trained_robust=True))
    assert "FAILED" in failed and "left out" in failed and "train.robust" in robust
    assert "of float: 81.00%" in stress_lines(replace(stressed, mean_float=Mean(accuracy=0.81, interval=(0.8, 0.9))))[0]
