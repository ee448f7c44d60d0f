"""The page and the line that training prints: their counts, names, pictures and limits, of a report written by hand."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.data.items import Item
from edgecnn.inspect.inspection_report import (
    ClassFigures,
    Copy,
    Finding,
    Group,
    Inspection,
    Lost,
    Method,
    Odd,
    SizeFigures,
    WrongLabel,
)
from edgecnn.inspect.listing import worst
from edgecnn.inspect.page import SHOWN, pictures, render, verdict

METHOD = Method(features=None, missing=None, all_alike=False, skipped_pairs=0, uncompared=0, labels_by=None)


def found(*severities):
    return tuple(
        Finding(kind="few", severity=severity, images=1, text=f"fault {n}", advice=f"Remedy {n}.")
        for n, severity in enumerate(severities)
    )


def report(**parts):
    return Inspection(
        **{
            "schema": "edgecnn.inspect/1", "edgecnn": "1", "name": "pets", "title": "Pets", "fingerprint": "ab" * 32,
            "images": 1234, "splits": {"train": 1000, "validation": 200, "test": 34}, "own_splits": ("train", "test"),
            "findings": (), "classes": (), "sizes": (), "unreadable": (), "groups": (), "wrong_labels": (), "far": (),
            "blurred": (), "method": METHOD, "computed": {"hashes": 3}, "seconds": 1.0,
        } | parts
    )  # fmt: skip


def dataset(*sources):
    """Pictures of 200x100 whose red is their number; the fingerprint is that of `report`."""
    items = [
        Item(source=source, split="train", label=0, hash=source, handle=np.full((100, 200, 3), (n, 0, 0), np.uint8))
        for n, source in enumerate(sources)
    ]
    return SimpleNamespace(items={"train": items[:1], "test": items[1:]}, read=lambda item: item.handle)


def copies(*sources, label="cat", exact=True, **more):
    return Group(
        copies=tuple(
            Copy(source=source, split="train", label=label, same="pixels", pixels=0 if exact else n, keep=not n)
            for n, source in enumerate(sources)
        ),
        exact=exact,
        **{"leak": False, "two_labels": False, "by": "content", "score": 1.0, "mirrored": False} | more,
    )


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page[page.index("<body>") :]))


@pytest.mark.parametrize(
    ("severities", "expected", "look"),
    [((), "Nothing was detected", "passed"), (["note"], "1 note", "passed"), (["warning", "note", "note"], "1 warning, 2 notes", ""),
     (["error"] * 2 + ["warning"] * 3 + ["note"], "2 errors, 3 warnings, 1 note", "failed")],
)  # fmt: skip
def test_the_verdict_counts_each_severity_the_worst_first(severities, expected, look):
    shown = report(findings=found(*severities))
    assert verdict(shown) == expected
    page = render(shown, dataset())
    assert f'<p class="verdict {look}">{expected}</p>' in page
    rows = re.findall(r'scope="row">(\w+)</th><td[^>]*><bdi>(fault \d)</bdi>.</td><td[^>]*><bdi>(Remedy \d)', page)
    assert rows == [(severity, f"fault {n}", f"Remedy {n}") for n, severity in enumerate(severities)]


def test_the_tables_have_each_figure_in_its_column():
    page = render(
        report(
            classes=(ClassFigures(label="cat", images={"train": 1000, "validation": 200, "test": 34}, distinct=1199),),
            sizes=(SizeFigures(width=640, height=480, channels=3, images=1007),),
            unreadable=(Lost(source="cat/x.jpg", split=None, reason="cut off"),),
        ),
        dataset(),
    )
    cells = re.findall(r'data-heading="([^"]+)"[^>]*>(?:<bdi>|<data[^>]*>)?([^<]*)', page[page.index("<body>") :])
    assert cells == [
        ("class", "cat"), ("train", "1,000"), ("validation", "200"), ("test", "34"), ("different ones", "1,199"),
        ("width", "640"), ("height", "480"), ("channels", "3"), ("images", "1,007"),
        ("file", "cat/x.jpg"), ("why", "cut off"),
    ]  # fmt: skip
    text = text_of(page)
    assert re.search("1,234 images in .*, and 1 that cannot be read", text)
    assert "no test split of their own" not in text
    assert "no test split of their own" in text_of(render(report(own_splits=("train",)), dataset()))


def test_each_group_label_and_odd_image_is_shown_with_its_figures():
    photo = {"split": "test", "label": "cat"}
    shown = report(
        groups=(
            copies("a", "b", exact=False, by="hash", score=0.876, mirrored=True),
            copies("c", "d", leak=True, two_labels=True),
            copies("e", "f", two_labels=True, exact=False, by="features", score=0.5),
            copies("g", "h"),
        ),
        wrong_labels=(WrongLabel(source="i", suggested="dog", score=0.034, suggested_score=0.91, **photo),),
        far=(Odd(source="j", value=1.2346, usual=0.25, **photo),),
        blurred=(Odd(source="k", value=0.0123, usual=0.5, **photo),),
    )
    page = render(shown, dataset(*"abcdefghijklm"))
    text = text_of(page)
    assert re.findall(r"<h3>(.*)</h3>", page) == [
        "Nearly identical", "In more than one split, and with different labels", "With different labels", "Identical",
    ]  # fmt: skip
    assert re.findall(r"(\d+ % alike, by [\w ]+|The same pixels)(, mirrored)?\.", text) == [
        ("88 % alike, by perceptual hash", ", mirrored"), ("The same pixels", ""), ("50 % alike, by features", ""),
        ("The same pixels", ""),
    ]  # fmt: skip
    assert re.search(r"a train: cat kept in a cleaned copy b train: cat (?!kept)", text)
    assert re.search(r"i label: cat 3% looks like dog 91%", text)
    assert re.search(r"usual: 0\.250 ?\. j cat 1\.235 .*usual: 0\.500 ?\. k cat 0\.012", text)
    urls = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', page)
    seen = [Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]
    assert {one.size for one in seen} == {(128, 64)}
    assert [round(np.asarray(one)[:, :, 0].mean()) for one in seen] == pytest.approx(range(11), abs=1)


def test_what_the_page_leaves_out_is_counted():
    limits = {"lost": 100, "groups": 60, "copies": 6, "labels": 100, "odd": 40}
    assert limits == SHOWN
    photo = {"split": "test", "label": "cat"}

    shown = report(
        unreadable=tuple(Lost(source=f"l{n}", split=None, reason="cut") for n in range(101)),
        groups=(copies(*(f"c{n}" for n in range(8))), *(copies(f"g{n}", f"h{n}") for n in range(61))),
        wrong_labels=tuple(
            WrongLabel(source=f"w{n}", suggested="dog", score=0.1, suggested_score=0.9, **photo) for n in range(100)
        ),
        far=tuple(Odd(source=f"f{n}", value=1.0, usual=0.2, **photo) for n in range(41)),
        blurred=tuple(Odd(source=f"b{n}", value=0.1, usual=0.2, **photo) for n in range(44)),
    )
    page = render(shown, dataset())
    assert re.findall(r"(\d+ more \w+ \w+) in the JSON", text_of(page)) == [
        "1 more file is", "2 more images are", "2 more groups are", "1 more image is", "4 more images are",
    ]  # fmt: skip
    for first, beyond in (
        ("l99", "l100"),
        ("c5", "c6"),
        ("g58", "g59"),
        ("w99", "w100"),
        ("f39", "f40"),
        ("b39", "b40"),
    ):
        assert f"<bdi>{first}</bdi>" in page and f"<bdi>{beyond}</bdi>" not in page
    images = dataset("c5", "c6", "h58", "h59", "w99", "f39", "f40", "b39", "b40", "z")
    assert set(pictures(shown, images)) == {"c5", "h58", "w99", "f39", "b39"}


def listed(*parts, own=True):
    """A data set of (class, training images, first content): the contents are consecutive numbers."""
    items = [
        Item(source=f"{label}/{n}", split="train", label=label, hash=str(n), handle=None)
        for label, count, first in parts
        for n in range(first, first + count)
    ]
    other = [Item(source="9", split="test", label=1, hash="none", handle=None)]
    return SimpleNamespace(
        name="pets", own=own, labels=("cat", "dog", "fox"), items={"train": items, "test": other}, fingerprint="ab" * 32
    )


def test_training_counts_copies_and_small_classes(own_cache):
    assert worst(listed((0, 20, 0), (1, 30, 100), (2, 40, 200))) == ""
    assert worst(listed((0, 20, 0), (1, 19, 100), (2, 40, 200))) == (
        "pets: 1 class has fewer than 20 training images, such as dog. To find more problems: edgecnn inspect"
    )
    line = worst(listed((0, 25, 0), (1, 12, 0), (2, 19, 200)))
    assert "12 files are copies of" in line and "2 classes have fewer than 20" in line and "such as dog." in line
    assert "1 file is a copy of" in worst(listed((0, 25, 0), (1, 30, 24), (2, 40, 200)))
    assert worst(listed((0, 5, 0), (1, 5, 0), own=False)) == "", "a known data set is as it is"
    assert not list(own_cache.iterdir()), "asking stores nothing"
