"""Random changes to photos: a seed always gives the same ones, only crops lose content, and light changes by the stated amount."""

import itertools

import numpy as np
import pytest

from edgecnn.data.augment import TURN, augment, augment_photos, change_light, cover, crop_and_turn
from edgecnn.pixels import PAD

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
