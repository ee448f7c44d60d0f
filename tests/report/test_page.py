"""The report page."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from scipy.stats import binomtest

from edgecnn.bundle.file import read_bundle
from edgecnn.labels import printable
from edgecnn.report.figures import bundle_figures, confusion, coverage, reliability, summary, verdict
from edgecnn.report.page import (
    Shown,
    page_figures,
    render,
    shown_run,
    title_of,
    write_against_page,
    write_page,
    write_run_page,
)
from edgecnn.report.plots import BAD, GOOD, classes_plot, confusion_plot, plots
from edgecnn.runs import PARITY, PREDICTIONS, Run
from edgecnn.verify.against import Against, Model, part
from edgecnn.verify.parity import parity_report
from edgecnn.verify.predictions import GALLERY, read_predictions

HOSTILE = ("<script>alert(1)</script>", "\u05e9\u05dc\u05d5\u05dd & \u0645\u0631\u062d\u0628\u0627", "x" * 255)


class Page(HTMLParser):
    """A page's elements, the values of its <data>, and its text, except for parts without figures."""

    WITHOUT_FIGURES = ("svg", "style", "pre", "bdi", "code", "data", "title")

    def __init__(self, text):
        super().__init__()
        self.tags, self.values, self.text, self.names, self.addresses = [], [], "", [], []
        self._inside = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "data":
            self.values.append(float(attributes["value"]))
        self.addresses += [attributes[key] for key in ("src", "href", "xlink:href", "action") if key in attributes]
        if tag in self.WITHOUT_FIGURES:
            self._inside.append(tag)

    def handle_endtag(self, tag):
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data):
        if self._inside[-1:] == ["bdi"]:
            self.names.append(data)
        if not self._inside:
            self.text += data


def numbers(value):
    """Yield every number of a JSON value, and the length of every list."""
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, list):
        yield len(value)
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


@pytest.mark.usefixtures("blank_plots")
def test_every_figure_is_in_the_json(drawn_run, figures_of, tmp_path):
    runs = [shown_run(drawn_run()), shown_run(drawn_run(n=300, name="other"))]
    path = tmp_path / "page.html"
    write_page(runs, path)
    page = Page(path.read_text())
    known = set(numbers(figures_of(path)))
    assert len(page.values) > 300
    assert [value for value in page.values if value not in known] == []
    sentences = {run.figures.verdict for run in runs}
    text = page.text
    for sentence in sentences:
        assert sentence in text
        text = text.replace(sentence, "")
    left = re.findall(r"[^\n]*\d[^\n]*", re.sub(r"95 % interval|int8|float32|90 %", "", text))
    assert left == [], "a figure outside of <data> could be one that the JSON lacks"


@pytest.mark.usefixtures("blank_plots")
def test_the_json_matches_its_schema(drawn_run, finished_run, root, figures_of, tmp_path, schema_of):
    schema = schema_of("report")
    bundle = read_bundle(root / "models/digits/digits.edgecnn")
    shown = [shown_run(drawn_run()), shown_run(finished_run), shown_run(drawn_run(verified=False))]
    write_page([*shown, Shown(figures=bundle_figures(bundle), pictures={})], tmp_path / "page.html")
    jsonschema.validate(figures_of(tmp_path / "page.html"), schema)


@pytest.mark.usefixtures("blank_plots")
def test_a_stress_test_is_on_the_page_with_every_figure_in_the_json(drawn_run, figures_of, root, tmp_path, schema_of):
    from edgecnn.files import canonical_json
    from edgecnn.stress.measure import Settings, open_subject, stress
    from edgecnn.tables import to_json

    bundle = root / "models" / "digits" / "digits.edgecnn"
    subject = open_subject(bundle, None, "validation", lambda *progress: None)
    report = stress(subject, Settings(limit=30, at_least=0.5))
    run = drawn_run()
    run.file("stress-validation.json").write_text(canonical_json(to_json(report)))
    path = tmp_path / "page.html"
    write_page([shown_run(run)], path)
    page, figures = Page(path.read_text()), figures_of(path)
    assert figures["runs"][0]["stress"]["worst"] == report.worst
    known = set(numbers(figures))
    assert [value for value in page.values if value not in known] == []
    assert any(name.startswith(f"{report.worst} costs the most accuracy") for name in page.names)
    assert not [item for item in figures["runs"][0]["missing"] if item["part"] == "stress"]
    jsonschema.validate(figures, schema_of("report"))


