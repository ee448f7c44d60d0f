"""The search for copies: which pairs it compares, what tightens its limits, and what it passes on, with measures written by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.data.items import Item, Meter
from edgecnn.inspect import groups
from edgecnn.inspect.cache import Cache
from edgecnn.inspect.features import unit
from edgecnn.inspect.groups import RESEMBLING, Pair, Search
from edgecnn.inspect.inspection import Copies, links_of, order
from edgecnn.inspect.inspection_report import Copy, Group
from edgecnn.inspect.look import LOOK, Looks
from edgecnn.inspect.pairs import Limits, Measures, Pictures, Verdict, measure


@pytest.fixture
def search(own_cache):
    """Return a function that makes a search in photos of some classes, whose measures are given by `frame` and `measures`."""
    cache = Cache()

    def make(labels, features=None, frame=None, measures=None, **more):
        items = tuple(
            Item(source=f"{n}.jpg", split="train", label=label, hash=f"{n:064x}", handle=None)
            for n, label in enumerate(labels)
        )
        looks = Looks(items=items, table=np.zeros(len(items), LOOK), broken=(), computed=0)
        body = None if measures is None else lambda parts: parts
        made = Search(
            looks=looks, pictures=None, features=features, body=body, cache=cache, progress=lambda *step: None, **more
        )
        made.framed = lambda pairs, meter: frame(pairs)
        made.measured = lambda pairs, meter: measures(pairs)
        return made

    yield make
    cache.close()


def apart(pairs):
    return [None] * len(pairs)


def test_the_limits_are_tightened_only_if_more_than_one_random_pair_in_a_hundred_passes(search):
    """Of 200 pairs two or three have a small difference; the second and third smallest of three are 0.5 and 0.6."""
    everyone = np.arange(30)

    def calibrated(frames, measures=None):
        made = search([0] * 30, frame=lambda pairs: frames + [3.0] * (len(pairs) - len(frames)), measures=measures)
        return made.calibrate(everyone, np.random.default_rng(1)), made.alike

    assert calibrated([0.4, 1.0]) == (None, 0.01) and calibrated([0.4, 0.9, 1.01]) == (None, 0.01)
    tight, alike = calibrated([0.6, 0.4, 0.5])
    assert alike == 0.015 and tight.frame == pytest.approx((0.5 + 0.99 * 0.1) / 2) and tight.burst == Limits().burst
    seen = [Measures(0.9, False, 3.0, 0.95), Measures(0.9, False, 9.0, 0.97), Measures(0.9, False, 2.5, -1.0)]
    tight, alike = calibrated([], lambda pairs: seen + apart(pairs[3:]))
    assert alike == 0.015, "each by its features or its colours"
    assert tight == Limits(frame=1.0, burst=pytest.approx(0.985), copied=1.25)
    tight, _ = calibrated([0.1, 0.1, 0.1], lambda pairs: [Measures(0.1, False, 90.0, -1.0), *apart(pairs[1:])])
    assert tight == Limits(frame=pytest.approx(0.05)), "pairs that differ loosen nothing"
    assert search([0]).calibrate(np.arange(1), np.random.default_rng(1)) is None


def test_the_largest_group_is_measured_in_its_own_class_among_different_images(search):
    """Images 8 and 9 are copies of others. Three of five cats are one group, and so are two of three dogs."""
    made = search([0, 0, 0, 0, 0, 1, 1, 1, 0, 1])
    found = [Pair(a, b, "hash", Verdict(1.0, False)) for a, b in ((0, 1), (1, 2), (5, 6))]
    assert made.largest(np.arange(8), found) == 2 / 3
    assert made.largest(np.arange(8), found[:2]) == 3 / 5 and made.largest(np.arange(8), []) == 0.0


def test_limits_are_tightened_and_scenes_forgotten_only_if_one_group_takes_most_of_a_class(search):
    """Of five cats, two to four look alike at the usual limits, and two at the tight ones; a fifth is of one scene with the third."""
    tight = Limits(frame=0.5)

    def ran(alike, given=tight, **more):
        made = search([0] * 6, **more)
        made.looks.table["pixels"] = [str(n) for n in range(6)]
        made.looks.table["width"], made.looks.table["height"] = 16, 30
        made.looks.table["height"][4] = 15  # too small to compare
        made.calibrate = lambda distinct, random: given
        seen = []

        def near(distinct):
            assert distinct.tolist() == [0, 1, 2, 3, 5]
            seen.append((made.scenes_only, made.limits == tight))
            made.resembling = [Pair(2, 3, "features", Verdict(0.9, False))]
            return [Pair(a, b, "hash", Verdict(1.0, False)) for a, b in (alike[:1] if made.limits == tight else alike)]

        made.near = near
        return [(pair.first, pair.second) for pair in made.run(1)], len(made.resembling), seen

    two, three, four = [(0, 1)], [(0, 1), (1, 2)], [(0, 1), (1, 2), (2, 5)]
    assert ran(two) == (two, 1, [(False, False)])
    assert ran(three) == (three, 0, [(False, False)]), "three of five, without the scene's fourth, are not too many"
    assert ran(four) == (two, 0, [(False, False), (False, True)])
    assert ran(four, None) == (four, 0, [(False, False)]), "random pairs are not alike"
    assert ran(four, scenes_only=True) == (two, 0, [(True, False), (False, False), (False, True)])


def test_a_mirrored_pair_has_its_own_difference_which_the_next_search_knows(search, monkeypatch):
    """Half of the allowed difference takes a quarter off the likeness; exactly the allowed one is still the same picture."""
    compared = []

    def frame_difference(pictures, first, second, mirrored):
        compared.append((first, second, mirrored))
        return {(0, 1, False): 2.0, (0, 1, True): 0.5, (1, 2, False): 1.0, (2, 0, False): 1.001}[compared[-1]]

    monkeypatch.setattr(groups, "frame_difference", frame_difference)
    pairs = [(0, 1, False), (0, 1, True), (1, 2, False), (2, 0, False)]
    expected = [Pair(0, 1, "hash", Verdict(0.75, True)), Pair(1, 2, "hash", Verdict(0.5, False))]
    for _ in range(2):
        made = search([0] * 3)
        del made.framed
        assert made.same_frames(pairs, Meter(None, "", 4)) == expected and compared == pairs


def test_the_nearest_pairs_by_features_are_compared_and_the_others_counted(search, monkeypatch):
    """Six photos on a circle at 0, 20, 50, 90, 150 and 155 degrees: of the pairs up to 60 degrees apart, one is known already."""
    monkeypatch.setattr(groups, "NEIGHBOURS", 2)
    turns = np.radians([0, 20, 50, 90, 150, 155])
    features = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    near = [(4, 5), (0, 1), (1, 2), (2, 3), (0, 2), (3, 4)]
    assert np.cos(np.radians(30)) > RESEMBLING > np.cos(np.radians(40))
    compared = []

    def measures(pairs):
        compared.append(sorted(pairs))
        return [Measures(0.9, pair == (1, 2), 1.0 if pair in ((0, 1), (1, 2)) else 90.0, -1.0) for pair in pairs]

    def by_features(most, scenes_only=False, known=frozenset({(0, 1)})):
        monkeypatch.setattr(groups, "MOST_PAIRS", most)
        made = search([0] * 6, features, measures=measures, scenes_only=scenes_only)
        return made, made.by_features(np.arange(6), set(known))

    made, found = by_features(3)
    assert compared.pop() == sorted([near[0], *near[2:4]]) and made.skipped == 2
    assert found == [Pair(1, 2, "features", Verdict(0.9, True))]
    assert [(pair.first, pair.second) for pair in made.resembling] == [(1, 2), (4, 5)]
    assert made.resembling[1].verdict.score == pytest.approx(np.cos(np.radians(5)), abs=1e-6)
    made, _ = by_features(5)
    assert compared.pop() == sorted(set(near) - {(0, 1)}) and made.skipped == 0
    made, _ = by_features(2, scenes_only=True)
    assert compared.pop() == sorted(near[3:5]) and made.skipped == 1, "those of one scene are not compared further"
    made, found = by_features(9, known=frozenset())
    assert len(compared.pop()) == 6 and [(pair.first, pair.second) for pair in found] == [(0, 1), (1, 2)]


def test_a_cut_out_is_compared_with_its_own_place_whichever_image_comes_first(scene):
    """The part is a wide strip of the first picture, mirrored in the second pair, and the last two have nothing in common."""
    whole, other = scene(3), scene(44)
    part = whole.crop((20, 30, 150, 100))
    mirrored = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pictures = [whole, part, mirrored, other]
    items = [Item(source=str(n), split="train", label=0, hash="", handle=np.asarray(p)) for n, p in enumerate(pictures)]
    opened, steps, parts = Pictures(items, lambda item: item.handle), [], []

    def body(batch):
        parts.append(batch)
        return batch.reshape(len(batch), -1)[:, :30].astype(np.float32)

    pairs = [(0, 1), (1, 0), (0, 3), (2, 0)]
    found = measure(opened, pairs, body, lambda: steps.append(1), Limits())
    assert len(steps) == 4 and found[2] is None and [one.mirrored for one in found if one] == [False, False, True]
    for one in (found[0], found[1], found[3]):
        assert one.place > 0.85 and one.levels < 4 and one.cosine > 0.9, one
    (batch,) = parts
    assert batch.shape == (6, 160, 160, 3) and batch.dtype == np.uint8
    strict = measure(opened, pairs[:1], body, lambda: None, Limits(burst_detail=0.999))
    assert strict[0] == found[0]._replace(cosine=-1.0) and len(parts) == 1, "features are not needed"
    assert measure(opened, pairs[:1], None, lambda: None, Limits(copied_detail=0.999)) == [None]


def test_links_have_the_score_of_their_pair_or_that_of_the_features_and_never_join_equal_files(search):
    features = unit(np.array([[3, 4], [4, 3], [1, 0], [0, 1]], np.float32))
    made = search([0] * 4, features)
    made.resembling = [Pair(2, 1, "features", Verdict(0.9, False))]
    first = [Pair(3, 0, "hash", Verdict(0.7, True)), Pair(0, 1, "features", Verdict(0.99, False))]
    looks = made.looks
    same = looks.items[2]
    looks = Looks(items=(*looks.items[:3], same), table=looks.table, broken=(), computed=0)
    found = Copies(
        looks, features, made, [([0, 1, 3], first), ([2, 3], [Pair(2, 3, "content", Verdict(1.0, False))])], {}
    )
    links = links_of(SimpleNamespace(lists={}, name="pets", sides={}), found)
    named = [(int(one, 16), int(other, 16), pytest.approx(score, abs=1e-6)) for one, other, score in links]
    assert named == [(0, 2, 0.7), (0, 1, 0.96), (1, 2, 0.8)]
    bare = found._replace(features=None)
    assert [link[2] for link in links_of(SimpleNamespace(lists={}, name="", sides={}), bare)] == [0.7, 0.99, 0.9]


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
