"""Groups that a user names: by folder or by a part of the name, alike in folders, zips and Frigate's; what makes no groups is said."""

import zipfile
from itertools import product

import pytest

from edgecnn.data import open_dataset
from edgecnn.data.groups import BY_FOLDER, FOLDER, NONE, grouping, texts_by
from edgecnn.data.items import Item
from edgecnn.data.sides import Side
from edgecnn.errors import DatasetError
from edgecnn.recipe import DataRecipe, build_recipe

LABELS = ("crack", "fine")


def items_of(*names):
    """Return an item of each "CLASS/PATH"."""
    return [
        Item(
            split="train", label=LABELS.index(name.partition("/")[0]), hash=name, source=f"{name}.jpg", handle=None,
            below=name.partition("/")[2],
        )
        for name in names
    ]  # fmt: skip


PARTS = items_of(*(f"{label}/part-{part}/{n}" for label in LABELS for part in range(3) for n in range(2)))
NAMES = items_of(*(f"{label}/IMG_{pile}_{n}" for label in LABELS for pile in range(4) for n in range(2)), "fine/loose")


def test_a_group_is_the_folder_below_the_class_folder_and_equal_in_two_classes():
    groups = grouping(PARTS, LABELS, None, {})
    assert groups.rule == FOLDER and set(groups.texts.values()) == {"part-0", "part-1", "part-2"}
    assert groups.texts["crack/part-1/0"] == groups.texts["fine/part-1/1"] and not groups.line
    deep = items_of("crack/day/part/1", "crack/day/other/1", "fine/x")
    assert texts_by(FOLDER, deep) == {"crack/day/part/1": "day/part", "crack/day/other/1": "day/other"}
    assert texts_by(BY_FOLDER, PARTS) == groups.texts


def test_folders_that_leave_a_class_few_groups_are_ignored_with_a_line():
    images = items_of(*(f"crack/images/{n}" for n in range(9)), *(f"fine/part-{n}/1" for n in range(9)))
    groups = grouping(images, LABELS, None, {})
    assert not groups.rule and not groups.texts and "'crack' has 1 group" in groups.line
    assert not grouping(items_of("crack/1", "fine/1"), LABELS, None, {}).line, "there are no folders"
    assert grouping(PARTS, LABELS, NONE, {}) == ("", {}, {}, "")


def test_a_pattern_gives_its_first_group_or_the_whole_match_and_may_leave_photos_single():
    for pattern in (r"(.+)_\d+$", r"IMG_\d+(?=_)", r"^(IMG_\d)(_.)?"):
        groups = grouping(NAMES, LABELS, pattern, {})
        assert set(groups.texts.values()) == {f"IMG_{pile}" for pile in range(4)} and "fine/loose" not in groups.texts
    assert texts_by(r"x*", NAMES) == {}, "an empty match is no group"
    assert texts_by(r"(y)?IMG", NAMES) == {}, "neither is a group that did not take part"
    same = [*items_of("crack/a_1"), *(Item(**{**vars_of(one), "hash": "crack/a_1"}) for one in items_of("fine/b_1"))]
    assert texts_by("(.+)_", same) == {"crack/a_1": "a"}, "one file has one group"


def vars_of(item):
    return {name: getattr(item, name) for name in ("split", "label", "hash", "source", "handle", "below")}


@pytest.mark.parametrize(
    "pattern, said",
    [("page", "matches none of 17 names, such as 'IMG_0_0'"), ("IMG", "gives 2 groups, such as 'IMG'"), (".*", None)],
)
def test_a_pattern_that_matches_nothing_or_everything_is_a_clear_error(pattern, said):
    if said is None:
        assert len(set(grouping(NAMES, LABELS, pattern, {}).texts.values())) == 9, "every name is a group of its own"
        return
    with pytest.raises(DatasetError, match=f"--group-by '{pattern}' {said}"):
        grouping(NAMES, LABELS, pattern, {})


def test_one_group_per_class_is_a_clear_error_and_one_class_with_one_group_trains():
    labels = ("a", "b", "c")
    items = [
        Item(split="train", label=label, hash=f"{label} {n}", source=f"{label}/{n}", handle=None, below=f"{label}_{n}")
        for label in range(3)
        for n in range(4)
    ]
    with pytest.raises(DatasetError, match=r"gives each class one group, such as '0' for 'a'"):
        grouping(items, labels, "(.+)_", {})
    assert len(set(grouping(items, labels, r"^(0|[12]_\d)", {}).texts.values())) == 9


def test_the_list_decides_unless_a_pattern_is_requested_and_another_rule_divides_anew():
    by_pile = {"crack/IMG_0_0": Side("IMG_0", "test", rule=r"(.+)_\d+$")}
    by_photo, former = {"crack/IMG_0_0": Side("x", "test", rule="photo")}, {"crack/IMG_0_0": Side("x", "test")}
    listed = grouping(NAMES, LABELS, None, by_pile)
    assert listed.rule == r"(.+)_\d+$" and listed.known == by_pile and listed.texts["crack/IMG_0_1"] == "IMG_0"
    assert grouping(NAMES, LABELS, r"(.+)_\d+$", by_pile).known == by_pile
    assert grouping(NAMES, LABELS, r"(\d)_\d+$", by_pile).known == {} == grouping(NAMES, LABELS, NONE, by_pile).known
    for known in (by_photo, former):
        assert grouping(PARTS, LABELS, None, known) == ("", {}, known, ""), "folders do not divide a list anew"
        assert grouping(PARTS, LABELS, NONE, known).known == known
        assert grouping(NAMES, LABELS, "(.+)_", known).known == {}


@pytest.mark.parametrize("value", ["(", "", 3])
def test_the_recipe_refuses_what_is_no_pattern(value):
    from edgecnn.errors import RecipeError

    with pytest.raises(RecipeError, match=r"data\.group_by must be a"):
        build_recipe({"data": {"group_by": value}})


def test_images_with_splits_and_named_datasets_are_not_grouped(tmp_path, fill, picture):
    files = {
        f"{split}/{label}/a_{n}.png": picture(n) for n, (split, label) in enumerate(product(("train", "test"), "ab"))
    }
    for source in (str(fill(tmp_path / "pets", files)), "digits"):
        dataset = open_dataset(DataRecipe(source=source, group_by="(.+)_"), for_training=False)
        with pytest.raises(DatasetError, match="--group-by divides your own photos"):
            dataset.require_groups()
        open_dataset(DataRecipe(source=source, group_by=NONE), for_training=False).require_groups()


def test_zips_and_folders_have_the_same_groups(tmp_path, fill, picture):
    files = {
        f"{label}/part-{part}/{n}.x.png": picture(10 * part + n)
        for label in "ab"
        for part in range(3)
        for n in range(2)
    }
    folder = fill(tmp_path / "pets", files)
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for name in files:
            archive.write(folder / name, f"photos/pets/{name}")
    found = []
    for path in (folder, tmp_path / "pets.zip"):
        items = [
            item
            for part in open_dataset(DataRecipe(source=str(path)), for_training=False).items.values()
            for item in part
        ]
        assert {item.below for item in items} == {f"part-{part}/{n}.x" for part in range(3) for n in range(2)}
        found.append(texts_by(FOLDER, items))
    assert found[0] == found[1] and set(found[0].values()) == {"part-0", "part-1", "part-2"}