@pytest.mark.usefixtures("blank_plots")
def test_the_verdict_comes_first_and_its_figures_are_the_reports(drawn_run):
    run = drawn_run()
    paired = next(item for item in parity_report(run).comparisons if item.candidate == "tflite-int8")
    shown = shown_run(run).figures
    assert shown.verdict.startswith("Gate: ") and "; passed." in shown.verdict and "These 400 images" in shown.verdict
    assert f"{paired.accuracy_candidate:.2%} right" in shown.verdict and f"{paired.agreement:.2%}" in shown.verdict
    html = render([shown_run(run)])
    assert html.index(shown.verdict) < html.index("<table>") and html.index(shown.verdict) < html.index("<svg")


@pytest.mark.usefixtures("blank_plots")
def test_is_it_good_comes_first_and_states_what_the_images_can_show(drawn_run):
    run = drawn_run(n=32, labels=HOSTILE, noise=2.0)
    shown = shown_run(run)
    accuracy, images, weakest, *_ = shown.figures.summary
    model = next(item for item in parity_report(run).models if item.name == "tflite-int8")
    low, high = model.accuracy_interval
    assert f"right on {model.accuracy:.2%} of the test images" in accuracy
    assert f"32 images are too few to tell {low:.0%} from {high:.0%}" in accuracy
    worst = min(shown.figures.parity.found, key=lambda one: one.found / one.images)
    assert f"weakest: {printable(worst.label)}: {worst.found} of {worst.images} found" in weakest
    assert "32 test images" in images
    html = render([shown])
    assert html.index("Is it good?") < html.index(shown.figures.verdict) < html.index("<table>")
    assert "385 images determine it to within" in shown_run(drawn_run(n=385, noise=0.1)).figures.summary[0]


@pytest.mark.usefixtures("blank_plots")
def test_runs_with_different_test_images_are_not_put_side_by_side_without_a_warning(drawn_run):
    same = [shown_run(drawn_run()), shown_run(drawn_run(name="other"))]
    assert page_figures(same).warnings == ()
    parity = same[1].figures.parity
    other = replace(parity, data=replace(parity.data, test_sha256="d" * 64))
    apart = [same[0], replace(same[1], figures=replace(same[1].figures, parity=other))]
    (warning,) = page_figures(apart).warnings
    assert "tested on different images" in warning and render(apart).index(warning) < render(apart).index("<table>")


@pytest.mark.usefixtures("blank_plots")
def test_two_runs_are_paired_on_common_photos_or_the_page_says_why_not(drawn_run, finished_run, root):
    one, other = shown_run(drawn_run()), shown_run(drawn_run(name="other"))
    half = replace(
        other, answers={key: other.answers[key] for key in list(other.answers)[:150]} | {"later": ("a", "a")}
    )
    (pair,) = page_figures([one, half]).pairs
    keys = [key for key in one.answers if key in half.answers]
    right = [sum(answers[key][0] == answers[key][1] for key in keys) for answers in (one.answers, half.answers)]
    assert (pair.n, pair.accuracy_reference, pair.accuracy_candidate) == (150, right[0] / 150, right[1] / 150)
    assert "Runs on the photos that both have answers for" in render([one, half])
    bundle = Shown(figures=bundle_figures(read_bundle(root / "models/digits/digits.edgecnn")), pictures={})
    assert "there are no per-photo answers for digits" in page_figures([one, bundle]).warnings[-1]
    (same,) = page_figures([shown_run(finished_run), shown_run(finished_run)]).pairs
    assert same.n == 385 and same.lost == same.gained == 0


