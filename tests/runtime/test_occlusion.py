"""Occlusion maps of models whose answer is known to depend on one place, and of a trained model."""

from dataclasses import replace

import numpy as np
import pytest

from edgecnn.errors import ImageError
from edgecnn.pixels import PAD
from edgecnn.runtime import Classifier
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import Tensor, engines_for, is_installed
from edgecnn.runtime.model import Model
from edgecnn.runtime.occlusion import POSITIONS, mean_over_patches, occlusion, places

LABELS = ("empty", "lit")


class Looking:
    """A float32 engine that looks at one place: its second logit is the sum of the real values there, its first is 0."""

    name, version, provider, format = "looking", "1.0", "none", "fake"

    def __init__(self, shape, place, sign=1.0):
        self.input = Tensor("pixels", (1, *shape), np.dtype(np.float32), 0.0, 0)
        self.output = Tensor("logits", (1, 2), np.dtype(np.float32), 0.0, 0)
        self.place = place
        self.sign = sign
        self.batches = []

    def run(self, batch):
        self.batches.append(batch)
        top, left, bottom, right = self.place
        sums = self.sign * batch[:, top:bottom, left:right].sum(axis=(1, 2, 3))
        return np.stack([0 * sums, sums], axis=1).astype(np.float32)


@pytest.fixture
def looking(contract):
    """Make a model that looks at one place of an image of (height, width), and an all-white image."""

    def make(shape, place, sign=1.0, **changes):
        height, width = shape
        changed = replace(contract, height=height, width=width, **changes)
        model = Model(Looking((height, width, 3), place, sign), changed, 2)
        return model, np.full((height, width, 3), 255, np.uint8)

    return make


def test_a_model_that_looks_at_one_place(looking):
    top, left, bottom, right = place = 18, 10, 22, 14
    model, pixels = looking((32, 32), place)
    found = occlusion(model, pixels, LABELS)
    assert (found.answer, found.index) == ("lit", 1) and found.score > 0.99
    assert found.map.shape == (32, 32) and found.map.dtype == np.float32
    y, x = divmod(int(found.map.argmax()), 32)
    assert top <= y < bottom and left <= x < right
    box = [32 * end for end in found.box]
    assert box[0] <= left and box[1] <= top and box[2] >= right and box[3] >= bottom, "it covers the whole place"
    assert found.decrease == pytest.approx(4 * 4 * 3 * 127 / 128, rel=1e-5), "all of the place's values become 0"
    near = np.zeros((32, 32), bool)
    near[top - 7 : bottom + 7, left - 7 : right + 7] = True
    assert not found.map[~near].any(), "no patch that covers one of these pixels reaches the place"
    assert (found.map[top:bottom, left:right] > 0).all()


def test_evidence_against_the_answer_is_negative(looking):
    model, pixels = looking((32, 32), (20, 4, 24, 8), sign=-1)
    found = occlusion(model, np.where(np.arange(32)[:, None, None] < 16, pixels, 0), LABELS)
    assert found.answer == "lit", "the place is black, so that its values are negative"
    shown = occlusion(model, pixels, LABELS)
    assert shown.answer == "empty" and not shown.map.any() and shown.decrease == 0, "that logit does not move"


def test_a_rectangle_of_any_size(looking):
    model, pixels = looking((10, 40), (0, 36, 10, 40))
    found = occlusion(model, pixels, LABELS)
    assert found.map.shape == (10, 40)
    assert found.box[2] == 1 and found.map[:, :20].max() == 0 < found.map[:, 38].min()
    low, pixels = looking((12, 40), (9, 20, 12, 28))  # the patch has 3 rows and 10 columns, and is at row 9, column 18
    assert occlusion(low, pixels, LABELS).box == pytest.approx((18 / 40, 9 / 12, 28 / 40, 1))
    tiny, one = looking((1, 1), (0, 0, 1, 1))
    assert occlusion(tiny, one, LABELS).box == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("scale", "zero_point", "middle"), [(1 / 128, 0, 0), (1 / 255, -128, 128 / 255), (1, -128, 128)]
)
def test_the_patch_is_the_middle_of_the_input_whatever_its_range(looking, scale, zero_point, middle):
    model, pixels = looking((8, 8), (0, 0, 8, 8), scale=scale, zero_point=zero_point)
    occlusion(model, pixels, LABELS)
    whole, first, *_ = model.engine.batches
    assert set(np.unique(whole).tolist()) == {np.float32(scale) * np.float32(127 - zero_point)}
    assert first[0, :2, :2] == pytest.approx(middle)
    assert (first[0, 2:] == whole[0, 2:]).all() and (first[0, :2, 2:] == whole[0, :2, 2:]).all()


