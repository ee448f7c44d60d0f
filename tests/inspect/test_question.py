"""The question about groups: it is asked where names or times show groups that matter, and never of groups that mean nothing."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.data.items import Item
from edgecnn.data.sides import Side
from edgecnn.inspect import question
from edgecnn.inspect.question import ask, fits, found
from edgecnn.region import WHOLE


def piled(count=24, size=10, apart=1.0, seed=1):
    """Return the features, classes and piles of photos: each class has a look of its own in each pile, and little in common elsewhere."""
    random = np.random.default_rng(seed)
    piles = np.repeat(np.arange(count), size)
    classes = random.integers(0, 2, len(piles))
    looks = random.normal(size=(count, 2, 40)) * apart
    features = looks[piles, classes] + random.normal(size=(len(piles), 40)) * 0.3
    features[:, 0] += classes
    return features.astype(np.float32), classes, piles


def items_of(names, classes):
    return [
        Item(split="train", label=int(label), hash=f"{n:064x}", source=f"{label}/{name}.jpg", handle=n, below=name)
        for n, (name, label) in enumerate(zip(names, classes, strict=True))
    ]


def dataset(read=lambda item: np.zeros((1, 1, 3), np.uint8), sides=None):
    return SimpleNamespace(read=read, sides=sides or {}, region=WHOLE)


def asked(names, features, classes, **more):
    notes = []
    sentence = ask(dataset(**more), items_of(names, classes), features, lambda *step: None, notes.append)
    assert not notes
    return sentence


def test_stems_with_counters_that_matter_are_named_with_both_figures_and_the_pattern():
    features, classes, piles = piled()
    names = [f"IMG_{4200 + pile}_{number}" for number, pile in enumerate(piles)]
    sentence = asked(names, features, classes)
    assert "(IMG_4200…, 24 groups)" in sentence and r"--group-by '(.+)_\d+$'" in sentence
    by_photo, by_stem = (int(part.split()[-1]) for part in sentence.split("%")[:2])
    assert by_photo >= by_stem + 3
    listed = {"a": Side("IMG_4200", "test", rule=r"(.+)_\d+$")}
    assert not asked(names, features, classes, sides=listed), "groups are named already"


def test_runs_of_a_hundred_numbers_are_asked_about():
    features, classes, piles = piled()
    sentence = asked([f"{100 * pile + number % 10:04d}" for number, pile in enumerate(piles)], features, classes)
    assert "runs of a hundred numbers" in sentence and r"'^(\d+)\d\d$'" in sentence


def test_times_of_exif_in_clusters_are_asked_about_and_not_repeated():
    features, classes, piles = piled()

    def read(item):
        exif = Image.Exif()
        hour, minute = divmod(int(piles[item.handle]) * 40, 60)
        exif.get_ifd(0x8769)[0x9003] = f"2026:05:17 {hour:02d}:{minute:02d}:{item.handle % 10:02d}"
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2)).save(buffer, "JPEG", exif=exif)
        return buffer.getvalue()

    sentence = asked([f"x{number}y" for number in range(len(piles))], features, classes, read=read)
    assert "time in EXIF (breaks of 10 minutes, 24 groups)" in sentence and "folder" in sentence
    assert "2026" not in sentence and ":17" not in sentence


def test_groups_that_mean_nothing_are_not_mentioned():
    features, classes, piles = piled(apart=0.0)
    assert not asked([f"IMG_{pile}_{number}" for number, pile in enumerate(piles)], features, classes)
    features, classes, piles = piled(count=12)
    said = 0
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(piles)
        said += bool(asked([f"IMG_{pile}_{number}" for number, pile in enumerate(shuffled)], features, classes))
    assert said <= 1


@pytest.mark.parametrize(
    "groups, classes, expected",
    [
        (np.repeat(np.arange(12), 5), np.tile([0, 1], 30), True),
        (np.repeat(np.arange(9), 6), np.tile([0, 1], 27), False),  # fewer than ten
        (np.r_[np.zeros(20, int), np.repeat(np.arange(1, 11), 4)], np.tile([0, 1], 30), False),  # one has a third
        (np.repeat(np.arange(12), 5), np.repeat(np.arange(12), 5), False),  # the classes themselves
        (np.arange(60), np.tile([0, 1], 30), False),  # each photo is a group
    ],
)
def test_groups_are_many_none_large_and_not_the_classes(groups, classes, expected):
    assert fits(groups, classes) == expected


def test_the_answer_is_remembered(monkeypatch):
    features, classes, piles = piled(apart=0.0)
    names = [f"IMG_{pile}_{number}" for number, pile in enumerate(piles)]
    assert asked(names, features, classes) == ""
    monkeypatch.setattr(question, "found", None)
    assert asked(names, features, classes) == ""


def test_names_with_counters_and_no_separator_have_stems_too():
    names = [f"board{board}x{number}" for board in range(9) for number in range(3)]
    (stem,) = found(dataset(), items_of(names, [0] * 27))
    assert "board0x…, 9 groups" in stem.example and r"(.*\D)\d+$" in stem.advice
    assert not list(found(dataset(), items_of(["a", "b", "c_1"], [0] * 3)))
