"""Random changes to training images, and corruptions."""

import itertools

import numpy as np
import pytest

from edgecnn.data import augment as augment_module
from edgecnn.data.augment import (
    GRAIN,
    OPERATIONS,
    SHARE,
    TURN,
    augment,
    augment_photos,
    change_light,
    cover,
    crop_and_turn,
    mix_corruptions,
)
from edgecnn.pixels import PAD, as_image
from edgecnn.stress.corruptions import CORRUPTIONS
from edgecnn.train.loop import Batches

MIDDLE = [1.0, 0.5, 0.5, 0.5, 0.5]
"""Draws that change nothing: the whole area, square, centred, upright."""


def photos(channels=3, count=6, height=24, width=32):
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 8, columns * 6, (rows + columns) * 3], axis=2)[..., :channels]
    return np.repeat(picture.astype(np.uint8)[np.newaxis], count, axis=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_seed_gives_the_same_photos_and_leaves_the_originals(channels):
    images = photos(channels)
    before = images.copy()
    first, second, other = (
        augment_photos(images, (24, 32), np.random.default_rng(seed), flip=True) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(first, second)
    assert first.shape == images.shape and first.dtype == np.uint8
    assert not np.array_equal(first, other) and len({photo.tobytes() for photo in first}) == len(first)


def test_without_a_flip_left_stays_left():
    brighter = augment_photos(photos(count=200), (24, 32), np.random.default_rng(1), flip=False).astype(int)
    right_minus_left = brighter[:, 8:16, 24:, 1].mean((1, 2)) - brighter[:, 8:16, :8, 1].mean((1, 2))
    assert (right_minus_left > 0).all()
    flipped = augment_photos(photos(count=200), (24, 32), np.random.default_rng(1), flip=True).astype(int)
    right_minus_left = flipped[:, 8:16, 24:, 1].mean((1, 2)) - flipped[:, 8:16, :8, 1].mean((1, 2))
    assert 60 < (right_minus_left < 0).sum() < 140


def test_small_images_shift_as_far_as_stated_each_way_and_uncovered_borders_are_mid_grey():
    images = np.zeros((400, 7, 9, 1), np.uint8)
    images[:, 2, 5] = 255
    moved = augment(images, np.random.default_rng(1), flip=False, shift=2)
    number, rows, columns, _ = np.nonzero(moved == 255)
    assert number.tolist() == list(range(400)), "the bright pixel is still there"
    places = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert places == set(itertools.product(range(5), range(3, 8)))
    for image, row, column in zip(moved[..., 0], rows - 2, columns - 5, strict=True):
        grey = np.ones((7, 9), bool)
        grey[max(row, 0) : 7 + min(row, 0), max(column, 0) : 9 + min(column, 0)] = False
        assert np.array_equal(image == PAD, grey)
    mirrored = augment(images, np.random.default_rng(1), flip=np.arange(400) % 3 == 0, shift=0)
    assert (mirrored[::3, 2, 3] == 255).all() and (mirrored[1::3, 2, 5] == 255).all()


def place(coefficients, column, row):
    a, b, c, d, e, f = coefficients
    return a * column + b * row + c, d * column + e * row + f


def test_a_crop_has_the_stated_place_and_size():
    width, height = 160, 120
    photo = size = (height, width)
    assert place(crop_and_turn(photo, size, MIDDLE, False), 17, 5) == pytest.approx((17, 5))
    assert place(crop_and_turn(photo, size, MIDDLE, True), 17, 5) == pytest.approx((width - 17, 5))
    # the smallest area, at the top left: four tenths of the photo
    corner = crop_and_turn(photo, size, [0.0, 0.5, 0.0, 0.0, 0.5], False)
    assert place(corner, 0, 0) == pytest.approx((0, 0))
    assert np.prod(place(corner, width, height)) == pytest.approx(0.4 * width * height)
    # when rotated, the centre stays and a corner moves by the angle
    turned = crop_and_turn((100, 100), (100, 100), [1.0, 0.5, 0.5, 0.5, 1.0], False)
    assert place(turned, 50, 50) == pytest.approx((50, 50))
    across, down = np.subtract(place(turned, 100, 50), (50, 50))
    assert np.degrees(np.arctan2(down, across)) == pytest.approx(TURN)


def test_crops_of_a_larger_photo_have_the_inputs_size():
    for photo, size in (((300, 200), (150, 100)), ((90, 120), (60, 80))):
        whole = crop_and_turn(photo, size, MIDDLE, False)
        assert place(whole, 0, 0) == pytest.approx((0, 0))
        assert place(whole, size[1], size[0]) == pytest.approx((photo[1], photo[0]))
        turned = crop_and_turn(photo, size, [1.0, 0.5, 0.5, 0.5, 0.9], True)
        assert place(turned, size[1] / 2, size[0] / 2) == pytest.approx((photo[1] / 2, photo[0] / 2))
    parts = augment_photos(photos(count=4, height=48, width=64), (24, 32), np.random.default_rng(1), flip=False)
    assert parts.shape == (4, 24, 32, 3)


def test_light_changes_by_the_stated_amount():
    images = photos()
    np.testing.assert_array_equal(change_light(images, np.full((6, 3), 0.5)), images)
    dim = change_light(images, np.tile([0.5, 0.5, 0.0], (6, 1)))
    np.testing.assert_allclose(dim, images * 0.75, atol=0.51)
    pale = change_light(images, np.tile([0.0, 0.5, 0.5], (6, 1))).astype(float)
    assert np.ptp(pale, axis=3).mean() == pytest.approx(0.75 * np.ptp(images.astype(float), axis=3).mean(), rel=0.02)
    flat = change_light(images, np.tile([0.5, 0.0, 0.5], (6, 1)))
    assert flat.std() == pytest.approx(0.75 * images.std(), rel=0.02) and abs(flat.mean() - images.mean()) < 0.6


def test_a_stretched_crop_lies_where_its_column_and_row_say():
    """Four tenths of a 160x120 photo, a quarter wider than high relative to the photo, at the top right."""
    crop = crop_and_turn((120, 160), (120, 160), [0.0, 1.0, 1.0, 0.0, 0.5], False)
    left, bottom = 160 * (1 - np.sqrt(0.4 * 1.25)), 120 * np.sqrt(0.4 / 1.25)
    assert place(crop, 0, 0) == pytest.approx((left, 0)) and place(crop, 160, 120) == pytest.approx((160, bottom))
    mirrored = crop_and_turn((120, 160), (120, 160), [0.0, 1.0, 1.0, 0.0, 0.5], True)
    assert place(mirrored, 0, 120) == pytest.approx((160, bottom)), "mirrored in place"


def test_a_cutout_is_a_grey_square_anywhere_in_the_image():
    """Of 400 images of 9x25 pixels, each has a square of side 4, cut off at the border."""
    covered = cover(np.zeros((400, 9, 25, 1), np.uint8), np.random.default_rng(1), 4)[..., 0]
    assert set(np.unique(covered)) == {0, 128}
    rows, columns = (covered.any(axis=2).sum(axis=1), covered.any(axis=1).sum(axis=1))
    assert (covered.astype(bool).sum(axis=(1, 2)) == rows * columns).all()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 4)
    assert covered.any(axis=0).all() and 0.55 < (rows == 4).mean() < 0.8 < (columns == 4).mean()
    assert not cover(np.zeros((2, 9, 25, 1), np.uint8), np.random.default_rng(1), 0).any()


def photos_robust(count, side=24, channels=3):
    random = np.random.default_rng(5)
    slope = np.linspace(30, 220, side)[np.newaxis, np.newaxis, :, np.newaxis]
    return np.clip(slope + random.normal(0, 12, (count, side, side, channels)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_about_half_of_the_images_change_and_the_given_ones_stay(channels):
    images = photos_robust(400, channels=channels)
    before = images.copy()
    mixed = mix_corruptions(images, np.random.default_rng(1))
    assert mixed.shape == images.shape and mixed.dtype == np.uint8 and np.array_equal(images, before)
    changed = (mixed != images).any(axis=(1, 2, 3)).mean()
    assert SHARE - 0.12 < changed <= SHARE + 0.08


def test_the_same_generator_gives_the_same_images():
    images = photos_robust(40)
    first, again, other = (mix_corruptions(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_one_to_three_operations_are_mixed_with_at_most_half_of_the_original(monkeypatch):
    monkeypatch.setattr(
        augment_module, "OPERATIONS", {"lighter": lambda image, random: image.point(lambda value: value + 80)}
    )
    mixed = mix_corruptions(np.zeros((600, 2, 2, 1), np.uint8), np.random.default_rng(1))
    levels = mixed[mixed.any(axis=(1, 2, 3))][:, 0, 0, 0]
    assert 40 <= levels.min() < 45 and 230 < levels.max() <= 240
    assert np.mean(levels > 160) == pytest.approx(1 / 3 * 2 / 3, abs=0.07), "of three, those mixed by less than a third"


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_changes_an_image_and_keeps_its_form(name):
    from PIL import Image

    for channels in (1, 3):
        for side in (8, 24, 96):
            pixels = photos_robust(1, side, channels)[0]
            image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
            after = [OPERATIONS[name](image, np.random.default_rng(seed)) for seed in range(5)]
            assert {item.size for item in after} == {(side, side)} and {item.mode for item in after} == {image.mode}
            if (name, channels) != ("fade", 1) and side > 8:  # too few pixels for an even histogram
                assert any(np.asarray(item).tobytes() != np.asarray(image).tobytes() for item in after)


def test_a_curve_keeps_grey_grey_and_a_tint_does_not():
    image = as_image(np.repeat(photos_robust(1, channels=1)[0], 3, axis=2))
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
        sheared = np.asarray(augment_module.shear(as_image(pixels[:, :, np.newaxis]), np.random.default_rng(seed)))
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
    assert not measured & {value for value in vars(augment_module).values() if callable(value)}


def test_batches_mix_corruptions_only_if_the_recipe_does():
    images = photos_robust(64)
    settings = {"images": images, "classes": np.arange(64) % 2, "batch_size": 64, "seed": 1, "flip": False, "shift": 0}
    (plain, classes), (mixed, same) = (
        next(Batches(**settings, robust=robust_).epoch("float", 0)) for robust_ in (False, True)
    )
    assert np.array_equal(classes, same)
    changed = (plain != mixed).any(axis=(1, 2, 3)).mean()
    assert 0.25 < changed < 0.75