@pytest.fixture(scope="module")
def html(finished_run):
    """The page of a run through every stage, with its plots."""
    return render([shown_run(finished_run)])


def test_it_makes_no_request(html):
    page = Page(html)
    assert "script" not in page.tags and "link" not in page.tags
    assert [address for address in page.addresses if not address.startswith(("#", "data:image/png;base64,"))] == []
    assert re.findall(r"url\((?!#)|@import", html) == []
    identifiers = re.findall(r'\bid="([^"]*)"', html)
    assert len(identifiers) == len(set(identifiers)) > 50
    assert set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r'xlink:href="#([^"]*)"', html)) <= set(
        identifiers
    )


def test_pictures_come_from_the_test_split(finished_run):
    from edgecnn.data import open_dataset

    shown = shown_run(finished_run)
    split = open_dataset(finished_run.recipe.data).load(("test",), **vars(finished_run.info.input), stage="verify")[
        "test"
    ]
    assert shown.pictures and len(shown.figures.mistakes) <= GALLERY
    for item in shown.figures.mistakes:
        png = base64.b64decode(shown.pictures[item.index].partition(",")[2])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), split.images[item.index, :, :, 0])
        assert item.source == split.sources[item.index] and item.int8_answer != item.true
    scores = [item.int8_score for item in shown.figures.mistakes]
    assert scores == sorted(scores, reverse=True)


def test_an_unverified_run_reports_what_is_missing(drawn_run, figures_of):
    run = drawn_run(verified=False)
    page = write_run_page(run)
    (missing,) = [item for item in figures_of(page)["runs"][0]["missing"] if "verdict" in item["part"]]
    assert missing["command"] == f"edgecnn verify {run.path}"
    html = page.read_text()
    assert "Not verified" in html and "edgecnn verify" in html and "Learning curves" in html


def test_missing_predictions_of_an_older_version_are_not_an_error(drawn_run):
    run = drawn_run()
    run.file(PREDICTIONS).write_bytes(b"no zip")
    figures = shown_run(run).figures
    assert figures.passed and not figures.confusion
    assert [item.command for item in figures.missing if "confusion" in item.part] == [f"edgecnn verify {run.path}"]


def test_a_page_needs_no_data(drawn_run):
    """Its pictures, each limited in size, were kept when the run was verified."""
    shown = shown_run(drawn_run(size=(300, 100)))
    assert {item.index for item in (*shown.figures.flips, *shown.figures.mistakes)} == set(shown.pictures)
    sizes = {Image.open(io.BytesIO(base64.b64decode(item.partition(",")[2]))).size for item in shown.pictures.values()}
    assert sizes == {(32, 96)}


def test_hostile_names_do_no_harm(drawn_run):
    sources = [f"test/{HOSTILE[index % 3]}/\u202e{index}<b>.jpg" for index in range(200)]
    run = drawn_run(labels=HOSTILE, n=200, sources=sources, name="a<i>b", title="</p><img src=x>")
    page = Page(render([shown_run(run)]))
    assert "script" not in page.tags and "b" in page.tags and "i" not in page.tags
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert "\u202e" not in "".join(page.names) and any("\\u202e" in name for name in page.names)
    assert set(HOSTILE) <= set(page.names)


@pytest.mark.slow
def test_a_thousand_classes(drawn_run, tmp_path):
    labels = [f"class {number}" for number in range(1000)]
    path = tmp_path / "large.html"
    write_page([shown_run(drawn_run(labels=labels, n=10_000))], path)
    assert path.stat().st_size < 5_000_000


@pytest.mark.slow
def test_runs_side_by_side(drawn_run):
    html = render([shown_run(drawn_run(name="small", n=200)), shown_run(drawn_run(name="large"))])
    assert "Side by side" in html and html.count("<article") == 2
    assert 'href="#run-2"' in html and 'id="run-2"' in html
    assert "Side by side" not in render([shown_run(drawn_run())])


