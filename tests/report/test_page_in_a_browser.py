"""The report page in Chromium: no error, no request, no overflow, usable by keyboard and screen reader, in light and dark."""

import json
from dataclasses import replace

import numpy as np
import pytest

from edgecnn.report.collect import bundle_figures
from edgecnn.report.page import Shown, shown_run, write_against_page, write_page
from edgecnn.verify.against import Against, Model, part

pytestmark = pytest.mark.needs("chromium", "chromedriver", package="chromium chromium-driver")


@pytest.fixture
def page(drawn_run, finished_run, root, tmp_path, request):
    """The page of a run through every stage, with two classes, 1,000 classes, hostile names, a bundle or several runs; and of photos."""
    from edgecnn.bundle.read import read_bundle

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
        margin=1.5, parts=parts, added=(), gone=(), renamed={}, not_counted={}, unknown=(), flips=(), looks=1,
    )  # fmt: skip
    write_against_page(against, {}, folder / "compared.html")
    return folder / "compared.html"


def inspection_page(folder):
    """Return an inspection page with findings: duplicates across splits and across classes, a damaged file, hostile names."""
    from PIL import Image

    from edgecnn.data import open_dataset
    from edgecnn.inspect.inspection import inspect_images
    from edgecnn.inspect.page import write_inspection
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
