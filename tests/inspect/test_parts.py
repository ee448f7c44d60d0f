"""The parts of an inspection, checked against plain computations: hashes, positions, neighbours, labels."""

import numpy as np
import pytest
from PIL import Image

from edgecnn.data.items import Item
from edgecnn.inspect import wrong_labels
from edgecnn.inspect.alignment import COARSE_SIDE, FINE_SIDE, Detail, difference, measured, overlap, placed, sized
from edgecnn.inspect.features import neighbours, unit
from edgecnn.inspect.groups import Pair
from edgecnn.inspect.hashing import NEAR, mirrored_hash, near_pairs, perceptual_hash
from edgecnn.inspect.inspection import group_of
from edgecnn.inspect.look import LOOK, Looks
from edgecnn.inspect.odd import blurred, odd_ones
from edgecnn.inspect.pairs import Verdict


def bits(first, second):
    return (first ^ second).bit_count()


def test_a_compressed_picture_has_nearly_the_same_hash_but_a_different_one_does_not(scene, encode):
    import io

    for seed in range(10):
        grey = scene(seed).convert("L")
        again = Image.open(io.BytesIO(encode(scene(seed).resize((80, 60)), quality=50))).convert("L")
        assert bits(perceptual_hash(grey), perceptual_hash(again)) <= NEAR
        assert bits(perceptual_hash(grey), perceptual_hash(scene(seed + 50).convert("L"))) > NEAR
        assert mirrored_hash(grey) == perceptual_hash(grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_near_pairs_equal_those_of_a_plain_comparison(monkeypatch):
    from edgecnn.inspect import hashing

    monkeypatch.setattr(hashing, "BLOCK", 7)
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, 40, np.uint64)
    hashes[5] = hashes[31] ^ np.uint64(0b1011)
    mirrored = random.integers(0, 2**64, 40, np.uint64)
    mirrored[20] = hashes[3]
    pairs, flags, left = near_pairs(hashes, mirrored)
    assert left == 0
    found = {(*pair, flag) for pair, flag in zip(pairs.tolist(), flags.tolist(), strict=True)}
    plain = {
        (a, b, flag)
        for a in range(40)
        for b in range(a + 1, 40)
        for flag, other in ((False, hashes), (True, mirrored))
        if bits(int(hashes[a]), int(other[b])) <= NEAR
    }
    assert {(a, b, flag) for (a, b), flag in [((item[0], item[1]), item[2]) for item in found]} == plain
    assert plain == {(5, 31, False), (3, 20, True)}


def test_too_many_near_pairs_are_counted(monkeypatch):
    from edgecnn.inspect import hashing

    monkeypatch.setattr(hashing, "BLOCK", 7)
    monkeypatch.setattr(hashing, "MOST_CANDIDATES", 100)
    same = np.zeros(40, np.uint64)
    pairs, _, left = near_pairs(same, ~same)
    assert left == 40 - 7 and set(pairs[:, 0].tolist()) == set(range(7))


@pytest.mark.parametrize("mirror", (False, True))
def test_a_part_of_a_picture_is_located(scene, mirror):
    whole = scene(3)
    part = whole.crop((30, 10, 150, 100))
    if mirror:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    match = placed(*(Detail(sized(image.convert("L"), COARSE_SIDE)) for image in (whole, part)))
    assert match.score > 0.8 and match.mirrored is mirror
    fine = measured(sized(whole, FINE_SIDE), sized(part, FINE_SIDE), match)
    assert fine.score > 0.9
    assert np.allclose(fine.first, (30 / 160, 10 / 120, 150 / 160, 100 / 120), atol=0.05)
    other = placed(*(Detail(sized(image.convert("L"), COARSE_SIDE)) for image in (whole, scene(44))))
    assert other.score < 0.7


def test_the_overlap_of_a_picture_that_lies_partly_outside():
    first, second = overlap((100, 50), (-20, 10, 80, 60))
    assert first == (0.0, 0.2, 0.8, 1.0) and second == (0.2, 0.0, 1.0, 0.8)