@pytest.mark.usefixtures("blank_plots")
def test_the_command(edgecnn, drawn_run, root, tmp_path):
    run = drawn_run()
    done = edgecnn("report", run.path, "--png", "plots")
    assert (done.code, done.out) == (0, f"{run.path}/report.html\n") and done.err.count(f"run {run.path}") == 1
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "confusion-float.png", "confusion-tflite-int8.png", "classes.png", "reliability.png", "coverage.png", "learning.png",
        "layers.png",
    }  # fmt: skip
    assert all(Image.open(path).format == "PNG" for path in (tmp_path / "plots").iterdir())
    bundle = root / "models" / "digits" / "digits.edgecnn"
    done = edgecnn("report", run.path, bundle, "--out", "both.html", "--json")
    assert done.code == 0 and (tmp_path / "both.html").exists()
    assert [item["kind"] for item in json.loads(done.out)["runs"]] == ["run", "bundle"]
    again = edgecnn("report", run.path, "--out", "both.html")
    assert again.code == 20 and "both.html" in again.err
    (tmp_path / "x.edgecnn").write_text("refused before it is read")
    assert edgecnn("report", run.path, "x.edgecnn", "--out", "both.html").code == 20
    assert edgecnn("report", run.path, bundle).code == 2
    assert edgecnn("report", run.path, "--out", "both.json", "--force").code == 2
    (tmp_path / "mine.json").write_text("mine")
    assert (
        edgecnn("report", run.path, "--out", "mine.html").code == 20 and (tmp_path / "mine.json").read_text() == "mine"
    )


def test_a_foreign_file_is_refused(edgecnn, tmp_path):
    (tmp_path / "x.edgecnn").write_text("no bundle")
    done = edgecnn("report", "x.edgecnn")
    assert done.code and len(done.err.splitlines()) <= 3


def test_a_confusion_matrix_has_true_classes_as_rows(counted):
    _, (true, _, answers) = counted
    labels = ("cat", "dog", "fox")
    matrix = confusion("tflite-int8", true, answers, labels)
    assert matrix.cells == ((0, 0, 6), (0, 2, 1), (1, 0, 2), (1, 1, 1), (1, 2, 1), (2, 2, 2))
    worst = [(item.true, item.answer, item.images) for item in matrix.most_confused]
    assert worst == [("dog", "cat", 2), ("cat", "fox", 1), ("dog", "fox", 1)]
    (axes,) = confusion_plot(matrix, labels).axes
    assert axes.get_ylabel() == "true class" and axes.get_xlabel() == "answer"
    assert np.allclose(axes.images[0].get_array(), [[6 / 7, 0, 1 / 7], [0.5, 0.25, 0.25], [0, 0, 1]])
    written = {(*text.get_position(), text.get_text()) for text in axes.texts}
    assert written == {(answer, true, str(images)) for true, answer, images in matrix.cells}


def test_the_class_that_loses_most_is_drawn_first(counted):
    report, _ = counted
    (axes,) = classes_plot(report.comparisons[0].per_class).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "cat", "fox"]
    bars = [(bar.get_width(), to_hex(bar.get_facecolor())) for bar in axes.patches]
    assert bars == [(75, BAD), (0, GOOD), (-50, GOOD)] and axes.yaxis_inverted()


def test_accuracies_come_with_their_interval_and_int8_before_float(counted):
    report, _ = counted
    low, high = binomtest(9, 13).proportion_ci(method="wilson")
    line = summary(report, report.models[1])[0]
    assert re.findall(r"\d[\d.]*%", line) == [
        "69.23%",
        f"{low:.2%}",
        f"{high:.2%}",
        f"{low:.0%}",
        f"{high:.0%}",
        f"{7 / 13:.2%}",
    ]
    assert re.findall(r"\d\d\.\d\d%", verdict(report))[-3:] == ["69.23%", "84.62%", "69.23%"]