def test_an_int8_model_reads_code_0_under_the_patch(contract, fake_engine, pixels):
    engine = fake_engine()
    found = occlusion(Model(engine, contract, 3), pixels[0], ("a", "b", "c"))
    assert (engine.batches[1][0, :2, :2] == 0).all() and engine.batches[1].dtype == np.int8
    assert np.array_equal(found.pixels, pixels[0]), "the image itself is unchanged"


def test_places_go_from_end_to_end_and_cover_every_pixel():
    for side in (*range(1, 130), 224, 299):
        length, starts = places(side)
        assert starts[0] == 0 and starts[-1] == side - length and len(starts) == len(set(starts)) <= POSITIONS, side
        assert abs(length - side / 4) <= 0.75
        assert set(range(side)) == {start + step for start in starts for step in range(length)}
        assert side < 16 or max(np.diff(starts)) <= max(2, np.ceil(side / 16)), side


def test_the_map_is_the_mean_over_the_patches_that_cover_a_pixel():
    shape = 21, 34
    (down, tops), (across, lefts) = map(places, shape)
    decreases = np.random.default_rng(1).normal(size=(len(tops), len(lefts))).astype(np.float32)
    expected = np.empty(shape)
    for y in range(shape[0]):
        for x in range(shape[1]):
            rows = [top <= y < top + down for top in tops]
            columns = [left <= x < left + across for left in lefts]
            expected[y, x] = decreases[np.ix_(rows, columns)].mean()
    found = mean_over_patches(decreases, shape)
    assert found == pytest.approx(expected, abs=1e-5) and found.dtype == np.float32


def test_batches_are_small(looking):
    model, pixels = looking((64, 64), (0, 0, 9, 9))
    occlusion(model, pixels, LABELS)
    sizes = [len(batch) for batch in model.engine.batches]
    assert sum(sizes) == 1 + POSITIONS**2 and max(sizes) == POSITIONS


def test_the_score_is_the_classifiers(looking):
    model, pixels = looking((8, 8), (0, 0, 1, 1))
    logit = 3 * 127 / 128
    assert occlusion(model, pixels, LABELS, 2.0).score == pytest.approx(1 / (1 + np.exp(-logit / 2)))


def test_scores_that_are_not_numbers(looking):
    model, pixels = looking((8, 8), (0, 0, 1, 1), sign=np.nan)
    with pytest.raises(ImageError, match="not numbers"):
        occlusion(model, pixels, LABELS)


def deletion_area(model, item, order, steps=32):
    """Return the area under a deletion curve: pixels are greyed out, a 32nd at a time, starting with the largest values of a map."""
    ranks = np.empty(order.size, np.int64)
    ranks[np.argsort(-order, axis=None, kind="stable")] = np.arange(order.size)
    deleted = ranks.reshape(1, *order.shape, 1) < np.linspace(0, order.size, steps + 1)[:, None, None, None]
    scores = softmax(model.logits(np.where(deleted, np.uint8(PAD), item.pixels)))[:, item.index]
    return (scores[:-1] + scores[1:]).mean() / 2


@pytest.mark.skipif(not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed")
def test_a_trained_models_deletion_curve_beats_random_maps(shipped):
    """Petsiuk et al. 2018: the answer's score falls sooner if pixels are removed in the map's order than in a random map's."""
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn, of the train extra")
    classifier, random = Classifier.load(shipped("digits"), precision="int8"), np.random.default_rng(1)
    grey = (datasets.load_digits().images[:40] * 255 / 16).astype(np.uint8)[..., np.newaxis]
    explained = [occlusion(classifier.model, image, classifier.labels) for image in grey]
    grid = tuple(len(places(side)[1]) for side in (8, 8))

    def area(map_of):
        return np.mean([deletion_area(classifier.model, item, map_of(item)) for item in explained])

    pixels = area(lambda item: random.random((8, 8)))
    smooth = area(lambda item: mean_over_patches(random.random(grid, dtype=np.float32), (8, 8)))
    assert area(lambda item: item.map) < 0.7 * min(pixels, smooth)
    assert area(lambda item: -item.map) > pixels, "in the opposite order, important pixels are removed last"
