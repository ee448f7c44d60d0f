"""Sides: photos that show the same share a split, listed photos never move, and photos that later link two splits are named."""

from itertools import pairwise

import numpy as np
import pytest

from edgecnn.data import open_dataset
from edgecnn.data.sides import (
    BURST_S,
    FILE,
    SOURCES,
    Link,
    Newcomers,
    Side,
    bursts,
    read_sides,
    sides_text,
    tied,
    updated,
)
from edgecnn.errors import DatasetError
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def name(text: object) -> str:
    return sha256(str(text).encode())


def newcomers(photos, random):
    content = dict(zip(photos, random.choice(list(SHARES), len(photos), p=list(SHARES.values())).tolist(), strict=True))
    return Newcomers(photos, content, SHARES)


def test_bursts_stay_together_in_100_draws_and_nothing_moves():
    """Only consecutive frames of each scene's ten are linked. They arrive on three days, each frame after one that it is linked to."""
    splits = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        frames = {(scene, number): name((seed, scene, number)) for scene in range(20) for number in range(10)}
        links = [Link(frames[scene, n], frames[scene, n + 1], random.random()) for scene in range(20) for n in range(9)]
        days = random.integers(2, 10, (20, 2))
        sides, photos = {}, {}
        for day in range(3):
            known = sides
            photos |= {
                frames[scene, number]: scene % 2
                for scene in range(20)
                for number in range((*sorted(days[scene].tolist()), 10)[day])
            }
            here = [link for link in links if {link.first, link.second} <= photos.keys()]
            sides = updated(known, newcomers(photos, random), here)
            assert {one: sides[one] for one in known} == dict(known) and sides.keys() == photos.keys()
            assert not tied(sides, here)
        for scene in range(20):
            assert len({sides[frames[scene, number]] for number in range(10)}) == 1
        splits += [sides[one].split for one in frames.values()]
    assert {split: splits.count(split) / len(splits) for split in SHARES} == pytest.approx(SHARES, abs=0.06)


def test_a_new_photo_joins_the_most_alike_and_two_groups_stay_two():
    test, train, new, far = map(name, ("test", "train", "new", "far"))
    known = {test: Side("t", "test"), train: Side("r", "train")}
    links = [Link(test, new, 0.9), Link(new, train, 0.8), Link(new, far, 0.7)]
    sides = updated(
        known, Newcomers(dict.fromkeys((test, train, new, far), 0), {new: "train", far: "train"}, SHARES), links
    )
    assert sides == known | {new: Side("t", "test"), far: Side("t", "test")}
    assert tied(sides, links) == {new: train, test: train, far: train}, "directly, and through the new photo"
    assert tied(sides, links[:1] + links[2:]) == {}


def test_few_groups_leave_no_split_empty_and_each_class_with_training_images():
    groups = [[name((label, group, number)) for number in range(10)] for label in range(2) for group in range(3)]
    photos = {one: index // 3 for index, group in enumerate(groups) for one in group}
    links = [Link(one, other, 1.0) for group in groups for one, other in pairwise(group)]
    for seed in range(20):
        sides = updated({}, newcomers(photos, np.random.default_rng(seed)), links)
        assert {side.split for side in sides.values()} == set(SHARES)
        assert {photos[one] for one in photos if sides[one].split == "train"} == {0, 1}


def test_the_smallest_groups_leave_training_for_the_empty_splits():
    """Groups of so many photos, which by their content all train; a class keeps its last group."""
    for labels, sizes, expected in (
        ("aaabb", (5, 3, 1, 4, 2), ["train", "train", "validation", "train", "test"]),
        ("abb", (1, 4, 3), ["train", "train", "validation"]),
        ("aabbb", (1, 2, 6, 5, 4), ["validation", "train", "train", "train", "test"]),
    ):
        groups = [[name((labels, index, number)) for number in range(size)] for index, size in enumerate(sizes)]
        classes = {one: ord(label) for label, group in zip(labels, groups, strict=True) for one in group}
        links = [Link(one, other, 1.0) for group in groups for one, other in pairwise(group)]
        sides = updated({}, Newcomers(classes, dict.fromkeys(classes, "train"), SHARES), links)
        assert [sides[group[0]].split for group in groups] == expected


def test_a_tied_photo_is_named_with_a_known_photo_else_the_most_direct_one():
    test, same, near, far = map(name, ("test", "same", "near", "far"))
    sides = {test: Side("t", "test"), same: Side("t", "test"), near: Side("n", "train"), far: Side("f", "validation")}
    links = [Link(same, far, 0.9), Link(test, same, 0.9), Link(test, near, 0.8)]
    assert tied(sides, links)[test] == near
    assert tied(sides, links, {far})[test] == far, "a photo that the list has"


def test_frames_of_one_board_within_a_minute_are_one_burst():
    a, b, c, d, e = map(name, "abcde")
    rows = [(a, "door", 0), (c, "door", 2 * BURST_S), (b, "door", BURST_S), (d, "shed", 1), (e, "door", 3.1 * BURST_S)]
    table = "sha256,path,board,ts\n" + "".join(f"{one},x,{board},{ts}\n" for one, board, ts in rows) + f"{e},x,,\n{d}"
    found = {(link.first, link.second) for link in bursts(table.encode(), SOURCES, {a, b, c, d, e})}
    assert found == {(a, b), (b, c)}
    assert not list(bursts(table.encode(), SOURCES, {a, c, d, e}))
    with pytest.raises(DatasetError, match=r"edgecnn-sources.csv is damaged \(could not convert"):
        list(bursts(b"sha256,board,ts\n%s,door,soon" % a.encode(), SOURCES, {a}))


def test_a_list_is_read_back_and_a_damaged_one_is_refused(pets):
    sides = {name(number): Side(name(number // 2), "test") for number in range(4)}
    text = sides_text(sides)
    assert (
        read_sides(text.encode(), FILE)
        == read_sides(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), FILE)
        == sides
    )
    first, line = text.splitlines()[:2]
    for broken, why in {
        "": "its first line is not sha256,group,split",
        f"{first}\n{line[:-4]}": "line 2 is not a SHA-256",
        f"{first}\n{line[:40]}": "line 2 is not a SHA-256",
        f"{text}{line}": "line 6 repeats a photo",
        f"{text}{name('x')},{name(0)},train": "line 6 puts a group into train that an earlier line puts into test",
        f"{first}\n{line}\0": "line 2",
        f'{first}\n"{line}': "unexpected end of data",
    }.items():
        (pets / FILE).write_text(broken)
        with pytest.raises(DatasetError, match=f"pets: {FILE} is damaged: .*{why}.*\nPut back a copy of it"):
            open_dataset(DataRecipe(source=str(pets)))


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
