"""The tables of the page: each figure stands under its own heading, on pages of models whose answers can be counted by hand."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from edgecnn.report.figures import Epoch, Missing, Origin, RunFigures, answer_figures, common_figures
from edgecnn.report.page import Shown, page_figures, render, write_against_page, write_page
from edgecnn.run_info import Candidate, NetworkChoice
from edgecnn.stress.stress_report import Condition, Mean, Measured, StressData, Stressed, StressedModel, StressReport
from edgecnn.verify.against import Against, Model, part
from edgecnn.verify.layers import LayerError, LayerErrors
from edgecnn.verify.parity_report import BoardRow, LabelledFlip
from edgecnn.verify.predictions import Predictions

pytestmark = pytest.mark.usefixtures("blank_plots")

LABELS = ("cat", "dog", "fox")

SCORES = {
    "float": np.linspace(0.5, 0.98, 13, dtype=np.float32),
    "tflite-int8": np.array([0.9] * 7 + [0.41, 0.62, 0.83, 0.62, 0.9, 0.9], np.float32),
}
"""By model, of the 13 images of `counted`: int8 is wrong on the images 6, 8, 9 and 10."""

MEASURED = Measured(accuracy=0.75, interval=(0.72, 0.77))

STRESSED = StressReport(
    schema="edgecnn.stress/1", name="m", kind="run",
    data=StressData(name="d", title="D", split="test", images=30, of=1300, sha256="a" * 64), seed=7, size_class="small",
    largest_side=None, models=(StressedModel(name="int8", engine="e", sha256="a" * 64),),
    clean=Condition(strength=0, value="", float=None, int8=MEASURED, agreement=0.95, agreement_interval=None),
    corruptions=(
        Stressed(
            corruption="occlusion", unit="u", float=0.7, int8=0.625, agreement=0.875, lost=12.5,
            strengths=(
                Condition(
                    strength=4, value="0.3", float=Measured(accuracy=0.56, interval=(0.5, 0.6)),
                    int8=Measured(accuracy=0.5, interval=(0.47, 0.52)), agreement=0.8, agreement_interval=None,
                ),
            ),
        ),
    ),
    complete=True, mean_float=None, mean_int8=Mean(accuracy=0.66, interval=(0.61, 0.7)), worst="occlusion",
    trained_robust=False, at_least=0.6, passed=False, test_uses=2, seconds=1.0, machine="m", versions={},
)  # fmt: skip

BOARD = BoardRow(
    target="rpi4", cpu="cortex-a72", release="trixie", model="models/int8.onnx", split="test", images=1000, accuracy=0.8641,
    accuracy_here=0.8639, agreement=0.9998, rows_that_differ=12, largest_difference=1, unit="LSB", limit=1, selftest=True, failed=(),
    passed=False, error=None, engine="onnxruntime 1", against="onnxruntime 2", versions={"python": "3.13.5"}, qemu="10.0",
)  # fmt: skip


class Tables(HTMLParser):
    """A page's tables by name: a dictionary per row, from each cell's heading to its text; and its list items and other text."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.items, self.verdicts = {}, [], []
        self._rows, self._open, self._where = None, None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if given.get("role") == "region":
            self._rows = self.tables.setdefault(given["aria-label"], [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append({})
        elif "data-heading" in given:
            self._where = (self._rows[-1], given["data-heading"])
            self._rows[-1][given["data-heading"]] = ""
        elif tag == "li":
            self.items.append("")
            self._where = (self.items, -1)
        elif tag == "p" and str(given.get("class", "")).startswith("verdict"):
            self.verdicts.append(given["class"])

    def handle_endtag(self, tag):
        if tag in ("td", "th", "li"):
            self._where = None

    def handle_data(self, data):
        if self._where:
            held, key = self._where
            held[key] = " ".join(f"{held[key]} {data}".split())

    def rows(self, name):
        return [row for row in self.tables[name] if row]


@pytest.fixture(scope="module")
def shown(counted):
    """Return a function that makes a page's part on the models of `counted`, with changed figures."""
    report, (true, one, other) = counted
    models = tuple(
        replace(item, calibration_error=error, size_bytes=size, ms_per_image=ms)
        for item, error, size, ms in zip(report.models, (0.11, 0.22), (4321, 1234), (3.5, 0.75), strict=True)
    )
    report = replace(report, models=models, boards=(BOARD,))
    predictions = Predictions(
        true=true, sources=[f"{n}.jpg" for n in range(13)], answers={"float": one, "tflite-int8": other}, scores=SCORES,
        tempered=np.empty(0), pictures={},
    )  # fmt: skip
    answers = answer_figures(predictions, "tflite-int8", None, LABELS)
    epoch = Epoch(
        phase="float", epoch=1, loss=2.25, accuracy=0.3, validation_accuracy=0.4, learning_rate=0.1, int8_accuracy=None,
        int8_agreement=None,
    )  # fmt: skip
    later = replace(
        epoch,
        phase="qat",
        epoch=2,
        loss=1.5,
        accuracy=0.6,
        validation_accuracy=0.5,
        int8_accuracy=0.45,
        int8_agreement=0.99,
    )
    layer = LayerError(layer="conv", operator="CONV_2D", sqnr_db=33.1, saturated=0.02, channel_ratio=7.8, hint="fix it")
    origin = Origin(
        network="article", parameters=5432, input="48x20x3", labels=LABELS, data="Counted images", fingerprint="f" * 64,
        training_images=870, validation_images=115, seconds=1234.4, imported=None, recipe="",
        tuning="head 91.0%, fine-tuned 90.0% of 115 validation photos: head ships",
    )  # fmt: skip

    def make(name="counted", answered=(), **values):
        figures = {
            "name": name, "kind": "run", "origin": origin, "choice": None, "against": None, "epochs": (epoch, later),
            "layers": LayerErrors(images=200, layers=(layer,), unmatched=()), "stress": STRESSED, "missing": (),
        }  # fmt: skip
        figures |= common_figures(report, answers) | values
        return Shown(figures=RunFigures(**figures), pictures={}, answers=dict(answered))

    return make


def test_every_table_has_its_figures_under_its_headings(shown, counted):
    report, _ = counted
    page = Tables(render([shown()]))
    float_, int8 = page.rows("Models")
    low, high = report.models[1].accuracy_interval
    assert int8 == {
        "model": "tflite-int8", "accuracy": "69.23%", "95 % interval": f"{low:.2%} to {high:.2%}", "calibration error": "22.00%",
        "drop": "15.38", "agreement": "69.23%", "bytes": "1,234", "ms/image": "0.750", "engine": "none 1",
    }  # fmt: skip
    assert (float_["accuracy"], float_["calibration error"], float_["bytes"]) == ("84.62%", "11.00%", "4,321")
    (row,) = page.rows("Comparisons")
    (item,) = report.comparisons
    assert row.pop("gate").startswith("AT CHANCE LEVEL: drop of at most 100.00") and row == {
        "against the reference": "tflite-int8", "drop": "15.38", "McNemar p": "0.625", "lost": "3", "gained": "1",
        "95 % interval": "{:.2f} to {:.2f}".format(*item.drop_interval), "worst class": "dog 75.00",
        "confidence drift": f"{item.confidence_drift.mean:.4f}", "LSB mean, max": "-",
    }  # fmt: skip
    assert page.rows("Drop by class") == [
        {"class": "cat", "images": "7", "drop, points": "+0.00"},
        {"class": "dog", "images": "4", "drop, points": "+75.00"},
        {"class": "fox", "images": "2", "drop, points": "-50.00"},
    ]
    assert page.rows("Most confused classes of tflite-int8") == [
        {"true class": "dog", "answer": "cat", "images": "2"},
        {"true class": "cat", "answer": "fox", "images": "1"},
        {"true class": "dog", "answer": "fox", "images": "1"},
    ]
    bins = page.rows("Reliability of tflite-int8")
    assert [tuple(row.values()) for row in bins] == [
        ("40% to 47%", "1", "41.00%", "100.00%"),
        ("60% to 67%", "2", "62.00%", "0.00%"),
        ("80% to 87%", "1", "83.00%", "0.00%"),
        ("87% to 93%", "9", "90.00%", "88.89%"),
    ]
    assert list(bins[0]) == ["scores of tflite-int8", "images", "mean score", "accuracy"]
    coverage = {row["threshold"]: (row["answered"], row["errors among them"]) for row in page.rows("Coverage")}
    assert (coverage["0.00"], coverage["0.84"], coverage["0.92"]) == (
        ("100.00%", "30.77%"), ("69.23%", "11.11%"), ("0.00%", "-"),
    )  # fmt: skip
    first, later = page.rows("Learning curves")
    assert list(first.values()) == ["float", "1", "2.2500", "30.00%", "40.00%", "-", "-"]
    assert later == {
        "phase": "qat", "epoch": "2", "loss": "1.5000", "training": "60.00%", "validation": "50.00%", "int8": "45.00%",
        "int8 agreement": "99.00%",
    }  # fmt: skip
    assert page.rows("Noise by layer") == [
        {"layer": "conv", "dB": "33.1", "saturated": "2.00%", "channel ratio": "7.8", "what usually fixes it": "fix it"}
    ]


def test_the_stress_test_and_the_boards_have_their_figures_under_their_headings(shown):
    html = render([shown()])
    page = Tables(html)
    assert page.rows("Accuracy of int8 under each corruption") == [
        {
            "corruption": "occlusion", "strength": "4", "value": "0.3", "int8": "50.00%", "interval of int8": "47.00% to 52.00%",
            "float": "56.00%", "agreement": "80.00%",
        }
    ]  # fmt: skip
    strengths = dict.fromkeys("12345", "-")
    assert page.rows("Under stress") == [
        {"corruption": "none", **strengths, "int8": "75.00%", "float": "-", "agreement": "95.00%", "points lost": "-"},
        {
            "corruption": "occlusion", **strengths, "4": "50.00%", "int8": "62.50%", "float": "70.00%", "agreement": "87.50%",
            "points lost": "12.50",
        },
        {"corruption": "mean", **strengths, "int8": "66.00%", "float": "-", "agreement": "-", "points lost": "9.00"},
    ]  # fmt: skip
    (row,) = page.rows("On emulated boards")
    assert row == {
        "board": "rpi4 (cortex-a72)", "images": "1,000", "accuracy": "86.41%", "here": "86.39%", "agreement": "99.98%",
        "rows that differ": "12", "largest difference": "1 LSB", "self-test": "passed", "gate": "FAILED",
        "engine": "onnxruntime 1, Python 3.13.5, against onnxruntime 2 here",
    }  # fmt: skip
    text = re.sub("<[^>]+>", "", html)
    assert "mean corrupted accuracy of int8: 66.00% (61.00% to 70.00%)" in text and "Pass line 60.00%: FAILED" in text
    assert "30 of 1,300 test images" in text and "this test split 2 times" in text
    assert "occlusion costs the most accuracy" in text
    once = render([shown(stress=replace(STRESSED, test_uses=1, at_least=0.0, passed=True))])
    assert "this test split 1 time." in re.sub("<[^>]+>", "", once)
    assert "Pass line 0.00%: passed" in re.sub("<[^>]+>", "", once), "a pass line of 0 is one"


def test_the_page_counts_flips_and_mistakes_and_shows_the_surest_mistake_first(shown):
    html = render([shown()])
    page, text = Tables(html), re.sub("<[^>]+>", "", html)
    assert "4 of 13 test images:" in text and "4 mistakes in total; those" in text
    shown_ones = [item for item in page.items if item.partition(" ")[0].endswith(".jpg")]
    assert [item.split()[0] for item in shown_ones] == [
        *("8.jpg", "9.jpg", "10.jpg", "12.jpg"),
        *("6.jpg", "9.jpg", "8.jpg", "10.jpg"),
    ]
    assert shown_ones[1] == "9.jpg true: dog float: dog 86.00% int8: cat 83.00%"
    one = shown(mistakes_in_all=1, flips=(), flips_in_all=0)
    text = re.sub("<[^>]+>", "", render([one]))
    assert "0 of 13 test images." in text and "1 mistake in total" in text
    assert "5,432 parameters, input 48x20x3" in text and "1,234 s" in text
    assert "870 images for training, 115 for validation" in text


def test_runs_side_by_side_have_their_own_figures_and_links(shown, counted, tmp_path, monkeypatch):
    answers = {"a": ("cat", "cat"), "b": ("cat", "dog"), "c": ("dog", "dog"), "d": ("fox", "fox"), "e": ("fox", "cat")}
    others = {"a": ("cat", "dog"), "b": ("cat", "cat"), "c": ("dog", "fox"), "d": ("fox", "cat"), "f": ("fox", "fox")}
    report, _ = counted
    failed = common_figures(replace(report, passed=False), shown().figures)
    bare = {key: failed[key] for key in ("verdict", "passed", "summary", "warnings", "parity", "int8")}
    runs = [shown("first", answers), shown("second", others, **bare)]
    unverified = {"verdict": "", "passed": None, "summary": (), "parity": None, "int8": None, "flips_in_all": None}
    runs.append(shown("third", {}, **unverified, confusion=()))
    page = Tables(render(runs))
    first, second, third = page.rows("Runs side by side")
    assert first == {
        "run": "first", "verdict": "passed", "test images": "13", "float accuracy": "84.62%", "int8 accuracy": "69.23%",
        "drop, points": "+15.38", "agreement": "69.23%", "bytes": "1,234", "ms per image": "0.750",
    }  # fmt: skip
    assert (second["run"], second["verdict"]) == ("second", "FAILED")
    assert list(third.values()) == ["third", "not verified", *"-------"]
    assert page.verdicts == ["verdict passed", "verdict failed", "verdict "]
    (pair,) = page.rows("Runs on the photos that both have answers for")
    assert re.fullmatch(r"[+-]\d+\.\d\d to \+\d+\.\d\d", pair.pop("95 % interval"))
    assert pair == {
        "run": "second", "against": "first", "photos": "4", "accuracy": "25.00%", "accuracy of the other": "75.00%",
        "drop, points": "+50.00", "lost": "3", "gained": "1", "McNemar's p": "0.625",
    }  # fmt: skip
    (found,), warnings = page_figures(runs).pairs, page_figures(runs).warnings
    assert found.agreement == 0.0 and len(warnings) == 1 and "answers for third" in warnings[0]
    monkeypatch.setattr("edgecnn.report.page.png", lambda figure: b"")
    write_page(runs[:2], tmp_path / "both.html", tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*coverage.png"))
    assert names == ["1-coverage.png", "2-coverage.png"], "numbered like on the page"


def test_the_page_of_old_against_new_has_the_old_ones_figures_first(counted, tmp_path):
    _, (true, one, other) = counted
    model = Model(name="door", serial=3, sha256="a" * 64, model_sha256="b" * 64, taught_by="list")
    whole = part("all", ("door", "gate"), (one, other, true), LABELS, 1.0)
    flips = [LabelledFlip(source=f"{n}.jpg", true="dog", reference="dog", candidate="cat") for n in range(30)]
    against = Against(
        verdict="not shown", why="too few", needed=500, old=model, new=replace(model, name="gate", serial=4), rule="usual", earlier=(),
        margin=1.5,
        balanced=False, parts=(whole,), added=(), gone=(), renamed={}, not_counted={}, unknown=(), flips=tuple(flips), looks=1,
    )  # fmt: skip
    pictures = {1: np.full((2, 5, 3), 7, np.uint8)}
    write_against_page(against, pictures, tmp_path / "against.html")
    html = (tmp_path / "against.html").read_text()
    page = Tables(html)
    (row,) = page.rows("Old against new")
    low, high = whole.drop_interval
    assert row == {
        "photos": "all", "number": "13", "door, old": "84.62%", "gate, new": "69.23%", "drop, points": "+15.38",
        "95 % interval": f"{low:+.2f} to {high:+.2f}", "lost": "3", "gained": "1", "McNemar's p": "0.625",
    }  # fmt: skip
    by_class = [tuple(row.values()) for row in page.rows("Drop by class, old against new")]
    assert by_class == [("cat", "7", "+0.00"), ("dog", "4", "+75.00"), ("fox", "2", "-50.00")]
    assert page.verdicts == ["verdict failed"], "not shown is no pass"
    shown_ones = [item for item in page.items if ".jpg" in item]
    assert len(shown_ones) == 24 and shown_ones[1] == "1.jpg true: dog old: dog new: cat"
    assert "differently: 30, those" in re.sub("<[^>]+>", "", html)
    assert html.count("<img") == 1 and html.index("0.jpg") < html.index("<img") < html.index("1.jpg")


def test_each_comparison_has_its_own_verdict_and_training_images_give_no_drop(shown, counted):
    report, _ = counted
    (item,) = report.comparisons
    kinds = {
        "quantization": {}, "conversion": {"accepted": True, "passed": False}, "alternative": {"passed": False},
        "seen": {"reference": "fake-quantized"}, "program": {"passed": False},
    }  # fmt: skip
    comparisons = tuple(replace(item, kind=kind, limit=f"limit of {kind}", **more) for kind, more in kinds.items())
    made = common_figures(replace(report, comparisons=comparisons), shown().figures)
    page = Tables(render([shown(parity=made["parity"])]))
    rows = page.rows("Comparisons")
    assert [row["gate"] for row in rows] == [
        "AT CHANCE LEVEL: limit of quantization",
        "limit of alternative",
        "FAILED: limit of program",
    ]
    conversions = [item for item in page.items if "LSB (" in item]
    assert ["ACCEPTED" in item for item in conversions] == [True, False] and "passed: limit of seen" in conversions[1]
    assert not any("drop" in item.partition(" (")[0] for item in conversions)


def test_the_page_says_where_a_model_comes_from_and_how_its_network_was_chosen(shown, counted):
    """31 classes are one too many to name all."""
    report, _ = counted
    candidate = Candidate(
        network="b", height=96, width=128, whole=False, macs=20, int8_bytes=1234, accuracy=0.25, fits=False,
    )  # fmt: skip
    choice = NetworkChoice(
        key="0" * 64, images=1_234, balanced=False, budget="", network="b", height=96, width=96, why="cheaper", seconds=61.7,
        candidates=(replace(candidate, width=96, fits=True, accuracy=0.75), candidate),
    )  # fmt: skip
    own = shown().figures
    labels = tuple(f"class{n}" for n in range(31))
    origin = replace(own.origin, labels=labels, imported="a SavedModel", parameters=None, seconds=None)
    stress = replace(STRESSED, size_class="photo", trained_robust=True, data=replace(STRESSED.data, split="validation"))
    tempered = replace(own.reliability[1], temperature=1.5, bins=own.reliability[1].bins[:1])
    versions = replace(report, versions={"numpy": "2.1", "scipy": "1.4"})
    missing = (Missing(part="boards", why="none ran", command="edgecnn verify --on rpi4"),)
    one = shown(
        origin=origin, choice=choice, stress=stress, parity=versions, reliability=(*own.reliability, tempered),
        missing=missing,
    )  # fmt: skip
    origin = replace(origin, labels=labels[:30], imported=None)
    other = shown(name="second", kind="bundle", origin=origin, choice=None, passed=None, missing=missing)
    html = render([one, other])
    page, (first, second) = (
        Tables(html),
        [re.sub(r"\s+", " ", re.sub("<[^>]+>", "", part)) for part in html.split("<article")[1:]],
    )
    assert "fine-tuned 90.0% of 115 validation photos" in first
    assert "31: class0, class1," in first and first.count("class29 …") == 1 and "class30" not in first
    assert "30: class0" in second and "class29 …" not in second
    assert "imported: a SavedModel" in first and "imported" not in second
    assert "Networkarticle, input 48x20x3" in first
    assert "numpy 2.1, scipy 1.4" in first and "second (bundle)" in second and "counted (bundle)" not in first
    assert all("boards: none ran. edgecnn verify --on rpi4" in part for part in (first, second))
    assert ["<details open>" in part for part in html.split("<article")] == [False, False, True], "not verified"
    assert "30 of 1,300 validation images, corrupted" in first
    assert ("train.robust" in first, "train.robust" in second) == (True, False)
    rows = page.rows("How the network was chosen")
    assert [(row["network"], row["input"], row[""]) for row in rows] == [
        ("b", "96x96", "chosen"), ("b", "128x96", "over the budget")
    ]  # fmt: skip
    assert "was chosen for a last layer fitted to 1,234 images" in first and "was chosen" not in second
    named = "Reliability of tflite-int8, with the temperature"
    assert (
        len(page.rows(named)) == 1 and next(iter(page.rows(named)[0])) == "scores of tflite-int8, with the temperature"
    )
    assert len(page.rows("Reliability of tflite-int8")) == 8, "four bins on either page"
