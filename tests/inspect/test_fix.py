"""A cleaned copy: which images it leaves out and why, and what the folder then contains."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.data import open_dataset
from edgecnn.data.tree import LEFT_OUT
from edgecnn.errors import DatasetError, OutputExistsError
from edgecnn.inspect.fix import emptied, left_out, require_new, write_cleaned
from edgecnn.inspect.inspection_report import Copy, Group, Lost, Odd, WrongLabel
from edgecnn.recipe import DataRecipe


def silent(*progress):
    """Show nothing."""


def group(*copies, exact=False):
    """A group of (source, label, number of its pixels), each in the split that its source begins with."""
    return Group(
        copies=tuple(
            Copy(source=source, split=source.partition("/")[0], label=label, same="near", pixels=pixels, keep=False)
            for source, label, pixels in copies
        ),
        exact=exact, leak=False, two_labels=False, by="hash", score=0.9, mirrored=False,
    )  # fmt: skip


def report(**parts):
    return SimpleNamespace(**{"unreadable": (), "groups": (), "wrong_labels": (), "far": (), "blurred": ()} | parts)


PHOTO = {"split": "train", "label": "cat"}
FOUND = report(
    unreadable=(Lost(source="1", split="train", reason="cut off"),),
    groups=(
        group(("test/2", "cat", 0), ("train/3", "cat", 1), ("train/4", "cat", 0), ("train/5", "cat", 1)),
        group(("train/6", "cat", 0), ("train/7", "dog", 0), ("train/8", "cat", 0), exact=True),
    ),
    wrong_labels=tuple(
        WrongLabel(source=one, suggested="dog", score=0.1, suggested_score=0.9, **PHOTO) for one in ("9", "1")
    ),
    far=tuple(Odd(source=one, value=2.0, usual=1.0, **PHOTO) for one in ("10", "9")),
    blurred=(Odd(source="11", value=0.1, usual=1.0, **PHOTO),),
)


def test_each_kind_leaves_out_its_images_with_the_first_reason():
    both = {
        "train/6": "it shows the same thing as train/7, which is labelled dog",
        "train/7": "it shows the same thing as train/6, which is labelled cat",
        "train/8": "it shows the same thing as train/7, which is labelled dog",
    }
    same = {
        "train/4": "it has the same pixels as test/2, which is in test",
        "train/5": "it has the same pixels as train/3",
    }
    near = {
        "train/3": "it shows the same thing as test/2, which is in test",
        "train/4": "it has the same pixels as test/2, which is in test",
        "train/5": "it shows the same thing as test/2, which is in test",
    }
    expected = {
        "unreadable": {"1": "it cannot be read: cut off"}, "copies": same | both, "near": near, "copies near": near | both,
        "labels": dict.fromkeys(("9", "1"), "it is labelled cat but looks like dog"),
        "far": dict.fromkeys(("10", "9"), "it is unlike all others"),
        "blurred": {"11": "it is much less sharp than the others"}, "": {},
    }  # fmt: skip
    assert {kinds: left_out(FOUND, kinds.split()) for kinds in expected} == expected
    every = left_out(FOUND, ("unreadable", "labels", "far"))
    assert sorted(every) == ["1", "10", "9"] and "read" in every["1"] and "dog" in every["9"]


def picture(seed, encode):
    return encode(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)), "PNG")


def cleaned_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_photos_of_one_name_in_subfolders_are_all_in_the_copy(tmp_path, fill, encode):
    """A photo's new name is not that of another photo, in whatever order they come."""
    names = ["cat/a.png", "cat/deep/a.png", "cat/deep/A.PNG", "cat/1-a.png", "cat/2-a.png", "cat/3-a.png", "fox/a.png"]
    for turn in range(3):
        source = fill(tmp_path / f"pets {turn}", {name: picture(10 * turn + n, encode) for n, name in enumerate(names)})
        dataset = open_dataset(DataRecipe(source=str(source)), for_training=False)
        made = tmp_path / f"cleaned {turn}"
        assert write_cleaned(report(), dataset, made, (), silent).kept == 7
        files = cleaned_files(made)
        del files[LEFT_OUT]
        assert sorted(files.values()) == sorted(cleaned_files(source).values())
        assert len({name.lower() for name in files}) == 7 and sum(name.startswith("fox/") for name in files) == 1


