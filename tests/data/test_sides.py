"""Sides: a group shares a split, splits have their shares, listed photos never move, and copies in two splits are named."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from edgecnn.data import open_dataset
from edgecnn.data.sides import (
    BURST,
    COPY,
    FILE,
    SAME,
    SOURCES,
    Link,
    Newcomers,
    Side,
    frames_of,
    read_sides,
    rule_of,
    sides_text,
    splits_of,
    tied,
    updated,
)
from edgecnn.data.splits import place_of
from edgecnn.errors import DatasetError
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def name(text: object) -> str:
    return sha256(str(text).encode())


def divided(sides, photos):
    return Counter((photos[one], side.split) for one, side in sides.items())


def test_each_split_gets_its_share_of_each_class_and_nothing_moves_as_copies_arrive():
    """Ten frames of each scene are near copies of the first, and arrive on three days, the first one first."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        frames = {(scene, number): name((seed, scene, number)) for scene in range(60) for number in range(10)}
        links = [Link(frames[scene, 0], frames[scene, n], 0.9, COPY) for scene in range(60) for n in range(1, 10)]
        days = random.integers(3, 10, (60, 2))
        sides, photos = {}, {}
        for day in range(3):
            known = sides
            photos |= {
                frames[scene, number]: scene % 3 // 2
                for scene in range(60)
                for number in range((*sorted(days[scene].tolist()), 10)[day])
            }
            here = [link for link in links if {link.first, link.second} <= photos.keys()]
            sides = updated(known, Newcomers(photos, SHARES), here)
            assert {one: sides[one] for one in known} == dict(known) and sides.keys() == photos.keys()
            assert not tied(sides, here)
        for scene in range(60):
            assert len({sides[frames[scene, number]] for number in range(10)}) <= 2, "the first, and its copies"
            assert len({sides[frames[scene, number]].split for number in range(10)}) == 1
    whole = updated({}, Newcomers(photos, SHARES), links)
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
    sides = updated({}, Newcomers(photos, SHARES), [])
    for label, total in ((0, 57), (1, 34)):
        for split, share in SHARES.items():
            assert abs(divided(sides, photos)[label, split] - share * total) <= 1
    listed = {one: Side(one, "train") for one in photos}
    photos |= {name(("later", number)): 0 for number in range(30)}
    later = updated(listed, Newcomers(photos, SHARES), [])
    assert {later[one].split for one in photos if one not in listed} == {"validation", "test"}


def test_a_near_copy_joins_the_first_photo_of_a_group_and_never_another_near_copy():
    chain = [name(number) for number in range(30)]
    photos = dict.fromkeys(chain, 0)
    sides = updated({}, Newcomers(photos, SHARES), [Link(one, other, 0.9, COPY) for one, other in pairwise(chain)])
    assert max(Counter(side.group for side in sides.values()).values()) == 3, "a photo and its two neighbours"
    same = updated({}, Newcomers(photos, SHARES), [Link(chain[0], other, 1.0, SAME) for other in chain[1:]])
    assert len({side.group for side in same.values()}) == 1


def test_a_copy_of_equal_pixels_follows_them_into_the_group_of_a_near_copy():
    first, near, equal, other = map(name, ("first", "near", "equal", "other"))
    links = [Link(first, near, 0.9, COPY), Link(first, other, 0.9, COPY), Link(near, equal, 1.0, SAME)]
    sides = updated({}, Newcomers(dict.fromkeys((first, near, equal, other), 0), SHARES), links)
    assert {side.group for side in sides.values()} == {first}
    assert [sides[one].rule for one in (first, near, equal)] == ["photo", "copy", "same"]


def test_a_new_photo_joins_the_most_alike_and_two_groups_stay_two():
    test, train, new, far = map(name, ("test", "train", "new", "far"))
    known = {test: Side(test, "test", rule="photo"), train: Side(train, "train", rule="photo")}
    links = [Link(test, new, 0.9, COPY), Link(new, train, 0.8, COPY), Link(new, far, 0.7, COPY)]
    sides = updated(known, Newcomers(dict.fromkeys((test, train, new, far), 0), SHARES), links)
    assert sides[new] == Side(test, "test", rule="copy") and sides[far].group == far
    assert {one: sides[one] for one in known} == known
    assert tied(sides, links)[new] == train and test not in tied(sides, links), "directly, not through the new photo"


def test_few_groups_leave_no_split_empty_and_each_class_with_training_and_test_photos():
    for sizes in ((10, 10, 10), (100, 2, 1), (50, 50), (1, 1), (3, 40, 7, 7)):
        groups = {(label, number): size for label in range(2) for number, size in enumerate(sizes)}
        photos = {name((key, n)): key[0] for key, size in groups.items() for n in range(size)}
        texts = {name((key, n)): f"pile {key}" for key, size in groups.items() for n in range(size)}
        sides = updated({}, Newcomers(photos, SHARES, texts, "(.+)_"), [])
        counts = divided(sides, photos)
        assert all(counts[label, "train"] for label in range(2)), sizes
        assert len(sizes) < 3 or all(counts[label, "test"] for label in range(2)), sizes
        assert len(sizes) < 3 or {side.split for side in sides.values()} == set(SHARES), sizes
        assert len({(side.group, side.split) for side in sides.values()}) == len(groups)


