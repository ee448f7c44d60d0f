"""Which photos share a split, a group and a fold."""

import dataclasses
import os
import shutil
import zipfile
from collections import Counter
from itertools import pairwise, product
from types import MappingProxyType

import numpy as np
import pytest

from edgecnn.data import open_dataset
from edgecnn.data.folds import Folds, assign, fold_infos, read_folds, require_listed, stratified, write_folds
from edgecnn.data.items import Item
from edgecnn.data.splits import (
    BURST,
    BY_FOLDER,
    COPY,
    FOLDER,
    NONE,
    SAME,
    SPLITS,
    Grouping,
    Link,
    SplitGroup,
    divide,
    frames_of,
    grouping,
    position_of,
    read_split_groups,
    rule_of,
    split_groups_text,
    splits_of,
    texts_by,
    tied,
    updated,
)
from edgecnn.errors import DatasetError, RunError
from edgecnn.files import sha256
from edgecnn.labels import SOURCES_CSV, SPLITS_CSV
from edgecnn.recipe import DataRecipe, build_recipe
from edgecnn.runs import FOLD, FOLD_INFO, FOLDS, create_run, write_json


def item(number: int, split: str = "train") -> Item:
    return Item(split=split, label=number % 2, hash=sha256(b"%d" % number), source=str(number), handle=None)


def where(divided) -> dict[str, str]:
    return {item.source: split for split in SPLITS for item in divided[split]}


def test_the_hash_decides_by_the_stated_formula():
    recipe = DataRecipe(validation_fraction=0.1, test_fraction=0.2)
    divided = divide(map(item, range(5000)), recipe)
    for split in SPLITS:
        for entry in divided[split]:
            place = int(entry.hash[:16], 16) / 2**64
            assert split == ("test" if place < 0.2 else "validation" if place < 0.3 else "train")
            assert entry.split == split
    assert 900 < len(divided["test"]) < 1100
    assert 430 < len(divided["validation"]) < 570


def test_the_fractions_are_upper_bounds():
    recipe = DataRecipe(validation_fraction=0.5, test_fraction=0.25)
    first = {"test": "0" * 64, "validation": f"4{'0' * 63}", "train": f"c{'0' * 63}"}
    last = {"test": f"3{'f' * 9}{'0' * 54}", "validation": f"b{'f' * 9}{'0' * 54}", "train": f"{'f' * 10}{'0' * 54}"}
    for hashes in (first, last):
        items = (dataclasses.replace(item(0), hash=hash_, source=split) for split, hash_ in hashes.items())
        assert all(source == split for source, split in where(divide(items, recipe)).items())


def test_adding_images_moves_none():
    before = where(divide(map(item, range(1000)), DataRecipe()))
    after = where(divide(map(item, range(3000)), DataRecipe()))
    assert {source: after[source] for source in before} == before


def test_a_smaller_validation_split_is_part_of_a_larger_one():
    small, large = (
        {entry.hash for entry in divide(map(item, range(1000)), DataRecipe(validation_fraction=fraction))["validation"]}
        for fraction in (0.1, 0.2)
    )
    assert small < large


def test_splits_from_the_source_stay():
    own_test = divide([*map(item, range(1000)), *(item(n, "test") for n in range(1000, 1100))], DataRecipe())
    assert {entry.source for entry in own_test["test"]} == {str(n) for n in range(1000, 1100)}
    assert 60 < len(own_test["validation"]) < 140
    own_both = divide([item(1), item(2, "validation"), item(3, "test")], DataRecipe(validation_fraction=0.5))
    assert where(own_both) == {"1": "train", "2": "validation", "3": "test"}
    own_validation = divide([*map(item, range(1000)), item(1000, "validation")], DataRecipe())
    assert len(own_validation["validation"]) == 1
    assert 150 < len(own_validation["test"]) < 250