def test_the_copy_has_the_splits_of_the_data_the_lists_and_what_was_left_out(tmp_path, fill, encode):
    """The data have no validation photos: those that edgecnn sets aside stay training photos."""
    long, longer = ("n" * (size - 4) + ".png" for size in (200, 201))
    names = [f"train/cat/{name}" for name in ("1.png", "2.png", "3.png", long, longer)]
    names += ["train/a\\b/4.png", "train/a\\b/5.png", "test/a\\b/6.png", "test/cat/7.png", "test/cat/8.png"]
    source = fill(tmp_path / "pets", {name: picture(n, encode) for n, name in enumerate(names)})
    (source / "edgecnn-sources.csv").write_text("sha256,path,board,ts\n")
    dataset = open_dataset(DataRecipe(source=str(source), validation_fraction=0.6), for_training=False)
    assert dataset.items["validation"]
    far = report(far=[Odd(source=f"train/cat/{n}.png", value=2.0, usual=1.0, **PHOTO) for n in (3, 2)])
    calls = []
    before = os.umask(0o027)
    try:
        cleaned = write_cleaned(
            far, dataset, tmp_path / "in" / "deep" / "cleaned", ("far",), lambda *step: calls.append(step)
        )
    finally:
        os.umask(before)
    made = tmp_path / "in" / "deep" / "cleaned"
    files = cleaned_files(made)
    listed = json.loads(files.pop(LEFT_OUT))
    assert (listed["kept"], [one["source"] for one in listed["left_out"]]) == (
        8,
        ["train/cat/2.png", "train/cat/3.png"],
    )
    assert cleaned.kept == 8 and calls[-1][1:] == (8, 8) and listed["data"] == dataset.title
    assert files.pop("edgecnn-sources.csv") == b"sha256,path,board,ts\n"
    names = ["train/a-b/4.png", "train/a-b/5.png", "train/cat/1.png", f"train/cat/{long}"]
    names += ["test/a-b/6.png", "test/cat/7.png", "test/cat/8.png"]
    (new,) = files.keys() - set(names)
    assert set(names) < set(files) and files[new] == picture(4, encode), "only the name that is too long is replaced"
    assert new.startswith("train/cat/") and len(new) == len("train/cat/") + 16 + len(".png")
    assert made.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in made.parent.iterdir()] == ["cleaned"]
    assert emptied(cleaned, dataset) == []


def test_a_class_without_images_is_named_and_one_class_is_no_copy(tmp_path, fill, encode):
    names = ["bee/1.png", "cat/2.png", "cat/3.png", "fox/4.png", "fox/5.png"]
    source = fill(tmp_path / "pets", {name: picture(n, encode) for n, name in enumerate(names)})
    dataset = open_dataset(DataRecipe(source=str(source)), for_training=False)

    def without(*sources):
        return report(blurred=[Odd(source=one, value=0.1, usual=1.0, **PHOTO) for one in sources])

    cleaned = write_cleaned(
        without("cat/2.png", "cat/3.png", "fox/4.png"), dataset, tmp_path / "c", ("blurred",), silent
    )
    assert emptied(cleaned, dataset) == ["cat"] and cleaned.kept == 2
    with pytest.raises(DatasetError):
        write_cleaned(without("bee/1.png", *names[3:]), dataset, tmp_path / "d", ("blurred",), silent)
    (source / "fox/5.png").write_bytes(picture(77, encode))
    with pytest.raises(DatasetError):
        write_cleaned(report(), dataset, tmp_path / "d", (), silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "pets"], "nothing half-written stays"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder in (tmp_path / "link", source / "deep" / "er", source):
        with pytest.raises(OutputExistsError):
            require_new(folder, str(source))
    require_new(tmp_path / "pets 2", str(source))
