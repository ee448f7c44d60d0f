"""Corruptions mixed into training images."""

import numpy as np
import pytest

from edgecnn.data import robust
from edgecnn.data.robust import GRAIN, OPERATIONS, SHARE, mix_corruptions
from edgecnn.modes import as_image
from edgecnn.stress.corruptions import CORRUPTIONS
from edgecnn.train.loop import Batches


def photos(count, side=24, channels=3):
    random = np.random.default_rng(5)
    slope = np.linspace(30, 220, side)[np.newaxis, np.newaxis, :, np.newaxis]
    return np.clip(slope + random.normal(0, 12, (count, side, side, channels)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_about_half_of_the_images_change_and_the_given_ones_stay(channels):
    images = photos(400, channels=channels)
    before = images.copy()
    mixed = mix_corruptions(images, np.random.default_rng(1))
    assert mixed.shape == images.shape and mixed.dtype == np.uint8 and np.array_equal(images, before)
    changed = (mixed != images).any(axis=(1, 2, 3)).mean()
    assert SHARE - 0.12 < changed <= SHARE + 0.08


def test_the_same_generator_gives_the_same_images():
    images = photos(40)
    first, again, other = (mix_corruptions(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_one_to_three_operations_are_mixed_with_at_most_half_of_the_original(monkeypatch):
    monkeypatch.setattr(robust, "OPERATIONS", {"lighter": lambda image, random: image.point(lambda value: value + 80)})
    mixed = mix_corruptions(np.zeros((600, 2, 2, 1), np.uint8), np.random.default_rng(1))
    levels = mixed[mixed.any(axis=(1, 2, 3))][:, 0, 0, 0]
    assert 40 <= levels.min() < 45 and 230 < levels.max() <= 240
    assert np.mean(levels > 160) == pytest.approx(1 / 3 * 2 / 3, abs=0.07), "of three, those mixed by less than a third"


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_changes_an_image_and_keeps_its_form(name):
    from PIL import Image

    for channels in (1, 3):
        for side in (8, 24, 96):
            pixels = photos(1, side, channels)[0]
            image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
            after = [OPERATIONS[name](image, np.random.default_rng(seed)) for seed in range(5)]
            assert {item.size for item in after} == {(side, side)} and {item.mode for item in after} == {image.mode}
            if (name, channels) != ("fade", 1) and side > 8:  # too few pixels for an even histogram
                assert any(np.asarray(item).tobytes() != np.asarray(image).tobytes() for item in after)


def test_a_curve_keeps_grey_grey_and_a_tint_does_not():
    image = as_image(np.repeat(photos(1, channels=1)[0], 3, axis=2))
    for name, stays in (("curve", True), ("tint", False)):
        red, green, blue = np.moveaxis(np.asarray(OPERATIONS[name](image, np.random.default_rng(3))), 2, 0)
        assert ((red == green).all() and (green == blue).all()) == stays


def test_noise_ends_at_black_and_white():
    """What wraps round is far from the level that it was added to."""
    for level, channels in ((4, 1), (4, 3), (251, 1), (251, 3)):
        image = as_image(np.full((40, 60, channels), level, np.uint8))
        for seed in range(10):
            pixels = np.asarray(OPERATIONS["grain"](image, np.random.default_rng(seed))).astype(int)
            assert 0 < np.abs(pixels - level).max() <= GRAIN


def test_a_sheared_picture_keeps_its_middle_and_its_sides_turn_in_opposite_directions():
    """A picture of 60 rows and 20 columns, with a cross through its middle."""
    pixels = np.full((60, 20), 30, np.uint8)
    pixels[29:31], pixels[:, 9:11] = 250, 250
    outside = []
    for seed in range(40):
        sheared = np.asarray(robust.shear(as_image(pixels[:, :, np.newaxis]), np.random.default_rng(seed)))
        assert sheared[29:31, 9:11].min() > 200, seed
        assert (sheared == 128).sum() == pytest.approx((sheared[::-1, ::-1] == 128).sum())
        grey = sheared == 128
        halves = (grey[:30].sum(), grey[30:].sum()) if grey[0].any() else (grey[:, :10].sum(), grey[:, 10:].sum())
        assert abs(int(halves[0]) - int(halves[1])) <= 0.3 * max(halves) + 6, "as much on one side as on the other"
        outside.append(grey.mean())
    assert 0.17 < max(outside) < 0.23, "by up to 30 % of half the height, which leaves 22.5 % of the picture grey"


def test_no_operation_is_one_of_the_measured_corruptions():
    assert not {name.replace("-", "_") for name in CORRUPTIONS} & set(OPERATIONS)
    measured = {corruption.apply for corruption in CORRUPTIONS.values()}
    assert not measured & {value for value in vars(robust).values() if callable(value)}


def test_batches_mix_corruptions_only_if_the_recipe_does():
    images = photos(64)
    settings = {"images": images, "classes": np.arange(64) % 2, "batch_size": 64, "seed": 1, "flip": False, "shift": 0}
    (plain, classes), (mixed, same) = (
        next(Batches(**settings, robust=robust_).epoch("float", 0)) for robust_ in (False, True)
    )
    assert np.array_equal(classes, same)
    changed = (plain != mixed).any(axis=(1, 2, 3)).mean()
    assert 0.25 < changed < 0.75
