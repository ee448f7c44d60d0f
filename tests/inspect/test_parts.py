"""The parts of an inspection, checked against plain computations: hashes, positions, neighbours, labels."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.data.items import Item
from edgecnn.inspect import question
from edgecnn.inspect.groups import Pair, blurred, far_from_the_rest, odd_ones, thumbs_agree
from edgecnn.inspect.inspection import class_figures, group_of
from edgecnn.inspect.look import LOOK, NEAR, Looks, near_pairs, neighbours, perceptual_hashes, scaled
from edgecnn.inspect.pairs import (
    COARSE_SIDE,
    FINE_SIDE,
    Detail,
    Measures,
    Pictures,
    best_fit,
    correlations,
    energy_sums,
    frame_difference,
    grey_difference,
    likeness,
    measured,
    overlap,
)
from edgecnn.runtime.decision import unit_rows


def silent(*progress):
    """Show nothing."""


def bits(first, second):
    return (first ^ second).bit_count()


def test_a_compressed_picture_has_nearly_the_same_hash_but_a_different_one_does_not(scene, encode):
    import io

    for seed in range(10):
        grey = scene(seed).convert("L")
        again = Image.open(io.BytesIO(encode(scene(seed).resize((80, 60)), quality=50))).convert("L")
        own, mirrored = perceptual_hashes(grey)
        assert bits(own, perceptual_hashes(again)[0]) <= NEAR
        assert bits(own, perceptual_hashes(scene(seed + 50).convert("L"))[0]) > NEAR
        assert mirrored == perceptual_hashes(grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[0]


def test_near_pairs_equal_those_of_a_plain_comparison(monkeypatch):
    from edgecnn.inspect import look

    monkeypatch.setattr(look, "BLOCK", 7)
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, 40, np.uint64)
    hashes[5] = hashes[31] ^ np.uint64(0b1011)
    mirrored = random.integers(0, 2**64, 40, np.uint64)
    mirrored[20] = hashes[3]
    pairs, left = near_pairs(hashes, mirrored, silent)
    assert left == 0
    plain = {
        (a, b, flag)
        for a in range(40)
        for b in range(a + 1, 40)
        for flag, other in ((False, hashes), (True, mirrored))
        if bits(int(hashes[a]), int(other[b])) <= NEAR
    }
    assert set(map(tuple, pairs.tolist())) == plain
    assert plain == {(5, 31, False), (3, 20, True)}


def test_too_many_near_pairs_are_counted(monkeypatch):
    from edgecnn.inspect import look

    monkeypatch.setattr(look, "BLOCK", 7)
    monkeypatch.setattr(look, "MOST_CANDIDATES", 100)
    same = np.zeros(40, np.uint64)
    pairs, left = near_pairs(same, ~same, silent)
    assert left == 40 - 7 and set(pairs[:, 0].tolist()) == set(range(7))


@pytest.mark.parametrize("mirror", (False, True))
def test_a_part_of_a_picture_is_located(scene, mirror):
    whole = scene(3)
    part = whole.crop((30, 10, 150, 100))
    if mirror:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    match = best_fit(*(Detail(scaled(image.convert("L"), COARSE_SIDE)) for image in (whole, part)))
    assert match.score > 0.8 and match.mirrored is mirror
    fine = measured(scaled(whole, FINE_SIDE, enlarge=True), scaled(part, FINE_SIDE, enlarge=True), match)
    assert fine.score > 0.9
    assert np.allclose(fine.first, (30 / 160, 10 / 120, 150 / 160, 100 / 120), atol=0.05)
    other = best_fit(*(Detail(scaled(image.convert("L"), COARSE_SIDE)) for image in (whole, scene(44))))
    assert other.score < 0.7


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (5, 5)])
def test_a_cut_that_is_larger_than_the_picture_fits_nowhere(shape):
    energy = energy_sums(np.ones((4, 4)))
    assert correlations(np.ones((8, 8)), energy, shape).tolist() == [[-np.inf]]
    assert correlations(np.ones((8, 8)), energy, (4, 4)).shape == (1, 1)


def test_the_overlap_of_a_picture_that_lies_partly_outside():
    first, second = overlap((100, 50), (-20, 10, 80, 60))
    assert first == (0.0, 0.2, 0.8, 1.0) and second == (0.2, 0.0, 1.0, 0.8)


def test_brightness_alone_is_not_a_difference(scene):
    picture = scene(1)
    brighter = Image.fromarray((np.asarray(picture) // 2 + 20).astype(np.uint8))
    assert grey_difference(picture, Image.fromarray(np.asarray(picture) // 4 * 4))[0] < 2
    assert grey_difference(picture, brighter)[0] > 5, "contrast is a difference"


def test_neighbours_equal_those_of_a_plain_comparison():
    features = unit_rows(np.random.default_rng(2).normal(size=(600, 12)).astype(np.float32))
    indices, cosines = neighbours(features, 3, lambda done, total: None)
    products = features @ features.T
    np.fill_diagonal(products, -2)
    expected = np.argsort(-products, axis=1)[:, :3]
    assert (indices == expected).mean() > 0.999
    assert np.allclose(cosines, np.take_along_axis(products, expected, 1), atol=1e-5)


def test_neighbours_keep_no_number_per_pair():
    """3,000 images make nine million pairs: one index each, int64, would take 69 MiB."""
    features = unit_rows(np.random.default_rng(3).normal(size=(3_000, 4)).astype(np.float32))
    tracemalloc.start()
    neighbours(features, 1, silent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 45 * 2**20, f"{peak / 2**20:.0f} MiB"


def labelled(count=300, classes=3, seed=4):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, count)
    return random.normal(size=(count, 20)).astype(np.float32) + 4 * np.eye(classes, 20, dtype=np.float32)[truth], truth


def doubts(scores, classes):
    """Return the index, the suggested class, and both scores of each label that is likely wrong."""
    items = [Item(source=str(n), split="train", label=0, hash="", handle=None) for n in range(len(classes))]
    named = question.wrong_labels(items, [str(n) for n in range(scores.shape[1])], scores, classes)
    assert all(int(one.label) == classes[int(one.source)] for one in named)
    return [(int(one.source), int(one.suggested), one.score, one.suggested_score) for one in named]


def test_wrong_labels_are_named_first():
    features, truth = labelled()
    given = truth.copy()
    wrong = np.random.default_rng(5).choice(len(truth), 15, replace=False)
    given[wrong] = (truth[wrong] + 1) % 3
    scores = question.out_of_fold(features, given, np.arange(len(given)), silent)
    assert np.allclose(scores.sum(axis=1), 1)
    named = doubts(scores, given)
    assert len(named) >= 8 and {index for index, *_ in named[:8]} <= set(wrong.tolist())
    assert all(suggested == truth[index] for index, suggested, *_ in named[:8])


def test_the_label_with_the_lowest_score_is_named_first():
    scores = np.array([
        [0.02, 0.9, 0.08], [0.95, 0.03, 0.02], [0.001, 0.2, 0.799], [0.5, 0.4, 0.1], [0.9, 0.06, 0.04], [0.1, 0.89, 0.01],
    ])  # fmt: skip
    found = doubts(scores, np.array([0, 0, 0, 0, 1, 0]))
    assert found == [(2, 2, 0.001, 0.799), (0, 1, 0.02, 0.9), (4, 0, 0.06, 0.9)]


def test_correct_labels_are_not_named():
    features, truth = labelled()
    assert len(doubts(question.out_of_fold(features, truth, np.arange(300), silent), truth)) <= 2


def test_a_copy_does_not_vouch_for_a_wrong_label():
    features, truth = labelled(60)
    features, given = (
        np.concatenate([features, np.repeat(features[:1], 20, axis=0)]),
        np.concatenate([truth, np.full(20, truth[0])]),
    )
    given[0] = (truth[0] + 1) % 3
    given[60:] = given[0]
    together = np.concatenate([np.arange(60), np.zeros(20, int)])
    scores = question.out_of_fold(features, given, together, silent)
    assert 0 in {index for index, *_ in doubts(scores, given)}


def test_labels_that_no_fold_could_judge_are_not_named():
    features, truth = labelled(46, classes=2)
    truth = np.repeat([0, 1], (6, 40))
    features[:6], together = features[0], np.concatenate([np.zeros(6, int), np.arange(6, 46)])
    scores = question.out_of_fold(features, truth, together, silent)
    assert not scores[:6].any() and not {index for index, *_ in doubts(scores, truth)} & set(range(6))


def indices(found):
    return [index for index, *_ in found]


def test_odd_ones_are_far_from_the_median():
    values = np.random.default_rng(1).uniform(0.9, 1.1, 200)
    values[17] = 5.0
    assert indices(odd_ones(values, 1)) == [17] and odd_ones(values, -1) == []
    values[40], values[60], values[80] = 9.0, 0.1, 0.05
    usual = np.median(values)
    assert odd_ones(values, 1) == [(40, 9.0, usual), (17, 5.0, usual)], "the oddest first"
    assert odd_ones(values, -1) == [(80, 0.05, usual), (60, 0.1, usual)]


def looked_at(*files):
    """Return the looks at files that were never decoded: (source, split, class, width, height, pixels)."""
    items, table = [], np.zeros(len(files), LOOK)
    for row, (source, split, label, width, height, pixels) in zip(table, files, strict=True):
        items.append(Item(source=source, handle=0, hash=source, label=label, split=split))
        row["width"], row["height"], row["pixels"] = width, height, pixels.encode()
    return Looks(items=tuple(items), table=table, broken=())


def test_a_group_keeps_the_largest_copy_of_its_first_split():
    looks = looked_at(
        ("train/fox/a.jpg", "train", 1, 300, 200, "x"),
        ("train/fox/b.jpg", "train", 1, 40, 30, "y"),
        ("train/fox/c.jpg", "train", 1, 400, 300, "z"),
        ("test/fox/d.jpg", "test", 1, 20, 10, "y"),
    )
    pairs = [Pair(0, 1, "hash", 0.9, False), Pair(1, 2, "features", 0.7, True)]
    group = group_of(looks, pairs, ("cat", "fox"))
    assert [copy.source[-5] for copy in group.copies] == ["c", "a", "b"]
    assert [copy.keep for copy in group.copies] == [True, False, False]
    assert (group.exact, group.leak, group.two_labels) == (False, False, False)
    assert (group.by, group.score, group.mirrored) == ("features", 0.7, True)
    leak = group_of(looks, [Pair(0, 1, "hash", 0.9, False), Pair(1, 3, "content", 1.0, False)], ("cat", "fox"))
    assert [copy.source[-5] for copy in leak.copies if copy.keep] == ["d"], "a test image is never the one removed"
    assert leak.leak and [copy.same for copy in leak.copies] == ["pixels", "near", "pixels"]


def test_hashes_are_of_the_lowest_frequencies_and_near_up_to_eight_bits():
    from scipy.fft import dctn

    pixels = np.random.default_rng(3).integers(0, 256, (32, 32), np.uint8)
    low = dctn(pixels.astype(float), norm=None)[:8, :8]
    expected = "".join("01"[int(value > np.median(low))] for value in low.ravel())
    assert f"{perceptual_hashes(Image.fromarray(pixels))[0]:064b}" == expected
    hashes = np.array([0, 2**8 - 1, 2**63 + 2**9 - 1], np.uint64)  # 0, 8 and 10 bits
    found, _ = near_pairs(hashes, ~np.array([0, 2**40 - 1, 2**9 - 1], np.uint64), silent)
    assert found.tolist() == [[0, 1, 0], [1, 2, 0]]
    found, _ = near_pairs(np.array([0, 2**63], np.uint64), np.array([2**50 - 1, 2**7 - 1], np.uint64), silent)
    assert sorted(found.tolist()) == [[0, 1, 0], [0, 1, 1]]


def test_thumbnails_agree_up_to_a_limit_and_mirrored_ones_if_mirrored():
    """The left half is brighter by 50 levels, and 20 levels of brightness are no difference: 25 from the mean on average."""
    thumbs = np.full((4, 16, 16, 3), 100, np.uint8)
    thumbs[1, :, :8], thumbs[1, :, 8:] = 170, 120
    thumbs[2, :, :8], thumbs[2, :, 8:] = 172, 120
    thumbs[3, :, 8:], thumbs[3, :, :8] = 170, 120
    pairs = ((0, 1, False), (0, 2, False), (1, 3, False), (1, 3, True), (1, 2, False))
    agree = [thumbs_agree(thumbs[one], thumbs[other], mirrored) for one, other, mirrored in pairs]
    assert agree == [True, False, False, True, True]


def test_pairs_are_the_same_up_to_each_limit():
    cases = {
        (0.6, 4.0, -1.0): 0.6, (0.59, 4.0, -1.0): 0, (0.7, 4.01, -1.0): 0, (0.85, 9.0, 0.92): 0.92,
        (0.84, 9.0, 0.95): 0, (0.85, 9.0, 0.919): 0, (0.95, 2.0, 0.91): 0.95, (0.9, 2.0, 1.0000001): 1.0,
    }  # fmt: skip
    for (place, levels, cosine), score in cases.items():
        assert likeness(Measures(place, True, levels, cosine)) == score, (place, levels, cosine)
    assert likeness(Measures()) == 0


def test_whole_pictures_differ_in_units_of_what_compression_may_change():
    """A picture of two greys, 100 and 140, and one whose right quarter is 8 darker: half of it differs by 4 + 2 or by 2."""
    one = np.full((120, 160, 3), 100, np.uint8)
    one[:, :80] = 140
    other = one.copy()
    other[:, 120:] -= 8
    pictures = [Image.fromarray(pixels) for pixels in (one, other, one[:, ::-1])]
    items = [Item(source=str(n), split="train", label=0, hash="", handle=np.asarray(p)) for n, p in enumerate(pictures)]
    opened = Pictures(items, lambda item: item.handle)
    spread = (np.std([140] * 32 + [100] * 32) + np.std([140] * 32 + [100] * 16 + [92] * 16)) / 2
    mean, peak = (6 * 16 + 2 * 48) / 64, 6
    expected = max(mean / (1.5 + 0.1 * spread), peak / (8 + 0.6 * spread))
    assert frame_difference(opened, 0, 1, False) == pytest.approx(expected, rel=1e-3)
    assert frame_difference(opened, 0, 2, True) == 0 < 1 < frame_difference(opened, 0, 2, False)


def test_a_label_is_named_only_beyond_ten_to_one():
    scores = np.array([[0.05, 0.5, 0.45], [0.0625, 0.625, 0.3125], [0.0499, 0.5, 0.4501]])
    assert [index for index, *_ in doubts(scores, np.zeros(3, int))] == [2]


def test_each_image_is_judged_without_its_copies_and_its_scores_are_means(monkeypatch):
    """Classes of 9 and 12 images, in which the rarer has 4 different ones: 4 folds, three times."""
    groups = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, *range(4, 16)])
    classes = np.repeat([0, 1], (9, 12))
    features = np.stack([np.arange(21.0), groups, np.full(21, 7.0)], axis=1)
    fits, steps = [], []

    class Fitted:
        classes_ = np.array([0, 1])

        def fit(self, rows, labels):
            self.rows = rows
            assert not rows[:, 2].any() and len(rows) == len(labels) < 21
            return self

        def predict_proba(self, rows):
            shared = set(self.rows[:, 1].round(4).tolist()) & set(rows[:, 1].round(4).tolist())
            fits.append((len(rows), shared))
            share = 0.2 + 0.3 * (len(fits) > 4) + 0.1 * (len(fits) > 8)
            return np.tile([share, 1 - share], (len(rows), 1))

    monkeypatch.setattr("edgecnn.train.candidates.regression", lambda strength: Fitted())
    monkeypatch.setattr("edgecnn.train.candidates.choose_strength", lambda features, classes, seed: 1.0)
    scores = question.out_of_fold(features, classes, groups, lambda *step: steps.append(step))
    assert np.allclose(scores, [(0.2 + 0.5 + 0.6) / 3, (0.8 + 0.5 + 0.4) / 3])
    assert len(fits) == 12 and sum(count for count, _ in fits) == 63 and not any(shared for _, shared in fits)
    assert [step[1:] for step in steps] == [(n, 12) for n in range(1, 13)]


def test_features_are_standardised_and_reduced_to_their_principal_components(monkeypatch):
    from scipy.stats import zscore

    monkeypatch.setattr(question, "COMPONENTS", 5)
    random = np.random.default_rng(6)
    features = random.normal(3, 2, (60, 9)) * np.linspace(1, 50, 9) + random.normal(size=(60, 1)) * 30
    features[:, 4] = 5.0
    scaled = question.standardised(features)
    assert not scaled[:, 4].any() and np.allclose(np.delete(scaled, 4, 1), zscore(np.delete(features, 4, 1)))
    expected = np.linalg.svd(scaled, compute_uv=False)[:5]
    assert np.linalg.norm(question.components(scaled), axis=0) == pytest.approx(expected)


def test_images_are_odd_beyond_four_spreads_and_only_among_twenty():
    """The median of the logarithms is 0, and half of them are within 1: a spread is 1.4826."""
    logs = np.array([-1.0] * 7 + [0.0] * 7 + [1.0] * 5 + [5.88, 5.99])
    assert indices(odd_ones(np.exp(logs), 1)) == [20] == indices(odd_ones(np.exp(-logs), -1))
    rows = np.random.default_rng(2).normal(scale=0.1, size=(21, 8)).astype(np.float32)
    rows[:, 0] += 1
    rows[4] = (0, 0, 0, 1, 0, 0, 0, 0)
    ((index, value, usual),) = far_from_the_rest(unit_rows(rows), silent)
    cosines = np.sort(unit_rows(rows) @ unit_rows(rows).T, axis=1)[:, -11:-1]  # without the one with itself
    assert index == 4 and value == pytest.approx(1 - cosines[4].mean(), abs=1e-5)
    assert usual == pytest.approx(np.median(1 - cosines.mean(axis=1)), abs=1e-5)
    assert indices(far_from_the_rest(unit_rows(rows[:20]), silent)) == [4]
    assert far_from_the_rest(unit_rows(rows[:19]), silent) == []
    sharpness, spread = np.full(22, 8.0, np.float32), np.full(22, 40.0, np.float32)
    sharpness[1], spread[1], spread[2], spread[3] = 0.01, 4.0, 3.9, 3.9
    assert indices(blurred(sharpness, spread)) == [1] and blurred(sharpness[:21], spread[:21]) == []


def test_classes_count_each_group_once_per_class():
    """Four cats and three dogs; three cats and a dog are of one group, two dogs of another."""
    labels = [0, 0, 0, 0, 1, 1, 1]
    splits = ["train", "test", "train", "train", "validation", "train", "test"]
    items = [
        Item(source=str(n), handle=0, hash=str(n), label=label, split=split)
        for n, (label, split) in enumerate(zip(labels, splits, strict=True))
    ]
    cat, dog, fox = class_figures(items, np.array([0, 0, 2, 0, 0, 1, 1]), ("cat", "dog", "fox"))
    assert (cat.label, cat.images, cat.distinct) == ("cat", {"train": 3, "validation": 0, "test": 1}, 2)
    assert (dog.label, dog.images, dog.distinct) == ("dog", {"train": 1, "validation": 1, "test": 1}, 2)
    assert (fox.label, sum(fox.images.values()), fox.distinct) == ("fox", 0, 0)


def test_a_class_of_copies_is_not_judged_and_the_others_keep_their_names(monkeypatch):
    """Three copies of one ant, two bees and three cats; the second bee and the first cat look like the other class."""
    labels = [0, 0, 1, 2, 0, 1, 2, 2]
    looks = looked_at(*((f"{n}.jpg", "test" if n == 5 else "train", label, 9, 8, "") for n, label in enumerate(labels)))
    features, seen = np.arange(16.0).reshape(8, 2), []

    def answered(rows, classes, groups, progress):
        seen.append((rows[:, 0].tolist(), classes.tolist(), groups.tolist()))
        return np.array([[0.9, 0.1], [0.92, 0.08], [0.03, 0.97], [0.2, 0.8], [0.4, 0.6]])

    monkeypatch.setattr(question, "out_of_fold", answered)

    def doubted(*group):
        return question.labels_in_doubt(looks.items, ("ant", "bee", "cat"), features, np.array(group), silent)

    found = [tuple(vars(item).values()) for item in doubted(0, 0, 2, 3, 0, 5, 6, 6)]
    assert found == [
        ("5.jpg", "test", "bee", "cat", 0.03, 0.97), ("3.jpg", "train", "cat", "bee", 0.08, 0.92),
    ]  # fmt: skip
    assert seen == [([4, 6, 10, 12, 14], [0, 1, 0, 1, 1], [2, 3, 5, 6, 6])]
    assert doubted(0, 0, 2, 3, 0, 2, 6, 7) == (), "one class is nothing to compare"


def test_a_runs_folds_judge_only_the_images_and_labels_that_they_have():
    from scipy.special import softmax

    old = ((f"{n}.jpg", "train", label, 9, 8, "") for n, label in enumerate([0, 1, 2, 1]))
    looks = looked_at(("added since.jpg", "train", 2, 9, 8, ""), *old)
    held = SimpleNamespace(
        hashes=np.array(["3.jpg", "9.jpg", "1.jpg", "0.jpg", "0.jpg"]), classes=np.array([1, 2, 1, 1, 0]),
        float=np.array([[0, 9, 0], [9, 0, 0], [1, 0, 4], [9, 0, 1], [2, 1, 6]], np.float32),
    )  # fmt: skip
    found = question.doubted_by_folds(looks.items, ("ant", "bee", "cat"), held)
    first, second = softmax([1.0, 0, 4]), softmax([2.0, 1, 6])
    assert [(item.source, item.label, item.suggested) for item in found] == [
        ("1.jpg", "bee", "cat"), ("0.jpg", "ant", "cat"),
    ]  # fmt: skip
    assert [value for item in found for value in (item.score, item.suggested_score)] == pytest.approx(
        [first[1], first[2], second[0], second[2]], rel=1e-5
    )