def test_names_and_disk_order_do_not_matter(pets, tmp_path):
    original = open_dataset(DataRecipe(source=str(pets)))
    copy = tmp_path / "other" / "pets"
    for label in ("dog", "cat"):
        (copy / label).mkdir(parents=True)
        for number, path in enumerate(sorted((pets / label).iterdir(), reverse=True)):
            shutil.copy(path, copy / label / f"renamed-{number}.png")
    renamed = open_dataset(DataRecipe(source=str(copy)))
    assert renamed.fingerprint == original.fingerprint
    assert renamed.hashes == original.hashes
    size = {"height": 12, "width": 12, "channels": 3, "stage": "verify"}
    first, second = original.load(SPLITS, **size), renamed.load(SPLITS, **size)
    for split in SPLITS:
        assert (first[split].images == second[split].images).all()
        assert (first[split].classes == second[split].classes).all()


def test_the_order_of_a_folders_listing_does_not_matter(pets, monkeypatch):
    expected = open_dataset(DataRecipe(source=str(pets)))
    scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert open_dataset(DataRecipe(source=str(pets))).fingerprint == expected.fingerprint


@pytest.mark.parametrize("change", ["pixel", "label", "gone"])
def test_the_fingerprint_detects_every_change(pets, change, picture):
    before = open_dataset(DataRecipe(source=str(pets)))
    victim = pets / "cat" / "7.png"
    if change == "pixel":
        victim.write_bytes(picture(7777))
    elif change == "label":
        victim.rename(pets / "dog" / "moved.png")
    else:
        victim.unlink()
    after = open_dataset(DataRecipe(source=str(pets)))
    assert after.fingerprint != before.fingerprint
    assert after.hashes != before.hashes


def test_the_fingerprint_includes_the_fractions(pets):
    recipe = DataRecipe(source=str(pets))
    other = dataclasses.replace(recipe, validation_fraction=0.3)
    assert open_dataset(recipe).fingerprint != open_dataset(other).fingerprint


def test_a_class_without_training_images_reports_how_many_are_needed(tmp_path, fill, picture, pictures):
    to_validation = (seed for seed in range(10_000) if int(sha256(picture(seed))[:16], 16) / 2**64 < 0.2)
    foxes = {f"train/fox/{n}.png": picture(next(to_validation)) for n in range(3)}
    files = {**pictures("train/cat", 0, 9), **pictures("train/dog", 100, 9), **pictures("test/fox", 20_000, 3), **foxes}
    with pytest.raises(DatasetError, match=r"no training images for 'fox'.*\n.*at least 10 training images"):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files)), validation_fraction=0.3))


def test_an_empty_validation_split_reports_how_many_are_needed(tmp_path, fill, picture):
    seeds = (seed for seed in range(10_000) if int(sha256(picture(seed))[:16], 16) / 2**64 > 0.5)
    files = {f"{label}/{n}.png": picture(next(seeds)) for label in ("cat", "dog") for n in range(3)}
    with pytest.raises(DatasetError, match=r"the validation split is empty; it takes 10%.*\n.*about 66 in total"):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files)))).check()


def test_an_empty_test_split_reports_how_many_are_needed(tmp_path, fill, picture):
    places = {seed: int(sha256(picture(seed))[:16], 16) / 2**64 for seed in range(100)}
    kept = [seed for seed, place in places.items() if place > 0.5]
    validation = [seed for seed, place in places.items() if 0.2 < place < 0.3]
    files = {
        f"{label}/{seed}.png": picture(seed)
        for label, seeds in (("cat", kept[::2]), ("dog", kept[1::2]))
        for seed in seeds
    }
    files |= {f"cat/{seed}.png": picture(seed) for seed in validation}
    with pytest.raises(DatasetError, match=r"(?s)pets.* test .*20%.* 31 "):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files)))).check()


SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def name(text: object) -> str:
    return sha256(str(text).encode())


def placed(known, photos, links, texts=MappingProxyType({}), rule=""):
    return updated(Grouping(rule, texts, known), photos, SHARES, links)


def divided(split_groups, photos):
    return Counter((photos[one], split_group.split) for one, split_group in split_groups.items())


