"""The model card."""

import json
import re
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib", reason="the workstation side needs the train extra")

from edgecnn.bundle.file import read_bundle
from edgecnn.calibrate.confidence import Choice, ChosenConfidence
from edgecnn.evaluate.statistics import ScoreFigures
from edgecnn.files import canonical_json
from edgecnn.report.card import card, metadata_block, origin_lines, plain
from edgecnn.report.sections import abstains_line, calibration_line
from edgecnn.report.table import choice_section, judged_line, stress_lines
from edgecnn.run_info import (
    Candidate,
    Duplicate,
    ImportedFrom,
    InputSize,
    NetworkChoice,
    RepresentativeInfo,
    StartedFrom,
    Unreadable,
)
from edgecnn.runs import CONFIDENCE
from edgecnn.stress.stress_report import Condition, Mean, Measured, StressData, Stressed, StressedModel, StressReport
from edgecnn.tables import build, to_json
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Report

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
    return card(run, parity_report(run), finished_run.stored(CONFIDENCE, ChosenConfidence))


@pytest.mark.parametrize("render", renderers(), ids=("python-markdown", "markdown-it"))
def test_hostile_names_are_shown_and_do_nothing(text, render):
    html = render(text)
    allowed = {"h1", "h2", "p", "ul", "li", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "hr", "strong"}
    assert set(re.findall(r"<([a-z0-9]+)", html)) <= allowed, "no link, picture or script"
    rows = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    cells = [len(re.findall(r"<t[hd]\b", row)) for row in rows]
    assert set(cells) == {9, 10} and len(rows) >= 6, "no more cells than the heading has"
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
    line = abstains_line(CHOSEN.validation, CHOSEN.choice, "held-out images")
    assert numbers_in(line) == ["0.65", "77.00%", "2.00%", "95%", "3.45%"] and "held-out images" in line
    line = calibration_line(CHOSEN.validation, CHOSEN, "held-out images")
    assert numbers_in(line) == ["1,300", "7.00%", "21.00%", "1.500"] and "held-out images" in line
    unfitted = replace(CHOSEN, not_fitted="no error on them", temperature=1.0)
    line = calibration_line(unfitted.validation, unfitted, "held-out images")
    assert numbers_in(line) == ["1,300", "21.00%"] and "(no error on them)" in line


def section(text, heading):
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_the_card_of_an_input_that_is_not_square(drawn_run, counted, root):
    """Height is before width, and boards and a stress test have their parts only if measured."""
    run = drawn_run()
    run.write_info(replace(run.info, seconds=1.0, input=InputSize(height=48, width=20, channels=3)))
    report, _ = counted
    plain_card = card(run, report, CHOSEN)
    assert "`article` (1,234 parameters), input 48x20x3, 3 classes: cat, dog, fox." in plain_card
    measured = section(plain_card, "Measured")
    assert "Counted images, 13 test images" in measured and "21.00% without the temperature of 1.500" in measured
    assert "at most 3.45%" in measured and "15.38" in section(plain_card, "Comparisons")
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
    _, first, costs = (line for line in text.splitlines() if line.startswith("- "))
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


huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is in the dev extra")


def test_a_card_is_read_by_the_hubs_own_class(finished_run):
    report = parity_report(finished_run)
    read = huggingface_hub.ModelCard(card(finished_run, report, finished_run.stored(CONFIDENCE, ChosenConfidence)))
    assert (read.data.pipeline_tag, read.data.library_name, read.data.model_name) == (
        "image-classification", "edgecnn", "tiny",
    )  # fmt: skip
    assert {result.metric_name: result.metric_value for result in read.data.eval_results} == {
        f"accuracy, {model.name}": model.accuracy for model in report.models
    }
    assert read.text.startswith("\n# tiny\n")


def test_names_that_yaml_would_misread(finished_run):
    report = parity_report(finished_run)
    for name in ("yes", "1e3", 'a: "b"', "- x", "---\nb: c", "\u2028", "{x}"):
        data = replace(report.data, name=name, title=name)
        read = huggingface_hub.ModelCard(metadata_block(name, replace(report, data=data)))
        assert read.data.model_name == name and read.data.eval_results[0].dataset_name == name


def test_shipped_cards_begin_with_their_own_figures(root):
    cards = sorted((root / "models").glob("*/card.md"))
    assert len(cards) == 8
    for path in cards:
        name = path.parent.name
        report = build(
            Report, json.loads(read_bundle(path.parent / f"{name}.edgecnn").files["parity.json"]), ValueError
        )
        assert path.read_text(encoding="utf-8").startswith(metadata_block(name, report)), f"{name}: ship it again"


def candidate(network, accuracy, **more):
    return Candidate(
        network=network, height=96, width=128, whole=False, macs=20_000_000, int8_bytes=1_234_567, accuracy=accuracy,
        fits=more.pop("fits", True), **more,
    )  # fmt: skip


CHOICE = NetworkChoice(
    key="0" * 64, images=1_234, balanced=True, budget="7.5 ms here", network="b", height=96, width=128, why="cheaper",
    seconds=61.7,
    candidates=(
        candidate("c", 0.6, ms=9.0),
        candidate("b", 0.4, behind=0.2, behind_error=0.031, log_loss=0.4567, ms=7.456),
        candidate("e", 0.7, fits=False),
    ),
)  # fmt: skip


def test_each_network_has_a_row_with_its_distance_from_the_best():
    headings, cells = choice_section(CHOICE).table
    rows = [dict(zip(headings, row, strict=True)) for row in cells]
    assert [row["network"] for row in rows] == ["c", "b", "e"]
    assert [row[""] for row in rows] == ["", "chosen", "over the budget"]
    assert rows[1] == {
        "network": "b", "input": "128x96", "log loss": "0.457", "accuracy": "40.0%", "behind the best": "20.0 ± 3.1",
        "MACs": "20,000,000", "int8 bytes (expected)": "1,234,567", "ms here": "7.46", "": "chosen",
    }  # fmt: skip
    assert (rows[0]["behind the best"], rows[2]["ms here"]) == ("-", "-")


def test_the_sentence_counts_the_photos_that_chose():
    line = judged_line(CHOICE)
    assert line.startswith(
        "b at 128x96 was chosen for a last layer fitted to 1,234 images, within 7.5 ms here: cheaper."
    )
    assert "every class counting the same" in line and line.endswith("It took 62 s.")
