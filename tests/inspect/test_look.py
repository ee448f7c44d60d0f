"""The look at each image, on pictures so small that the answer is counted by hand, and what the next inspection knows of it."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from edgecnn.data.items import Item, Meter
from edgecnn.errors import ImageError
from edgecnn.inspect import features
from edgecnn.inspect.cache import Cache
from edgecnn.inspect.features import SIDE
from edgecnn.inspect.look import THUMB, look_at, one_look, scaled


@pytest.fixture
def cache(own_cache):
    cache = Cache()
    yield cache
    cache.close()


def items_of(*arrays):
    """Items of arrays; None cannot be read."""
    return [
        Item(
            source=f"x[{n}]", split="train", label=n % 2, handle=pixels,
            hash=hashlib.sha256(str(n).encode() if pixels is None else pixels.tobytes()).hexdigest(),
        )
        for n, pixels in enumerate(arrays)
    ]  # fmt: skip


def read(item):
    if item.handle is None:
        raise ImageError(f"{item.source} is gone")
    return item.handle


def look(pixels):
    (item,) = items_of(np.asarray(pixels, np.uint8))
    return one_look(item, read)


def test_a_look_has_the_size_the_mode_the_sharpness_and_the_contrast():
    """Two rows of three pixels: across they differ by 10, 30, 20 and 40, down by 20, 30 and 40."""
    grey = np.array([[10, 20, 50], [30, 50, 90]], np.uint8)
    seen = look(grey[:, :, np.newaxis])
    assert (seen["width"], seen["height"], seen["channels"]) == (3, 2, 1)
    assert seen["sharpness"] == pytest.approx((100 / 4 + 90 / 3) / 2)
    assert seen["spread"] == pytest.approx(np.std([10, 20, 50, 30, 50, 90]))
    colour = look(np.repeat(grey[:, :, np.newaxis], 3, axis=2))
    assert colour["channels"] == 3 and colour["pixels"] == seen["pixels"], "the same picture in another mode"
    assert look(np.full((1, 5, 1), 7))["sharpness"] == 0 and look(np.full((5, 1, 1), 7))["spread"] == 0
    turned = look(grey.T[:, :, np.newaxis])
    assert (turned["width"], turned["height"]) == (2, 3) and turned["pixels"] != seen["pixels"]
    wide, tall = look(np.full((2, 6, 1), 9)), look(np.full((6, 2, 1), 9))
    large = np.random.default_rng(1).integers(0, 256, (100, 160, 1), np.uint8)
    assert look(large.repeat(2, axis=0).repeat(2, axis=1))["sharpness"] == look(large)["sharpness"] > 50
    assert wide["pixels"] != tall["pixels"], "the same bytes in another size are another picture"


def test_the_thumbnail_is_upright_and_in_colour():
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:2, -3:] = (200, 100, 50)  # upper right
    thumb = look(pixels)["thumb"]
    assert thumb.shape == (THUMB, THUMB, 3) and thumb[0, -1].tolist() == [200, 100, 50] and thumb.any(2).sum() == 1


def test_larger_pictures_are_reduced_to_the_longer_side():
    for size, expected in (
        ((160, 90), (160, 90)), ((161, 80), (160, 80)), ((320, 200), (160, 100)), ((100, 640), (25, 160)),
        ((20, 1600), (8, 160)), ((1600, 6), (160, 6)), ((30, 20), (30, 20)), ((120, 70), (120, 70)),
    ):  # fmt: skip
        assert scaled(Image.new("L", size), 160).size == expected, size


def test_looks_stay_with_their_images_and_are_computed_once(cache):
    """70 pictures, one width each, beyond one batch of 64; two of them cannot be read, two are the same file."""
    arrays = [np.full((3, 5 + n, 1), n, np.uint8) for n in range(70)]
    arrays[7] = arrays[66] = None
    arrays[69] = arrays[68]
    items = items_of(*arrays)
    calls = []
    first = look_at(items, read, cache, Meter(lambda *step: calls.append(step), "looking", len(items)))
    whole = [n for n in range(70) if n not in (7, 66)]
    assert [item.source for item in first.items] == [f"x[{n}]" for n in whole]
    assert first.table["width"].tolist() == [arrays[n].shape[1] for n in whole]
    assert [(item.source, reason) for item, reason in first.broken] == [
        ("x[7]", "x[7] is gone"), ("x[66]", "x[66] is gone"),
    ]  # fmt: skip
    assert first.computed == 70 and calls[-1] == ("looking", 70, 70)
    calls.clear()
    new = items_of(np.full((4, 9, 3), 200, np.uint8))
    again = look_at([*items[::-1], *new], read, cache, Meter(lambda *step: calls.append(step), "looking", 71))
    assert again.computed == 3, "the new one, and those that could not be read"
    assert again.table["width"].tolist() == [*(arrays[n].shape[1] for n in whole[::-1]), 9]
    assert [item.source for item, _ in again.broken] == ["x[66]", "x[7]"] and calls[-1][1:] == (71, 71)


def test_features_stay_with_their_images_and_equal_files_are_computed_once(cache):
    """A network that returns a picture's mean red, green and blue, for 67 pictures: one batch and a smaller one."""
    shapes, opened = [], []

    def network(pictures):
        shapes.append((pictures.shape, pictures.dtype))
        rows = np.zeros((len(pictures), features.LENGTH), np.float32)
        rows[:, :3] = pictures.mean(axis=(1, 2))
        return rows

    def body():
        opened.append(1)
        return network

    colours = [(3 * n + 1, 7, 200 - 2 * n) for n in range(67)]
    arrays = [np.full((4, 6, 3), colour, np.uint8) for colour in colours]
    items, calls = items_of(*arrays, arrays[5]), []
    found, computed = features.compute(items, read, cache, body, Meter(lambda *step: calls.append(step), "f", 68))
    expected = np.array([*colours, colours[5]], float)
    expected /= np.sqrt((expected**2).sum(axis=1))[:, np.newaxis]
    assert computed == 67 and found.dtype == np.float32 and calls[-1] == ("f", 68, 68)
    assert np.allclose(found[:, :3], expected, atol=2e-3) and not found[:, 3:].any()
    assert shapes == [((64, SIDE, SIDE, 3), np.uint8)] * 2, "the network is traced for one shape"
    again, computed = features.compute(items[::-1], read, cache, body, Meter(None, "f", 68))
    assert computed == 0 and len(opened) == 1 and np.array_equal(again, found[::-1])