def test_each_split_gets_its_share_of_each_class_and_nothing_moves_as_copies_arrive():
    """Ten frames of each scene are near copies of the first, and arrive on three days, the first one first."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        frames = {(scene, number): name((seed, scene, number)) for scene in range(60) for number in range(10)}
        links = [Link(frames[scene, 0], frames[scene, n], 0.9, COPY) for scene in range(60) for n in range(1, 10)]
        days = random.integers(3, 10, (60, 2))
        split_groups, photos = {}, {}
        for day in range(3):
            known = split_groups
            photos |= {
                frames[scene, number]: scene % 3 // 2
                for scene in range(60)
                for number in range((*sorted(days[scene].tolist()), 10)[day])
            }
            here = [link for link in links if {link.first, link.second} <= photos.keys()]
            split_groups = placed(known, photos, here)
            assert {one: split_groups[one] for one in known} == dict(known) and split_groups.keys() == photos.keys()
            assert not tied(split_groups, here)
        for scene in range(60):
            assert len({split_groups[frames[scene, number]] for number in range(10)}) <= 2, "the first, and its copies"
            assert len({split_groups[frames[scene, number]].split for number in range(10)}) == 1
    whole = placed({}, photos, links)
    counts = divided(whole, photos)
    assert {key: counts[key] for key in counts if key[0] == 0} == {
        (0, "train"): 280,
        (0, "validation"): 40,
        (0, "test"): 80,
    }
    assert {key: counts[key] for key in counts if key[0] == 1} == {
        (1, "train"): 140,
        (1, "validation"): 20,
        (1, "test"): 40,
    }


def test_without_groups_the_shares_are_exact_to_a_photo_and_later_photos_fill_what_lacks():
    photos = {name(number): int(number >= 57) for number in range(91)}
    split_groups = placed({}, photos, [])
    for label, total in ((0, 57), (1, 34)):
        for split, share in SHARES.items():
            assert abs(divided(split_groups, photos)[label, split] - share * total) <= 1
    listed = {one: SplitGroup(one, "train") for one in photos}
    photos |= {name(("later", number)): 0 for number in range(30)}
    later = placed(listed, photos, [])
    assert {later[one].split for one in photos if one not in listed} == {"validation", "test"}


def test_a_near_copy_joins_the_first_photo_of_a_group_and_never_another_near_copy():
    chain = [name(number) for number in range(30)]
    photos = dict.fromkeys(chain, 0)
    split_groups = placed({}, photos, [Link(one, other, 0.9, COPY) for one, other in pairwise(chain)])
    assert max(Counter(split_group.group for split_group in split_groups.values()).values()) == 3, (
        "a photo and its two neighbours"
    )
    same = placed({}, photos, [Link(chain[0], other, 1.0, SAME) for other in chain[1:]])
    assert len({split_group.group for split_group in same.values()}) == 1


def test_a_copy_of_equal_pixels_follows_them_into_the_group_of_a_near_copy():
    first, near, equal, other = map(name, ("first", "near", "equal", "other"))
    links = [Link(first, near, 0.9, COPY), Link(first, other, 0.9, COPY), Link(near, equal, 1.0, SAME)]
    split_groups = placed({}, dict.fromkeys((first, near, equal, other), 0), links)
    assert {split_group.group for split_group in split_groups.values()} == {first}
    assert [split_groups[one].rule for one in (first, near, equal)] == ["photo", "copy", "same"]


def test_a_new_photo_joins_the_most_alike_and_two_groups_stay_two():
    test, train, new, far = map(name, ("test", "train", "new", "far"))
    known = {test: SplitGroup(test, "test", rule="photo"), train: SplitGroup(train, "train", rule="photo")}
    links = [Link(test, new, 0.9, COPY), Link(new, train, 0.8, COPY), Link(new, far, 0.7, COPY)]
    split_groups = placed(known, dict.fromkeys((test, train, new, far), 0), links)
    assert split_groups[new] == SplitGroup(test, "test", rule="copy") and split_groups[far].group == far
    assert {one: split_groups[one] for one in known} == known
    assert tied(split_groups, links)[new] == train and test not in tied(split_groups, links), (
        "directly, not through the new photo"
    )


def test_few_groups_leave_no_split_empty_and_each_class_with_training_and_test_photos():
    for sizes in ((10, 10, 10), (100, 2, 1), (50, 50), (1, 1), (3, 40, 7, 7)):
        groups = {(label, number): size for label in range(2) for number, size in enumerate(sizes)}
        photos = {name((key, n)): key[0] for key, size in groups.items() for n in range(size)}
        texts = {name((key, n)): f"pile {key}" for key, size in groups.items() for n in range(size)}
        split_groups = placed({}, photos, [], texts, "(.+)_")
        counts = divided(split_groups, photos)
        assert all(counts[label, "train"] for label in range(2)), sizes
        assert len(sizes) < 3 or all(counts[label, "test"] for label in range(2)), sizes
        assert len(sizes) < 3 or {split_group.split for split_group in split_groups.values()} == set(SHARES), sizes
        assert len({(split_group.group, split_group.split) for split_group in split_groups.values()}) == len(groups)


def test_named_groups_come_before_copies_and_take_in_later_photos_of_their_text():
    photos = {name(number): 0 for number in range(40)}
    texts = {name(number): f"pile {number // 8}" for number in range(32)}
    links = [Link(name(0), name(31), 0.95, COPY), Link(name(1), name(39), 0.95, COPY)]
    split_groups = placed({}, photos, links, texts, "(.+)_")
    assert split_groups[name(0)].group == "pile 0" and split_groups[name(31)].group == "pile 3", (
        "a copy does not join two piles"
    )
    assert split_groups[name(39)][::3] == ("pile 0", "copy") and rule_of(split_groups) == "(.+)_"
    later = photos | {name("later"): 0}
    again = placed(split_groups, later, [], texts | {name("later"): "pile 3"}, "(.+)_")
    assert again[name("later")].split == split_groups[name(31)].split


def test_of_many_photos_content_alone_decides(monkeypatch):
    monkeypatch.setattr("edgecnn.data.splits.MOST", 50)
    photos = {name(number): 0 for number in range(60)}
    texts = {name(number): "one pile" for number in range(30)}
    split_groups = splits_of(placed({}, photos, [], texts, "(.+)_"))
    assert len({split_groups[name(number)] for number in range(30)}) == 1
    assert all((position_of(one) < 0.2) == (split_groups[one] == "test") for one in photos if one not in texts)


def test_frames_in_a_row_are_one_group_and_join_a_listed_one():
    a, b, c, d, copy = map(name, "abcde")
    links = [Link(one, other, 0.9, BURST) for one, other in pairwise((a, b, c, d))]
    photos = dict.fromkeys((a, b, c, d), 0)
    assert {split_group.group for split_group in placed({}, photos, links).values()} == {a}
    known = {c: SplitGroup(c, "test", rule="photo")}
    links.append(Link(b, copy, 0.9, COPY))
    split_groups = placed(known, photos | {copy: 0}, links)
    assert set(splits_of(split_groups).values()) == {"test"} and {
        split_group.group for split_group in split_groups.values()
    } == {c}


def test_a_tied_photo_is_named_with_a_known_photo():
    test, near, far = map(name, ("test", "near", "far"))
    split_groups = {test: SplitGroup("t", "test"), near: SplitGroup("n", "train"), far: SplitGroup("f", "validation")}
    links = [Link(test, near, 0.9, COPY), Link(far, test, 0.8, COPY)]
    assert tied(split_groups, links) == {test: near}
    assert tied(split_groups, links, {far}) == {test: far}, "a photo that the list has"


def test_the_frames_of_each_board_are_read_in_order():
    a, b, c, d = map(name, "abcd")
    rows = [(a, "door", 9), (b, "door", 3), (c, "shed", 1), (d, "", ""), (name("gone"), "door", 2)]
    table = "sha256,path,board,ts\n" + "".join(f"{one},x,{board},{ts}\n" for one, board, ts in rows) + d
    assert frames_of(table.encode(), SOURCES_CSV, {a, b, c, d}) == {"door": [(3, b), (9, a)], "shed": [(1, c)]}
    with pytest.raises(DatasetError, match=r"edgecnn-sources.csv is damaged \(could not convert"):
        frames_of(b"sha256,board,ts\n%s,door,soon" % a.encode(), SOURCES_CSV, {a})


def test_a_list_is_read_back_and_a_damaged_one_is_refused(pets):
    split_groups = {
        name(number): SplitGroup(f"pile {number // 2}", "test", f"cat/{number}.jpg", "(.+)_") for number in range(4)
    }
    text = split_groups_text(split_groups)
    assert (
        read_split_groups(text.encode(), SPLITS_CSV)
        == read_split_groups(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), SPLITS_CSV)
        == split_groups
    )
    first, line = text.splitlines()[:2]
    for broken, why in {
        "": "its first line is not sha256,group,split",
        f"{first}\n{line.replace('test', 'trial')}": "line 2 is not a SHA-256",
        f"{first}\n{line[:40]}": "line 2 is not a SHA-256",
        f"{text}{line}": "line 6 repeats a photo",
        f"{text}{name('x')},p,train,cat/x.jpg,folder": r"its rules are of two ways to group photos, '\(\.\+\)_' and 'folder'",
        f"{first}\n\0{line}": "line 2",
        f'{first}\n"{line}': "unexpected end of data",
    }.items():
        (pets / SPLITS_CSV).write_text(broken)
        with pytest.raises(DatasetError, match=f"pets: {SPLITS_CSV} is damaged: .*{why}.*\nPut back a copy of it"):
            open_dataset(DataRecipe(source=str(pets)))


def test_a_group_in_two_splits_is_an_error_that_names_both():
    text = "sha256,group,split,path,rule\n"
    text += "".join(f"{name(n)},pile,{split},cat/{n}.jpg,folder\n" for n, split in enumerate(("test", "test", "train")))
    with pytest.raises(
        DatasetError, match=r"line 2 puts cat/0\.jpg .* into test, and line 4 puts cat/2\.jpg .* into train"
    ):
        read_split_groups(text.encode(), SPLITS_CSV)


def test_a_list_of_the_version_before_keeps_its_columns():
    former = {name(number): SplitGroup("door", "train") for number in range(3)}
    text = split_groups_text(former)
    assert text.startswith("sha256,group,split\n") and read_split_groups(text.encode(), SPLITS_CSV) == former
    photos = dict.fromkeys([*former, name("new")], 0)
    split_groups = placed(former, photos, [])
    assert split_groups[name("new")].rule == "" and split_groups_text(split_groups).startswith("sha256,group,split\n")


def test_listed_photos_keep_their_splits_and_the_list_is_not_a_photo(pets):
    before = open_dataset(DataRecipe(source=str(pets)))
    moved = before.items["test"][0]
    (pets / SPLITS_CSV).write_text(split_groups_text({moved.hash: SplitGroup(moved.hash, "train")}))
    (pets / SOURCES_CSV).write_text("sha256,path,board,why,ts,guess,model,labelled\n")
    (pets / moved.source).rename(pets / "cat" / "moved by its owner.png")
    after = open_dataset(DataRecipe(source=str(pets)))
    assert after.skipped == () and after.place == pets
    assert {item.hash for item in after.items["train"]} == {item.hash for item in before.items["train"]} | {moved.hash}
    assert not before.info({}).sides and after.info({}).sides == sha256((pets / SPLITS_CSV).read_bytes())


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
    with pytest.raises(DatasetError, match=r"gives 3 groups, such as '0', and at most 1 to a class"):
        grouping(items, labels, "(.+)_", {})
    assert len(set(grouping(items, labels, r"^(0|[12]_\d)", {}).texts.values())) == 9


def test_the_list_decides_unless_a_pattern_is_requested_and_another_rule_divides_anew():
    by_pile = {"crack/IMG_0_0": SplitGroup("IMG_0", "test", rule=r"(.+)_\d+$")}
    by_photo, former = (
        {"crack/IMG_0_0": SplitGroup("x", "test", rule="photo")},
        {"crack/IMG_0_0": SplitGroup("x", "test")},
    )
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


@pytest.fixture(scope="module")
def digits():
    return open_dataset(DataRecipe(source="digits"), for_training=False)


@pytest.fixture(scope="module")
def few(digits):
    """Forty images of each digit."""
    items = [item for part in digits.items.values() for item in part]
    kept = [item.hash for label in range(10) for item in [item for item in items if item.label == label][:40]]
    return digits.redivided(dict.fromkeys(kept, "train"))


def hashes(dataset, *splits):
    return {item.hash for split in splits for item in dataset.items[split]}


def test_every_image_tests_once_and_similar_images_share_a_fold(few):
    everything = sorted(hashes(few, "train"))
    groups = {one: everything[index // 4 * 4] for index, one in enumerate(everything[:100])}
    folds = assign(few, groups, 5, 1)
    assert folds == assign(few, groups, 5, 1)
    assert sorted(folds.of) == everything and folds.count == 5
    for first in range(0, 100, 4):
        assert len({folds.of[one] for one in everything[first : first + 4]}) == 1
    parts = [folds.without(few, fold, 1) for fold in range(1, 6)]
    assert sorted(one for part in parts for one in hashes(part, "test")) == everything
    for part in parts:
        taught, validated, tested = (hashes(part, split) for split in ("train", "validation", "test"))
        assert taught | validated | tested == set(everything)
        assert not taught & tested and not validated & tested and not taught & validated
        assert len(validated) == pytest.approx(len(everything) * 0.8 / 10, rel=0.15)
        for first in range(0, 100, 4):
            alike = set(everything[first : first + 4])
            assert sum(bool(alike & some) for some in (taught, validated, tested)) == 1
        classes = np.bincount([item.label for item in part.items["test"]], minlength=10)
        assert classes.min() > 0.7 * classes.mean(), "each fold has every class"
    whole = folds.all_teach(parts[0])
    assert hashes(whole, "train") == set(everything) and not whole.sizes["validation"] + whole.sizes["test"]
    assert whole.fingerprint != parts[0].fingerprint


def test_every_class_keeps_a_training_image(few):
    """With two images of a class, one tests and the other trains, whatever the size of the validation part."""
    of = {label: [item.hash for item in few.items["train"] if item.label == label] for label in range(10)}
    rare, others = of[3][:2], [one for label in of if label != 3 for one in of[label][:4]]
    small = few.redivided(dict.fromkeys([*rare, *others], "train"))
    folds = assign(small, {}, 5, 1)
    for fold in range(1, folds.count + 1):
        assert any(item.label == 3 for item in folds.without(small, fold, 1).items["train"])
    with pytest.raises(DatasetError, match="the class '3' has fewer than two different photos"):
        assign(small, dict.fromkeys(rare, rare[0]), 5, 1)
    pairs = few.redivided(dict.fromkeys([one for label in of for one in of[label][:2]], "train"))
    with pytest.raises(DatasetError, match="no class has a second photo"):
        assign(pairs, {}, 2, 1)


def test_fewer_images_than_folds():
    parts = stratified(np.array([0, 0, 1]), ["a", "b", "c"], 10, 1)
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2] and len(parts) == 2


def test_the_list_is_stored_and_missing_images_are_noticed(digits, tmp_path):
    run = create_run(build_recipe({"data": {"source": "digits"}}), tmp_path / "run")
    assert read_folds(run) is None
    folds = assign(digits, {}, 3, 1)
    write_folds(run, folds)
    assert read_folds(run) == folds
    require_listed(run, folds, digits)
    fewer = digits.redivided(dict.fromkeys(sorted(folds.of)[2:], "train"))
    with pytest.raises(RunError, match=r"digits lacks .* 2 of the 1,797 images"):
        require_listed(run, folds, fewer)
    run.file(FOLDS).write_text("sha256,fold\nx,many\n")
    with pytest.raises(RunError, match="is damaged"):
        read_folds(run)


def test_the_records_of_finished_folds_are_read_in_order_with_the_last(tmp_path, fold_info):
    run = create_run(build_recipe({"data": {"source": "digits"}}), tmp_path / "run")
    assert fold_infos(run) == ()
    write_folds(run, Folds(count=3, of={"a": 1, "b": 3, "c": 2}, groups=dict(zip("abc", "abc", strict=True))))
    infos = [fold_info(images=600 - fold) for fold in (1, 3)]
    for fold, info in zip((1, 3), infos, strict=True):
        write_json(run.file(FOLD.format(fold=fold)) / FOLD_INFO, info)
    assert fold_infos(run) == tuple(infos)


def test_data_with_its_own_test_split_is_refused(photos, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for label in photos.iterdir():
            (tmp_path / split / label.name).symlink_to(label)
    dataset = open_dataset(DataRecipe(source=str(tmp_path)), for_training=False)
    with pytest.raises(DatasetError, match="has its own test images"):
        assign(dataset, {}, 3, 1)
