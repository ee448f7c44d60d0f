"""Findings as sentences and as a page."""

import base64
import io
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import open_dataset
from edgecnn.data.items import Fault, Item
from edgecnn.errors import DatasetError
from edgecnn.inspect import findings
from edgecnn.inspect.findings import (
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
from edgecnn.inspect.fix import write_cleaned
from edgecnn.inspect.inspection import SHOWN, pictures, verdict, write_inspection
from edgecnn.recipe import DataRecipe
from edgecnn.stages.train import faults_line

METHOD = Method(
    features=None, missing=None, all_alike=False, skipped_pairs=0, uncompared=0, labels_by=None
)  # fmt: skip


def figures(text):
    return re.findall(r"\d[\d,.]*\d|\d", text)


def said(found, *names):
    """Kind, severity and image count of findings, and which of the names each mentions, in the order of its sentence."""
    return [
        (one.kind, one.severity, one.images, re.findall("|".join(map(re.escape, names)), one.text)) for one in found
    ]


def counted(label, train, test, distinct):
    return ClassFigures(label=label, images={"train": train, "validation": 0, "test": test}, distinct=distinct)


def test_the_smallest_class_the_largest_and_the_most_alike_are_named():
    """112, 11 and 45 images, 60, 11 and 20 of them different."""
    classes = [counted("cat", 100, 12, 60), counted("dog", 8, 3, 11), counted("fox", 15, 30, 20)]
    found = list(findings.of_classes(classes, METHOD))
    assert said(found, "cat", "dog", "fox") == [
        ("few", "warning", 2, ["dog"]),
        ("few", "note", 1, ["dog"]),
        ("balance", "warning", 2, ["cat", "dog"]),
        ("alike", "warning", 2, ["fox"]),
    ]
    assert [figures(one.text) for one in found] == [
        ["2", "20", "8"], ["1", "10", "3"], ["10.2", "112", "11"], ["2", "45", "20"],
    ]  # fmt: skip
    assert "dog" in found[2].advice


@pytest.mark.parametrize(
    ("most", "few", "severity"), [(89, 30, None), (90, 30, "note"), (299, 30, "note"), (300, 30, "warning")]
)
def test_the_ratio_from_which_classes_are_called_uneven(most, few, severity):
    classes = [counted("cat", few, 20, few + 20), counted("fox", most - 20, 40, most + 20)]
    found = findings.of_classes([counted("cat", few - 10, 10, few), counted("fox", most - 10, 10, most)], METHOD)
    assert [one.severity for one in found if one.kind == "balance"] == ([severity] if severity else [])
    assert not [one for one in findings.of_classes(classes[:1], METHOD) if one.kind == "balance"]
    lone = [counted("cat", 1, 0, 1), counted("fox", 30, 3, 33)]
    assert ["33.0", "33", "1"] in [figures(one.text) for one in findings.of_classes(lone, METHOD)]


def group(*copies, exact=True, pixels=None):
    """A group of (source, label), each in the split that its source begins with; `pixels` numbers each one's content."""
    splits = [source.partition("/")[0] for source, _ in copies]
    return Group(
        copies=tuple(
            Copy(source=source, split=split, label=label, same="pixels", pixels=number, keep=False)
            for (source, label), split, number in zip(
                copies, splits, pixels or ([0] * len(copies) if exact else range(len(copies))), strict=True
            )
        ),
        exact=exact, leak=len(set(splits)) > 1, two_labels=len({label for _, label in copies}) > 1, by="content",
        score=1.0, mirrored=False,
    )  # fmt: skip


def test_copies_are_named_with_their_fault():
    leak = group(("test/1", "cat"), ("test/2", "cat"), ("train/3", "cat"))
    ours = group(("train/4", "cat"), ("validation/5", "cat"))
    labels = group(("train/6", "cat"), ("train/7", "cat"), ("train/8", "dog"))
    same, near = (
        group(("train/9", "cat"), ("train/10", "cat")),
        group(("train/11", "cat"), ("train/12", "cat"), exact=False),
    )
    found = list(findings.of_groups([near, same, same, labels, ours, leak], ("train", "test"), keeps_groups=False))
    sources = [f"{split}/{number}" for number in range(12, 0, -1) for split in ("train", "validation", "test")]
    assert said(found, *sources) == [
        ("leak", "error", 1, ["test/1", "train/3"]),
        ("leak", "warning", 1, ["train/4", "validation/5"]),
        ("two-labels", "error", 1, ["train/6", "train/8"]),
        ("duplicate", "warning", 2, ["train/9", "train/10"]),
        ("near-duplicate", "note", 1, ["train/11", "train/12"]),
    ]
    mixed = group(*((f"train/{number}", "cat") for number in range(4)), exact=False, pixels=(0, 1, 2, 1))
    found = list(findings.of_groups([same, near, mixed], ("train", "test"), keeps_groups=False))
    assert [(one.kind, one.images) for one in found] == [("duplicate", 2), ("near-duplicate", 2)]
    found = findings.of_groups([mixed], ("train", "test"), keeps_groups=False)
    assert said(found, "train/0", "train/1", "train/2", "train/3") == [
        ("duplicate", "warning", 1, ["train/1", "train/3"]),
        ("near-duplicate", "note", 1, ["train/0", "train/1"]),
    ]
    kept = [
        one.advice
        for keeps_groups in (False, True)
        for one in findings.of_groups([ours], ("train", "test"), keeps_groups=keeps_groups)
    ]
    assert kept[0].startswith("Keep one of each") and kept[1].startswith("Nothing")


def test_the_first_doubtful_label_and_the_first_odd_image_are_named():
    photo = {"split": "train", "label": "cat"}
    doubts = [WrongLabel(source=f"{n}.jpg", suggested="dog", score=0.01, suggested_score=0.9, **photo) for n in (7, 8)]
    far, soft = ([Odd(source=f"{n}.jpg", value=2.0, usual=1.0, **photo) for n in odd] for odd in ((4, 3, 5), (6,)))
    lost = [Lost(source=f"{n}.jpg", split="train", reason="truncated") for n in (2, 1)]
    names = [f"{n}.jpg" for n in range(1, 9)]
    assert said(findings.of_labels(doubts), *names, "cat", "dog") == [("label", "warning", 2, ["7.jpg", "cat", "dog"])]
    assert said(findings.of_odd_ones(far, soft), *names) == [
        ("far", "note", 3, ["4.jpg"]),
        ("blurred", "note", 1, ["6.jpg"]),
    ]
    (broken,) = findings.of_files(lost, 1500)
    assert figures(broken.text) == ["2", "1,500", "2"] and "2.jpg" in broken.text and "truncated" in broken.text
    assert not [*findings.of_labels([]), *findings.of_odd_ones([], []), *findings.of_files([], 9)]


def test_a_size_that_reveals_the_class_is_named():
    """60 of 100 images are 300x200, 45 of them foxes; the others are 64x48, 36 of them cats."""
    shapes = [(300, 200, 3)] * 60 + [(64, 48, 3)] * 40
    classes = [1] * 45 + [0] * 15 + [0] * 36 + [1] * 4
    items = [Item(source=f"{n}.jpg", split="train", label=label, hash="", handle=0) for n, label in enumerate(classes)]
    sizes, tell = findings.of_sizes(items, shapes, ("cat", "fox"))
    assert (sizes.kind, sizes.images, figures(sizes.text)) == ("sizes", 40, ["2", "60", "300", "200"])
    assert (tell.kind, tell.severity, tell.images) == ("tell", "warning", 81)
    assert figures(tell.text) == ["81", "51", "64", "48", "90"] and "cat in" in tell.text
    even = [0, 1] * 50
    items = [Item(source="a.jpg", split="train", label=label, hash="", handle=0) for label in even]
    assert [one.kind for one in findings.of_sizes(items, shapes, ("cat", "fox"))] == ["sizes"]


def test_classes_at_a_limit_are_not_called_small_or_alike():
    """20 training and 10 test images are enough, and so are 70 different ones of 100. Foxes have the largest share of copies."""
    enough, fewer = counted("cat", 20, 10, 21), counted("dog", 19, 11, 30)
    (few,) = findings.of_classes([enough, fewer], METHOD)
    assert said([few], "cat", "dog") == [("few", "warning", 1, ["dog"])]
    assert figures(few.text) == ["1", "20", "19"] and "1 class with" in few.text
    (few,) = findings.of_classes([counted("cat", 21, 10, 31), counted("dog", 20, 9, 29)], METHOD)
    assert said([few], "cat", "dog") == [("few", "note", 1, ["dog"])] and figures(few.text) == ["1", "10", "9"]
    assert not list(findings.of_classes([counted("cat", 50, 0, 50), counted("dog", 30, 0, 30)], METHOD)), (
        "no test split"
    )
    classes = [
        counted("cat", 80, 20, 70),
        counted("dog", 80, 20, 69),
        counted("fox", 40, 12, 20),
        counted("bee", 23, 11, 19),
    ]
    alike = [one for one in findings.of_classes(classes, METHOD) if one.kind == "alike"]
    assert said(alike, "cat", "dog", "fox", "bee") == [("alike", "warning", 3, ["fox"])]
    assert figures(alike[0].text) == ["3", "52", "20"]


def test_a_camera_that_never_moves_and_copies_that_were_not_compared_are_counted():
    classes = [counted("cat", 50, 12, 62), counted("dog", 30, 11, 41)]
    tight = replace(METHOD, all_alike=True)
    left = replace(METHOD, skipped_pairs=1234, uncompared=56)
    (still,) = findings.of_classes(classes, tight)
    (skipped,) = findings.of_classes(classes, left)
    assert (still.kind, still.severity, still.images, figures(still.text)) == ("alike", "warning", 0, [])
    assert (skipped.kind, skipped.images, figures(skipped.text)) == ("alike", 56, ["1,234", "56"])
    assert re.search("1,234 pairs.* 56 images", skipped.text)
    for some in ({"skipped_pairs": 1}, {"uncompared": 1}):
        assert len(list(findings.of_classes(classes, replace(METHOD, **some)))) == 1


def test_left_out_photos_are_worse_than_other_files():
    faults = [Fault("the folder fox/ is empty.", "Fill it.")]
    layout, *rest = findings.of_folders(faults, ("a.txt", "b.PNG"), ["1 file", "1 photo. Convert it. Or not."])
    assert (layout.kind, layout.severity, layout.text, layout.advice) == (
        "layout", "error", "the folder fox/ is empty", "Fill it.",
    )  # fmt: skip
    assert [(one.kind, one.severity, one.images, one.text) for one in rest] == [
        ("left-out", "warning", 2, "1 file"), ("left-out", "warning", 2, "1 photo"),
    ]  # fmt: skip
    assert "class folders" in rest[0].advice and rest[1].advice == "Convert it. Or not."
    for name, severity in (("a.HEIC", "warning"), ("a.dng", "warning"), ("b.zip", "warning"), ("zip", "note")):
        (one,) = findings.of_folders([], (name, "a.txt", "b.md"), ["3 files"])
        assert (one.severity, one.images) == (severity, 3), name


def sized(*parts):
    """The kinds, counts and figures for (class, number of images, width, height, suffix)."""
    items = [
        Item(source=f"a.b.{suffix}", split="train", label=label, hash="", handle=0)
        for label, count, _, _, suffix in parts
        for _ in range(count)
    ]
    shapes = [(width, height, 3) for _, count, width, height, _ in parts for _ in range(count)]
    return [(one.kind, one.images, figures(one.text)) for one in findings.of_sizes(items, shapes, ("cat", "fox"))]


def test_how_many_images_of_a_size_reveal_a_class():
    ten, nine = ((1, count, 40, 30, "png") for count in (10, 9))
    rare = [(0, 1, 100 + n, 90, "jpg") for n in range(21)]
    assert sized((0, 11, 64, 48, "jpg"), ten)[1:] == [("tell", 21, ["100", "52", "40", "30", "100"])]
    assert not sized((0, 11, 64, 48, "jpg"), nine)[1:], "nine images of a size say nothing"
    assert sized((0, 10, 64, 48, "jpg"), ten, *rare[:20])[1:] == [("tell", 20, ["100", "50", "40", "30", "100"])]
    assert not sized((0, 10, 64, 48, "jpg"), ten, *rare)[1:], "most images have a rare size"
    # 25 and 15 of 50 images are predicted, 30 are cats: exactly 20 % more than always guessing cat
    cats, foxes = [(0, 25, 64, 48, "jpg"), (0, 5, 40, 30, "jpg")], [(1, 5, 64, 48, "jpg"), (1, 15, 40, 30, "jpg")]
    assert sized(*cats, *foxes)[1:] == [("tell", 40, ["80", "60", "40", "30", "75"])]
    assert not sized(*cats, (1, 6, 64, 48, "jpg"), (1, 14, 40, 30, "jpg"))[1:]
    assert sized((0, 30, 64, 48, "jpg"), (1, 20, 64, 48, "JPG")) == [], "one size and one format"
    assert sized((0, 30, 64, 48, "jpg"), (1, 12, 64, 48, "png"))[1] == ("tell", 42, ["100", "71", "64", "48", "100"])
    assert sized() == []


def test_a_cleaned_copy_that_fails_leaves_nothing(tmp_path, fill, encode):
    from PIL import Image

    random = np.random.default_rng(1)
    files = {
        f"{label}/{n}.png": encode(Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)), "PNG")
        for label in ("cat", "fox")
        for n in range(4)
    }
    dataset = open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files))), for_training=False)
    (tmp_path / "pets/fox/3.png").write_bytes(files["cat/0.png"])
    nothing = SimpleNamespace(unreadable=(), groups=(), wrong_labels=(), far=(), blurred=())
    with pytest.raises(DatasetError):
        write_cleaned(nothing, dataset, tmp_path / "cleaned", (), lambda what, done, total: None)
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


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


def render(report, dataset):
    with tempfile.TemporaryDirectory() as folder:
        return write_inspection(report, dataset, Path(folder)).read_text()


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
    assert faults_line(listed((0, 20, 0), (1, 30, 100), (2, 40, 200))) == ""
    assert faults_line(listed((0, 20, 0), (1, 19, 100), (2, 40, 200))) == (
        "pets: 1 class has fewer than 20 training images, such as dog. To find more problems: edgecnn inspect"
    )
    line = faults_line(listed((0, 25, 0), (1, 12, 0), (2, 19, 200)))
    assert "12 files are copies of" in line and "2 classes have fewer than 20" in line and "such as dog." in line
    assert "1 file is a copy of" in faults_line(listed((0, 25, 0), (1, 30, 24), (2, 40, 200)))
    assert faults_line(listed((0, 5, 0), (1, 5, 0), own=False)) == "", "a known data set is as it is"
    assert not list(own_cache.iterdir()), "asking stores nothing"
