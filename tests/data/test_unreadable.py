"""Photos that cannot be read: a few are named and left out, the same ones everywhere; more are an error."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from edgecnn import images
from edgecnn.data import open_dataset
from edgecnn.data.items import MOST_UNREADABLE
from edgecnn.errors import DatasetError, ImageTooLargeError
from edgecnn.recipe import DataRecipe

SIZE = {"height": 12, "width": 12, "channels": 3}


@pytest.fixture
def broken(picture):
    """Files that people have among their photos, by name: incomplete copies, an empty file, and a text."""
    whole = picture(7001, 60, 60, "JPEG")
    return {
        "cat/cut.jpg": whole[: len(whole) // 2],
        "cat/empty.jpg": b"",
        "dog/notes.jpg": b"Dear diary, today I photographed a dog.",
        "dog/cut.png": picture(7002, 60, 60)[:-40],
    }


@pytest.fixture
def good(pictures):
    return pictures("cat", 0, 50) | pictures("dog", 500, 50)


def opened(path, notes=None, **options):
    return open_dataset(DataRecipe(source=str(path)), note=(notes if notes is not None else []).append, **options)


def loaded(dataset, *splits, stage="verify"):
    return dataset.load(splits, **SIZE, stage=stage)


def test_a_few_are_named_and_the_same_ones_are_left_out_everywhere(tmp_path, fill, good, broken):
    folder, notes = fill(tmp_path / "pets", good | broken), []
    dataset = opened(folder, notes)
    everything = loaded(dataset, "train", "validation", "test")
    sources = {source for split in everything.values() for source in split.sources}
    assert sources == set(good), "exactly the undamaged ones"
    (line,) = notes
    assert line.startswith("pets: 4 of 104 images cannot be read: ") and line.endswith("); left out")
    for name, reason in (
        ("cat/cut.jpg", "the image is damaged: image file is truncated"),
        ("cat/empty.jpg", "the image is empty"),
        ("dog/notes.jpg", "not an image of a known format"),
        ("dog/cut.png", "the image is damaged: "),
    ):
        assert f"{name} ({reason}" in line
    recorded = {item.source: item.split for item in dataset.info({}).unreadable}
    assert set(recorded) == set(broken) and set(recorded.values()) <= {"train", "validation", "test"}

    for split in ("train", "validation", "test"):
        alone = loaded(opened(folder), split)[split]
        assert alone.sources == everything[split].sources
        assert np.array_equal(alone.images, everything[split].images)
        assert np.array_equal(alone.classes, everything[split].classes)
    loaded(dataset, "train", "validation")
    assert len(notes) == 1, "said once"


def test_the_others_keep_their_split_and_the_fingerprint_is_the_same_each_time(tmp_path, fill, good, broken):
    without = opened(fill(tmp_path / "without" / "pets", good))
    folder = fill(tmp_path / "with" / "pets", good | broken)
    one, other = opened(folder), opened(folder)
    assert (one.fingerprint, one.hashes) == (other.fingerprint, other.hashes)
    loaded(one, "train")
    assert one.fingerprint == other.fingerprint, "loading does not change the data that a resumed run compares"
    for split in ("train", "validation", "test"):
        assert loaded(without, split)[split].sources == loaded(other, split)[split].sources


def test_a_file_whose_bytes_cannot_be_read(tmp_path, fill, good):
    folder = fill(tmp_path / "pets", good)
    (folder / "dog" / "gone.png").symlink_to(tmp_path / "gone")
    dataset = opened(folder)
    (line,) = [line for line in dataset.summary() if "cannot" in line]
    assert (
        line.startswith("pets: 1 of 101 images ") and "dog/gone.png (" in line and "No such file or directory" in line
    )
    assert loaded(dataset, "train")["train"].sources and [item.split for item in dataset.unreadable] == [None]
    assert dataset.fingerprint == opened(fill(tmp_path / "same", good)).fingerprint


def test_a_damaged_member_of_a_zip(tmp_path, good, picture):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in good.items():
            archive.writestr(name, data)
    data = bytearray(path.read_bytes())
    data[data.index(good["dog/5.png"]) + 100] ^= 1
    path.write_bytes(data)
    dataset = opened(path)
    assert "1 of 100 images" in dataset.summary()[1] and "dog/5.png (" in dataset.summary()[1]
    sources = {source for split in loaded(dataset, "train", "validation", "test").values() for source in split.sources}
    assert sources == set(good) - {"dog/5.png"}


def test_comparing_models_names_them_too(edgecnn, tmp_path, fill, good, broken, root):
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.bundle.read import read_bundle

    model = read_bundle(root / "models" / "cifar10-resnet8" / "cifar10-resnet8.edgecnn").files["models/int8.tflite"]
    (tmp_path / "model.tflite").write_bytes(model)
    classes = {f"{label}/{name.replace('/', '-')}": good[name] for label in "cdefghijkl" for name in list(good)[:12]}
    folder = fill(
        tmp_path / "pets", classes | {name.replace("cat", "c").replace("dog", "d"): broken[name] for name in broken}
    )
    (folder / "c" / "gone.png").symlink_to(tmp_path / "gone")
    result = edgecnn("compare", "model.tflite", "model.tflite", "--data", "pets", "--split", "all", "--max-drop", "100")
    assert result.code == 0, result.err
    gone, damaged = (line for line in result.err.splitlines() if line.startswith("pets"))
    assert "c/gone.png" in gone and "d/cut.png" in damaged


def test_more_than_the_allowed_share_is_an_error_that_names_five(tmp_path, fill, good):
    most = int(MOST_UNREADABLE * 105)
    assert most == 5
    few = {f"cat/broken{n}.jpg": b"%d" % n for n in range(most)}
    assert loaded(opened(fill(tmp_path / "few", good | few)), "train")
    many = opened(fill(tmp_path / "many", good | few | {"dog/one-more.jpg": b"x"}))
    with pytest.raises(DatasetError) as error:
        loaded(many, "train")
    first, second = str(error.value).splitlines()
    assert first.startswith("many: 6 of 106 images cannot be read: ") and first.endswith("; and 1 more.")
    assert second == (
        "Up to 5% of the images are left out if they cannot be read; these are too many. Replace or remove them, then run again."
    )


def test_links_and_damage_count_together(tmp_path, fill, good):
    folder = fill(tmp_path / "pets", good | {f"cat/broken{n}.jpg": b"%d" % n for n in range(3)})
    for number in range(3):
        (folder / "dog" / f"gone{number}.png").symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"6 of 106 images cannot be read: dog/gone0\.png"):
        loaded(opened(folder), "train")


@pytest.mark.parametrize("count", [1, 3])
def test_a_whole_class_is_never_left_out(tmp_path, fill, good, pictures, count):
    files = good | pictures("fox", 2000, 100) | {f"owl/{n}.jpg": b"no owl %d" % n for n in range(count)}
    if count == 1:  # its hash puts it into training
        dataset = opened(fill(tmp_path / "pets", files))
        with pytest.raises(DatasetError, match=r"owl/0.jpg .*\nNo image would be left in 'owl'\. Replace or remove"):
            loaded(dataset, "train", "validation")
        return
    folder = fill(tmp_path / "pets", good | pictures("fox", 2000, 100))
    (folder / "owl").mkdir()
    for number in range(count):
        (folder / "owl" / f"{number}.png").symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"3 of 203 images .*\nNo image would be left in 'owl'\. Replace or remove"):
        opened(folder)


def test_a_whole_split_is_never_left_out(tmp_path, fill, pictures):
    files = pictures("train/cat", 0, 40) | pictures("train/dog", 500, 40) | pictures("test/cat", 900, 3)
    dataset = opened(fill(tmp_path / "pets", files | {"val/dog/0.jpg": b"no dog"}))
    with pytest.raises(DatasetError, match="No image would be left in 'validation'"):
        loaded(dataset, "train", "validation")


def test_images_that_another_machine_could_read_are_always_an_error(tmp_path, fill, good, picture, monkeypatch):
    folder = fill(tmp_path / "pets", good)
    changed = opened(folder)
    (folder / "dog" / "3.png").write_bytes(picture(12345))
    with pytest.raises(DatasetError, match=r"1 of 100 .*dog/3.png \(.*\)\.\nAn image that is"):
        loaded(changed, "train")

    def refuse(data, *args, load=images.load, **options):
        if data == good["cat/3.png"]:
            raise ImageTooLargeError("decoding it would take about 9,000 MiB; set EDGECNN_IMAGE_MIB=9000")
        return load(data, *args, **options)

    large = opened(fill(tmp_path / "large", good))
    monkeypatch.setattr(images, "load", refuse)
    with pytest.raises(DatasetError, match=r"1 of 100 .*cat/3.png \(decoding it .*\)\.\nAn image that is too large"):
        loaded(large, "train")


@pytest.mark.slow
@pytest.mark.usefixtures("blank_plots")
def test_from_training_to_the_bundle(edgecnn, tmp_path, fill, good, broken, tiny_network):
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    fill(tmp_path / "pets", good | broken)
    (tmp_path / "pets" / "cat" / "gone.jpg").symlink_to(tmp_path / "gone")
    command = ("train", "--data", "pets", "--network", tiny_network, "--epochs", 1, "--qat-epochs", 1, "--out", "run")
    trained = edgecnn(*command)
    assert trained.code == 0, trained.err
    assert "pets: 1 of 105 images cannot be read: cat/gone.jpg" in trained.err
    assert "pets: 4 of 105 images cannot be read: " in trained.err
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert {item["source"] for item in data["unreadable"]} == {*broken, "cat/gone.jpg"}
    assert edgecnn("train", "--resume", "--out", "run").code == 0
    for arguments in (("--format", "tflite", "--int8"), ("--format", "tflite", "--int16x8")):
        assert edgecnn("export", "run", *arguments).code == 0
    assert edgecnn("verify", "run", "--max-drop", "100", "--accept-conversion").code == 0
    assert edgecnn("bundle", "run", "--out", "pets.edgecnn").code == 0
    assert "; 5 unreadable files were left out" in (tmp_path / "run" / "card.md").read_text()


def test_a_run_without_unreadable_images_records_nothing(tmp_path, fill, good):
    from edgecnn.tables import to_json

    dataset = opened(fill(tmp_path / "pets", good))
    loaded(dataset, "train")
    info = dataset.info({})
    assert info.unreadable == () and "unreadable" not in to_json(info)
    assert dataclasses.replace(info, unreadable=()) == info