def test_brightness_alone_is_not_a_difference(scene):
    picture = scene(1)
    brighter = Image.fromarray((np.asarray(picture) // 2 + 20).astype(np.uint8))
    assert difference(picture, Image.fromarray(np.asarray(picture) // 4 * 4))[0] < 2
    assert difference(picture, brighter)[0] > 5, "contrast is a difference"


def test_neighbours_equal_those_of_a_plain_comparison():
    features = unit(np.random.default_rng(2).normal(size=(600, 12)).astype(np.float32))
    indices, cosines = neighbours(features, 3, lambda done, total: None)
    products = features @ features.T
    np.fill_diagonal(products, -2)
    expected = np.argsort(-products, axis=1)[:, :3]
    assert (indices == expected).mean() > 0.999
    assert np.allclose(cosines, np.take_along_axis(products, expected, 1), atol=1e-5)


def labelled(count=300, classes=3, seed=4):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, count)
    return random.normal(size=(count, 20)).astype(np.float32) + 4 * np.eye(classes, 20, dtype=np.float32)[truth], truth


def test_wrong_labels_are_named_first():
    features, truth = labelled()
    given = truth.copy()
    wrong = np.random.default_rng(5).choice(len(truth), 15, replace=False)
    given[wrong] = (truth[wrong] + 1) % 3
    scores = wrong_labels.out_of_fold(features, given, np.arange(len(given)), 1)
    assert np.allclose(scores.sum(axis=1), 1)
    named = wrong_labels.doubts(scores, given)
    assert len(named) >= 8 and {item.index for item in named[:8]} <= set(wrong.tolist())
    assert all(item.suggested == truth[item.index] for item in named[:8])


def test_the_label_with_the_lowest_score_is_named_first():
    scores = np.array([
        [0.02, 0.9, 0.08], [0.95, 0.03, 0.02], [0.001, 0.2, 0.799], [0.5, 0.4, 0.1], [0.9, 0.06, 0.04], [0.1, 0.89, 0.01],
    ])  # fmt: skip
    named = wrong_labels.doubts(scores, np.array([0, 0, 0, 0, 1, 0]))
    found = [(item.index, item.suggested, item.score, item.suggested_score) for item in named]
    assert found == [(2, 2, 0.001, 0.799), (0, 1, 0.02, 0.9), (4, 0, 0.06, 0.9)]


def test_correct_labels_are_not_named():
    features, truth = labelled()
    assert len(wrong_labels.doubts(wrong_labels.out_of_fold(features, truth, np.arange(300), 1), truth)) <= 2


def test_a_copy_does_not_vouch_for_a_wrong_label():
    features, truth = labelled(60)
    features, given = (
        np.concatenate([features, np.repeat(features[:1], 20, axis=0)]),
        np.concatenate([truth, np.full(20, truth[0])]),
    )
    given[0] = (truth[0] + 1) % 3
    given[60:] = given[0]
    together = np.concatenate([np.arange(60), np.zeros(20, int)])
    scores = wrong_labels.out_of_fold(features, given, together, 1)
    assert 0 in {item.index for item in wrong_labels.doubts(scores, given)}


def test_labels_that_no_fold_could_judge_are_not_named():
    features, truth = labelled(46, classes=2)
    truth = np.repeat([0, 1], (6, 40))
    features[:6], together = features[0], np.concatenate([np.zeros(6, int), np.arange(6, 46)])
    scores = wrong_labels.out_of_fold(features, truth, together, 1)
    assert not scores[:6].any() and not {item.index for item in wrong_labels.doubts(scores, truth)} & set(range(6))


def test_odd_ones_are_far_from_the_median():
    values = np.random.default_rng(1).uniform(0.9, 1.1, 200)
    values[17] = 5.0
    assert odd_ones(values, 1).indices == (17,) and odd_ones(values, -1).indices == ()
    values[40], values[60], values[80] = 9.0, 0.1, 0.05
    assert odd_ones(values, 1).indices == (40, 17), "the oddest first"
    assert odd_ones(values, -1).indices == (80, 60)
    assert odd_ones(values, 1).usual == np.median(values)


def test_a_picture_without_contrast_is_not_called_blurred():
    sharpness, spread = np.full(30, 8.0, np.float32), np.full(30, 40.0, np.float32)
    sharpness[3], sharpness[5], sharpness[7] = 1.0, 0.5, 0.01
    spread[7] = 3.0  # an empty wall
    found = blurred(sharpness, spread)
    assert found.indices == (5, 3) and found.usual == pytest.approx(0.2)
    assert found.values[[3, 5]] == pytest.approx([0.025, 0.0125])


def looked_at(*files):
    """Return the looks at files that were never decoded: (source, split, class, width, height, pixels)."""
    items, table = [], np.zeros(len(files), LOOK)
    for row, (source, split, label, width, height, pixels) in zip(table, files, strict=True):
        items.append(Item(source=source, handle=0, hash=source, label=label, split=split))
        row["width"], row["height"], row["pixels"] = width, height, pixels.encode()
    return Looks(items=tuple(items), table=table, broken=(), computed=0)


def test_a_group_keeps_the_largest_copy_of_its_first_split():
    looks = looked_at(
        ("train/fox/a.jpg", "train", 1, 300, 200, "x"),
        ("train/fox/b.jpg", "train", 1, 40, 30, "y"),
        ("train/fox/c.jpg", "train", 1, 400, 300, "z"),
        ("test/fox/d.jpg", "test", 1, 20, 10, "y"),
    )
    pairs = [Pair(0, 1, "hash", Verdict(0.9, False)), Pair(1, 2, "features", Verdict(0.7, True))]
    group = group_of(looks, [0, 1, 2], pairs, ("cat", "fox"))
    assert [copy.source[-5] for copy in group.copies] == ["c", "a", "b"]
    assert [copy.keep for copy in group.copies] == [True, False, False]
    assert (group.exact, group.leak, group.two_labels) == (False, False, False)
    assert (group.by, group.score, group.mirrored) == ("features", 0.7, True)
    leak = group_of(looks, [0, 1, 3], [Pair(1, 3, "content", Verdict(1.0, False))], ("cat", "fox"))
    assert [copy.source[-5] for copy in leak.copies if copy.keep] == ["d"], "a test image is never the one removed"
    assert leak.leak and [copy.same for copy in leak.copies] == ["pixels", "near", "pixels"]