def test_reliability_and_coverage_match_a_hand_count():
    scores, right = np.array([0.2, 0.55, 0.6, 0.95, 1.0], np.float32), np.array([False, True, False, True, True])
    bins = reliability("m", 1.0, scores, right, bins=2).bins
    assert [(item.low, item.images, round(item.score, 4), round(item.accuracy, 4)) for item in bins] == [
        (0.0, 1, 0.2, 0.0),
        (0.5, 4, 0.775, 0.75),
    ]
    points = {point.threshold: point for point in coverage(scores, right)}
    assert (points[0.0].share_answered, points[0.0].error) == (1.0, pytest.approx(0.4))
    assert (points[0.7].share_answered, points[0.7].error) == (pytest.approx(0.4), pytest.approx(0.0))


def test_a_real_run_has_every_part(finished_run):
    figures = shown_run(finished_run).figures
    assert set(plots(figures)) >= {
        "confusion-float",
        f"confusion-{figures.int8}",
        "classes",
        "reliability",
        "coverage",
        "learning",
    }
    report, predictions = parity_report(finished_run), read_predictions(finished_run)
    accuracy = {model.name: model.accuracy for model in report.models}
    for name, answers in predictions.answers.items():
        assert np.mean(answers == predictions.true) == pytest.approx(accuracy[name])
    assert figures.flips_in_all == next(
        len(item.flips) for item in report.comparisons if item.candidate == figures.int8 and item.kind == "quantization"
    )
    assert finished_run.file("report.html").exists(), "the pipeline writes the page"


def test_the_page_is_written_even_if_the_gate_does_not_pass(own_run, edgecnn):
    own_run.file("report.html").unlink()
    done = edgecnn("verify", own_run.path, "--confident", "--max-drop", "0")
    assert done.code == 14 and own_run.file("report.html").exists() and own_run.file(PARITY).exists()
    assert "FAILED" in own_run.file("report.html").read_text()


def test_the_page_does_not_depend_on_when_or_where(html, finished_run, tmp_path):
    copy = Run(shutil.copytree(finished_run.path, tmp_path / finished_run.name))
    again = render([shown_run(copy)])
    assert again.replace(str(copy.path), str(finished_run.path)) == html


def test_a_title_may_break_after_a_dash_and_shows_no_markup():
    assert title_of("photos-lite0_1200kb<b>") == "<bdi>photos-<wbr>lite0_<wbr>1200kb&lt;b&gt;</bdi>"


@pytest.fixture
def page(drawn_run, finished_run, root, tmp_path, request):
    """The page of a run through every stage, with two classes, 1,000 classes, hostile names, a bundle or several runs; and of photos."""
    from edgecnn.bundle.file import read_bundle

    if request.param == "compared":
        return compared_page(tmp_path)
    if request.param == "inspection":
        return inspection_page(tmp_path)
    hostile = ("<script>alert(1)</script>", "\u05e9\u05dc\u05d5\u05dd", "x" * 255)
    made = {
        "finished": lambda: [shown_run(finished_run)],
        "two classes": lambda: [shown_run(drawn_run(labels=("no", "yes")))],
        "1,000 classes": lambda: [shown_run(drawn_run(labels=[f"class {n}" for n in range(1000)], n=10_000))],
        "hostile": lambda: [shown_run(drawn_run(labels=hostile, n=200, title="</p><b>" * 30))],
        "never verified": lambda: [shown_run(drawn_run(verified=False))],
        "bundle": lambda: [
            Shown(figures=bundle_figures(read_bundle(root / "models/digits/digits.edgecnn")), pictures={})
        ],
        "several": lambda: [shown_run(drawn_run(n=200)), shown_run(finished_run), shown_run(drawn_run(labels="ab"))],
    }
    path = tmp_path / f"{request.param}.html"
    write_page(made[request.param](), path)
    return path


