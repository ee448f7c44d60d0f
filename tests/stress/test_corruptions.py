"""The corruptions: Hendrycks and Dietterich's against arrays from `imagecorruptions`, edgecnn's own against their intended effects."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from edgecnn.stress.corruptions import CORRUPTIONS, conditions, corrupt, from_light, generator, occlusion, to_light

GOLDEN = Path(__file__).with_name("golden.npz")
SEED = 7
"""From tools/golden_corruptions.py."""

SHARED = [name for name, corruption in CORRUPTIONS.items() if corruption.reference]

OFF_BY_ONE = {"motion": 0.02, "brightness": 0.04}
"""Largest share of values that may be off by one. Both truncate, so a sum in a different order can land on either side of a whole number.
Off by two is never allowed."""

JPEG_LEVELS = 12
"""Other versions of libjpeg round their transforms differently; with the one that made the arrays, JPEG is equal too."""


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: file[name] for name in file.files}


def drawn(channels, height=40, width=56):
    """Return an image with slopes and texture."""
    random = np.random.default_rng(channels)
    slope = np.linspace(40, 200, width)[np.newaxis, :, np.newaxis] + np.zeros((height, width, channels))
    return np.clip(slope + random.normal(0, 8, slope.shape) + 10 * np.arange(channels), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size_class", ["photo", "small"])
@pytest.mark.parametrize("name", SHARED)
def test_it_equals_the_output_of_imagecorruptions(name, size_class, golden):
    image, expected = golden[size_class], golden[f"{size_class}/{CORRUPTIONS[name].reference}"]
    for strength in range(1, 6):
        random = np.random.RandomState(SEED)  # the package uses numpy's legacy generator
        off = np.abs(corrupt(image, name, strength, random, size_class).astype(int) - expected[strength - 1])
        assert off.max() <= (JPEG_LEVELS if name == "jpeg" else 1), (strength, off.max())
        if name != "jpeg":
            assert (off > 0).mean() <= OFF_BY_ONE.get(name, 0.0), (strength, (off > 0).mean())


def test_the_golden_arrays_cover_all_shared_corruptions(golden):
    references = {f"{size}/{CORRUPTIONS[name].reference}" for size in ("photo", "small") for name in SHARED}
    assert set(golden) == references | {"photo", "small"} and len(SHARED) == 3
    assert all(len({array.tobytes() for array in golden[name]}) == 5 for name in references)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(40, 56), (8, 8), (33, 17)])
def test_every_corruption_keeps_shape_and_type_and_depends_only_on_the_generator(channels, shape):
    image = drawn(channels, *shape)
    before = image.copy()
    for size_class in ("photo", "small"):
        for name, strength in conditions(channels):
            first, again = (corrupt(image, name, strength, generator(1, name, "a.jpg"), size_class) for _ in range(2))
            assert first.shape == image.shape and first.dtype == np.uint8, name
            assert np.array_equal(first, again), name
    assert np.array_equal(image, before)


def test_each_strength_is_further_from_the_image_than_the_one_before(golden):
    image = golden["photo"]
    for name, corruption in CORRUPTIONS.items():
        if name == "scale":
            continue  # a different place in the image is not farther away, pixel by pixel
        distances = [
            float(np.abs(corrupt(image, name, strength, generator(1, name, "a"), "photo").astype(int) - image).mean())
            for strength in range(1, len(corruption.photo) + 1)
        ]
        steps = itertools.pairwise(distances)
        assert distances[0] > 0.1 and all(after > 0.95 * before for before, after in steps), (name, distances)
        assert len(distances) == 1 or distances[-1] > 1.2 * distances[0], (name, distances)


def test_grey_images_have_no_colours_to_change():
    grey, colour = ({name for name, _ in conditions(channels)} for channels in (1, 3))
    assert colour == set(CORRUPTIONS) and colour - grey == {"swapped"}
    assert [item for item in conditions(3) if item[0] == "swapped"] == [("swapped", 1)]


def test_exposure_is_in_stops_of_light():
    image = np.full((4, 4, 3), 200, np.uint8)
    darker = corrupt(image, "underexposure", 1, generator(1, "underexposure", "a"), "photo")
    assert to_light(darker).mean() == pytest.approx(to_light(image).mean() / 2, rel=0.02)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(from_light(to_light(every)), every)


def test_low_light_is_noisier_with_less_light():
    image = np.full((64, 64, 3), 180, np.uint8)
    deviations = [corrupt(image, "low-light", n, generator(1, "low-light", "a"), "photo").std() for n in range(1, 6)]
    assert deviations == sorted(deviations) and deviations[4] > 3 * deviations[0]


def test_scale_moves_closer_and_farther():
    image = np.zeros((80, 120, 1), np.uint8)
    image[34:46, 50:70] = 255  # 12 rows and 20 columns about the centre
    sides = set()
    for number in range(20):
        rows, columns, _ = np.nonzero(corrupt(image, "scale", 5, generator(1, "scale", str(number)), "photo") > 127)
        near = (rows > 24) & (rows < 56) & (columns > 35) & (columns < 85)  # and not the mirror images
        rows, columns = rows[near], columns[near]
        assert (rows.mean(), columns.mean()) == pytest.approx((39.5, 59.5), abs=0.6), "the centre stays"
        sides.add((int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1))
    assert sides == {(6, 10), (24, 40)}


def test_occlusion_covers_its_share_within_the_image():
    image = drawn(3, 50, 80)
    for strength, share in enumerate(CORRUPTIONS["occlusion"].photo, 1):
        covered = corrupt(image, "occlusion", strength, generator(1, "occlusion", "b"), "photo")
        colours, counts = np.unique(covered.reshape(-1, 3), axis=0, return_counts=True)
        assert counts.max() == pytest.approx(share * 4000, rel=0.1)
        rows, columns = np.nonzero((covered == colours[counts.argmax()]).all(axis=2))
        sides = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert sides == pytest.approx((50 * share**0.5, 80 * share**0.5), abs=1), "as wide as the image, in proportion"


def test_occlusion_is_anywhere_in_the_image():
    """A quarter of 20 by 40 pixels is 10 by 20, so the corner is at 0 to 10 and at 0 to 20."""
    corners = []
    for number in range(200):
        covered = occlusion(np.full((20, 40, 1), 255, np.uint8), 0.25, generator(1, "occlusion", str(number)))
        rows, columns, _ = np.nonzero(covered < 255)
        corners.append((rows.min(), columns.min()) if len(rows) else (0, 0))
    tops, lefts = np.array(corners).T
    assert set(tops.tolist()) == set(range(11)) and set(lefts.tolist()) == set(range(21))
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.2