def test_the_network_sees_the_whole_picture_and_a_changed_file_is_named():
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, :10] = (250, 0, 0)  # the left quarter
    (item,) = items_of(pixels)
    seen = features.square(item, read)
    assert seen.shape == (SIDE, SIDE, 3) and seen[:, : SIDE // 4 - 4, 0].min() == 250
    assert seen[:, SIDE // 4 + 4 :].max() == 0
    with pytest.raises(ImageError, match=r"^x\[0\]: "):
        features.square(items_of(None)[0], read)


def test_neighbours_of_few_images_and_of_equal_ones():
    rows = features.unit(np.array([[3, 4], [0, 2], [5, 0], [0, 0]], np.float32))
    assert rows.tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 1], [1, 0], [0, 0]]))
    indices, cosines = features.neighbours(rows[:3], 9, lambda done, total: None)
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1]] and cosines == pytest.approx(
        np.array([[0.8, 0.6], [0.8, 0], [0.6, 0]])
    )
    steps = []
    many = features.unit(np.random.default_rng(1).normal(size=(513, 4)).astype(np.float32))
    indices, _ = features.neighbours(many, 1, lambda *step: steps.append(step))
    assert steps == [(512, 513), (513, 513)] and not (indices[:, 0] == np.arange(513)).any()
    assert max(Counter(indices[:, 0].tolist()).values()) < 20