def test_named_groups_come_before_copies_and_take_in_later_photos_of_their_text():
    photos = {name(number): 0 for number in range(40)}
    texts = {name(number): f"pile {number // 8}" for number in range(32)}
    links = [Link(name(0), name(31), 0.95, COPY), Link(name(1), name(39), 0.95, COPY)]
    sides = updated({}, Newcomers(photos, SHARES, texts, "(.+)_"), links)
    assert sides[name(0)].group == "pile 0" and sides[name(31)].group == "pile 3", "a copy does not join two piles"
    assert sides[name(39)][::3] == ("pile 0", "copy") and rule_of(sides) == "(.+)_"
    later = photos | {name("later"): 0}
    again = updated(sides, Newcomers(later, SHARES, texts | {name("later"): "pile 3"}, "(.+)_"), [])
    assert again[name("later")].split == sides[name(31)].split


def test_of_many_photos_content_alone_decides(monkeypatch):
    monkeypatch.setattr("edgecnn.data.sides.MOST", 50)
    photos = {name(number): 0 for number in range(60)}
    texts = {name(number): "one pile" for number in range(30)}
    sides = splits_of(updated({}, Newcomers(photos, SHARES, texts, "(.+)_"), []))
    assert len({sides[name(number)] for number in range(30)}) == 1
    assert all((place_of(one) < 0.2) == (sides[one] == "test") for one in photos if one not in texts)


def test_frames_in_a_row_are_one_group_and_join_a_listed_one():
    a, b, c, d, copy = map(name, "abcde")
    links = [Link(one, other, 0.9, BURST) for one, other in pairwise((a, b, c, d))]
    photos = dict.fromkeys((a, b, c, d), 0)
    assert {side.group for side in updated({}, Newcomers(photos, SHARES), links).values()} == {a}
    known = {c: Side(c, "test", rule="photo")}
    links.append(Link(b, copy, 0.9, COPY))
    sides = updated(known, Newcomers(photos | {copy: 0}, SHARES), links)
    assert set(splits_of(sides).values()) == {"test"} and {side.group for side in sides.values()} == {c}


def test_a_tied_photo_is_named_with_a_known_photo():
    test, near, far = map(name, ("test", "near", "far"))
    sides = {test: Side("t", "test"), near: Side("n", "train"), far: Side("f", "validation")}
    links = [Link(test, near, 0.9, COPY), Link(far, test, 0.8, COPY)]
    assert tied(sides, links) == {test: near}
    assert tied(sides, links, {far}) == {test: far}, "a photo that the list has"


def test_the_frames_of_each_board_are_read_in_order():
    a, b, c, d = map(name, "abcd")
    rows = [(a, "door", 9), (b, "door", 3), (c, "shed", 1), (d, "", ""), (name("gone"), "door", 2)]
    table = "sha256,path,board,ts\n" + "".join(f"{one},x,{board},{ts}\n" for one, board, ts in rows) + d
    assert frames_of(table.encode(), SOURCES, {a, b, c, d}) == {"door": [(3, b), (9, a)], "shed": [(1, c)]}
    with pytest.raises(DatasetError, match=r"edgecnn-sources.csv is damaged \(could not convert"):
        frames_of(b"sha256,board,ts\n%s,door,soon" % a.encode(), SOURCES, {a})


def test_a_list_is_read_back_and_a_damaged_one_is_refused(pets):
    sides = {name(number): Side(f"pile {number // 2}", "test", f"cat/{number}.jpg", "(.+)_") for number in range(4)}
    text = sides_text(sides)
    assert (
        read_sides(text.encode(), FILE)
        == read_sides(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), FILE)
        == sides
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
        (pets / FILE).write_text(broken)
        with pytest.raises(DatasetError, match=f"pets: {FILE} is damaged: .*{why}.*\nPut back a copy of it"):
            open_dataset(DataRecipe(source=str(pets)))


def test_a_group_in_two_splits_is_an_error_that_names_both():
    text = "sha256,group,split,path,rule\n"
    text += "".join(f"{name(n)},pile,{split},cat/{n}.jpg,folder\n" for n, split in enumerate(("test", "test", "train")))
    with pytest.raises(
        DatasetError, match=r"line 2 puts cat/0\.jpg .* into test, and line 4 puts cat/2\.jpg .* into train"
    ):
        read_sides(text.encode(), FILE)


def test_a_list_of_the_version_before_keeps_its_columns():
    former = {name(number): Side("door", "train") for number in range(3)}
    text = sides_text(former)
    assert text.startswith("sha256,group,split\n") and read_sides(text.encode(), FILE) == former
    photos = dict.fromkeys([*former, name("new")], 0)
    sides = updated(former, Newcomers(photos, SHARES), [])
    assert sides[name("new")].rule == "" and sides_text(sides).startswith("sha256,group,split\n")


def test_listed_photos_keep_their_splits_and_the_list_is_not_a_photo(pets):
    before = open_dataset(DataRecipe(source=str(pets)))
    moved = before.items["test"][0]
    (pets / FILE).write_text(sides_text({moved.hash: Side(moved.hash, "train")}))
    (pets / SOURCES).write_text("sha256,path,board,why,ts,guess,model,labelled\n")
    (pets / moved.source).rename(pets / "cat" / "moved by its owner.png")
    after = open_dataset(DataRecipe(source=str(pets)))
    assert after.skipped == () and after.place == pets
    assert {item.hash for item in after.items["train"]} == {item.hash for item in before.items["train"]} | {moved.hash}
    assert not before.info({}).sides and after.info({}).sides == sha256((pets / FILE).read_bytes())
