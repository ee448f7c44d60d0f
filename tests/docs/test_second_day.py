"""The page on the second day works: its first commands run in order, with photos in front of a camera that is a program."""

import argparse
import importlib
import shutil

import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

TINY = "--network resnet_25kb --size 32 --epochs 1 --qat-epochs 1 --set init.source=random"
CLASSES, EACH = ("blue", "green", "red"), 12


@pytest.mark.slow
def test_the_whole_day_from_a_few_photos_to_the_next_model_in_a_slot(root, photos, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    bench = importlib.import_module("second_day")
    for path in photos.glob("*/*.png"):
        jpeg = tmp_path / "colours" / path.parent.name / f"{path.stem}.jpg"
        jpeg.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((64, 48)).save(jpeg)
    archive = shutil.make_archive(str(tmp_path / "colours"), "zip", tmp_path, "colours")
    given = argparse.Namespace(
        data=archive, each=EACH, stream=60, hold=0.3, keep_unsure=6_000, keep_random=10_000, train=TINY
    )
    made = bench.day(given, tmp_path, 1)
    labelled = made["labelled"]
    assert sum(made["kept"].values()) >= labelled >= 5 and set(made["kept"]) <= {"unsure", "stranger", "random"}
    assert labelled == made["pictures"], "each picture is answered exactly once"
    assert sum(1 for _ in (tmp_path / "photos").glob("*/*")) == len(CLASSES) * EACH + labelled
    assert made["verdict"] in ("passed", "refused"), "a dozen test photos are enough for a verdict"
    assert made["serial_in_use"] == 1, "the new model is in use, with a reason if it was refused"
    assert made["n"] == 180 - len(CLASSES) * EACH - 60