def compared_page(folder):
    """Return the page of two bundles with the names that `run` gives them, and figures of the usual widths."""
    model = Model(name="door-efficientnet_lite0", serial=3, sha256="a" * 64, model_sha256="b" * 64, taught_by="list")
    names, labels = (model.name, f"{model.name}-1"), ("automobile", "wheelbarrow")
    classes = np.arange(4000) % 2
    answers = (
        np.where(np.arange(4000) % 9, classes, 1 - classes),
        np.where(np.arange(4000) % 7, classes, 1 - classes),
        classes,
    )
    parts = tuple(part(f"the {kind} photos", names, answers, labels, 1.0) for kind in ("earlier", "later"))
    against = Against(
        verdict="passed", why="equal", needed=500, old=model, new=replace(model, name=names[1], serial=4), rule="usual", earlier=(),
        margin=1.5,
        balanced=False, parts=parts, added=(), gone=(), renamed={}, not_counted={}, unknown=(), flips=(), looks=1,
    )  # fmt: skip
    write_against_page(against, {}, folder / "compared.html")
    return folder / "compared.html"


def inspection_page(folder):
    """Return an inspection page with findings: duplicates across splits and across classes, a damaged file, hostile names."""
    from PIL import Image

    from edgecnn.data import open_dataset
    from edgecnn.inspect.inspection import inspect_images, write_inspection
    from edgecnn.recipe import DataRecipe

    for number, label in enumerate(("cat", "<b>dog", "x" * 200)):
        for split in ("train", "test"):
            place = folder / "photos" / split / label
            place.mkdir(parents=True)
            for index in range(6):
                seed = index if index == 5 else 100 * number + index + 50 * (split == "test")
                pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
                Image.fromarray(pixels).resize((80, 60)).save(place / f"{index}<script>.png")
    (place / "broken.png").write_bytes(b"not a picture")
    dataset = open_dataset(DataRecipe(source=str(folder / "photos")), for_training=False)
    report = inspect_images(dataset, missing="By hashes alone.")
    assert {item.kind for item in report.findings} >= {"leak", "two-labels", "unreadable"}
    return write_inspection(report, dataset, folder / "inspections")


@pytest.mark.needs("chromium", "chromedriver", package="chromium chromium-driver")
@pytest.mark.parametrize(
    "page",
    [
        "finished",
        "hostile",
        "inspection",
        "compared",
        *(
            pytest.param(page, marks=pytest.mark.slow)
            for page in ("two classes", "1,000 classes", "never verified", "bundle", "several")
        ),
    ],
    indirect=True,
)
def test_the_page(browser, looks, serious, page):
    axed = {(390, "light")}  # axe takes a second
    if page.stem in ("finished", "inspection"):  # the two stylesheets: with this look, every colour and every layout
        axed.add((1280, "dark"))
    for width, theme in looks():
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(page.as_uri())
        requests = [
            message["params"]["request"]["url"]
            for entry in browser.get_log("performance")
            if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
        assert browser.get_log("browser") == []
        overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{overflow} px wider than {width}"
        browser.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")
        reached = (
            "return [...document.querySelectorAll('summary, .wide, pre')].filter(item => item.tabIndex < 0).length"
        )
        assert browser.execute_script(reached) == 0, "by keyboard"
        assert browser.execute_script("return document.querySelectorAll('img:not([alt])').length") == 0
        if width < 500:
            cut = (
                "return [...document.querySelectorAll('.wide, h1')].filter(item => item.scrollWidth > item.clientWidth)"
            )
            assert browser.execute_script(f"{cut}.map(item => item.textContent.slice(0, 200))") == []
        if width > 1000 and page.stem == "compared":
            scrolled = (
                "return [...document.querySelectorAll('.wide')].filter(item => item.scrollWidth > item.clientWidth)"
            )
            assert browser.execute_script(f"{scrolled}.map(item => item.ariaLabel)") == []
        if (width, theme) in axed:
            assert serious() == [], (width, theme)
    if page.stem == "finished":
        assert browser.execute_script("return document.querySelectorAll('.plot[role=img][aria-label]').length") >= 6
