"""`edgecnn train --dry-run` estimates the cost of training, and writes nothing."""

import json

import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import DatasetError
from edgecnn.networks import build_network
from edgecnn.networks.describe import describe


@pytest.mark.slow
def test_the_estimate_is_for_the_recipe(edgecnn, tmp_path):
    settings = ("--network", "article", "--epochs", "7", "--qat-epochs", "3", "--batch-size", "100")
    result = edgecnn("train", "--dry-run", "--json", "--data", "digits", *settings)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    cost = describe(build_network("article", 8, 8, 1, 10))
    assert (found["parameters"], found["macs"], found["int8_bytes"]) == (cost.parameters, cost.macs, cost.int8_bytes)
    assert [(phase["phase"], phase["epochs"]) for phase in found["phases"]] == [("float", 7), ("qat", 3)]
    for phase in found["phases"]:
        size = 100 if phase["phase"] == "float" else 128
        assert phase["steps"] == found["images"]["train"] // size
        assert phase["total_s"] == pytest.approx(phase["epochs"] * phase["steps"] * phase["step_s"])
        assert phase["images_per_s"] == pytest.approx(size / phase["step_s"])
    assert found["seconds"] == pytest.approx(sum(phase["total_s"] for phase in found["phases"]))
    # model and optimizer: Adam keeps two values per trained weight
    assert 4 * 2.9 * cost.parameters < found["checkpoint_bytes"] < 4 * 3.1 * cost.parameters
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_is_printed_with_units_and_how_the_images_are_divided(edgecnn, tmp_path):
    result = edgecnn("train", "--dry-run", "--data", "digits", "--set", "train.precision=bfloat16")
    assert result.code == 0, result.err
    assert "digits: 1,797 images in 10 classes, " in result.err and " for validation" in result.err
    assert "to decode the images" in result.out
    assert "parameters" in result.out and "MACs" in result.out and "bytes as int8" in result.out
    assert "images/s" in result.out and "in total" in result.out
    assert list(tmp_path.iterdir()) == []


def test_it_does_not_resume(edgecnn):
    assert edgecnn("train", "--dry-run", "--resume").code == 2


def test_it_refuses_the_photos_that_training_refuses(edgecnn, tmp_path):
    for label, level in (("cat", 0), ("dog", 100)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(40):
            Image.new("RGB", (12, 12), (level, number, 7)).save(tmp_path / "photos" / label / f"{number}.png")
    whole = tmp_path / "photos" / "cat" / "0.png"
    for number in range(6):
        (whole.parent / f"broken{number}.png").write_bytes(whole.read_bytes()[: 50 + number])
    dry, real = (edgecnn("train", "--data", "photos", *flags) for flags in (("--dry-run",), ()))
    assert dry.code == real.code == DatasetError.exit_code
    assert dry.err[dry.err.index("edgecnn: error") :] == real.err[real.err.index("edgecnn: error") :]
    assert "6 of 86 images cannot be read" in dry.err and "cat/broken" in dry.err
