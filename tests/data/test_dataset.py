"""A dataset: divided, decoded, with damaged images left out, and recorded."""

import dataclasses
import json
import os
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from edgecnn import images
from edgecnn.bundle.file import read_bundle
from edgecnn.data import DATASETS, Duplicate, items, open_dataset, open_run_dataset
from edgecnn.data.dataset import require_split, write_known
from edgecnn.data.decoding import Split, balanced, some
from edgecnn.data.items import MOST_UNREADABLE, Meter, array_items, too_many, unreadable_text
from edgecnn.errors import (
    DatasetError,
    ImageError,
    ImageTooLargeError,
    OutputError,
    RunError,
    SplitError,
    UnknownNameError,
)
from edgecnn.evaluate.answers import images_csv, recorded_data
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe, build_recipe
from edgecnn.run_info import InputSize, RunInfo, Unreadable
from edgecnn.runs import IMAGES, create_run
from edgecnn.tables import to_json

SIZE = {"height": 12, "width": 12, "channels": 3}


@pytest.fixture
def split_pets(tmp_path, fill, pictures):
    """A folder with its own splits: 8, 4 and 4 images per class."""
    files = {}
    for number, label in enumerate(("cat", "dog")):
        for start, split, count in ((0, "train", 8), (20, "val", 4), (40, "test", 4)):
            files |= pictures(f"{split}/{label}", 1000 * number + start, count)
    return fill(tmp_path / "pets", files)


def test_a_picture_that_changed_is_named(split_pets, picture):
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    first, second = dataset.load(("test",), **SIZE, stage="verify")["test"].sources[:2]
    (split_pets / second).write_bytes(picture(4711, 30, 30))
    found = dataset.pictures("test", (first, second), channels=3, least=(0, 0), stage="stress")
    assert next(found).shape[2] == 3
    with pytest.raises(ImageError, match=second):
        next(found)


def test_the_pixels_come_from_the_shared_preprocessing(split_pets):
    dataset = open_dataset(DataRecipe(source=str(split_pets), fit="letterbox"))
    loaded = dataset.load(("train", "validation"), height=7, width=9, channels=1, stage="train")
    assert dataset.sizes == {"train": 16, "validation": 8, "test": 8}
    assert list(loaded) == ["train", "validation"]
    for split in loaded.values():
        assert split.images.dtype == np.uint8 and split.images.shape == (len(split.sources), 7, 9, 1)
        assert split.classes.dtype == np.int64 and split.classes.shape == (len(split.sources),)
        for image, label, source in zip(split.images, split.classes, split.sources, strict=True):
            data = (split_pets / source).read_bytes()
            assert (image == images.load(data, 7, 9, 1, "letterbox")).all()
            assert source.split("/")[1] == dataset.labels[label]
        hashes = [sha256((split_pets / source).read_bytes()) for source in split.sources]
        assert hashes == sorted(hashes)


def test_an_image_is_decoded_once_whatever_the_stages_load(split_pets):
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    read, counted = dataset.read, Counter()
    dataset.read = lambda item: counted.update([item.source]) or read(item)
    first = dataset.load(("train", "validation"), **SIZE, stage="train")
    again = dataset.load(("validation",), **SIZE, stage="choose")
    test = dataset.load(("test",), **SIZE, stage="verify")["test"]
    assert again["validation"] is first["validation"] and len(test.sources) == 8
    assert len(counted) == 32 and set(counted.values()) == {1}
    other = dataset.load(("test",), **SIZE, stage="verify", other_resize=lambda image: np.zeros((12, 12, 3), np.uint8))
    assert not other["test"].images.any() and test.images.any(), "another program's resize is kept apart"
    assert dataset.load(("test",), **SIZE, stage="verify")["test"] is test, "and is not what the next stage gets"


def test_the_same_images_divided_anew_are_decoded_anew(split_pets):
    """As each fold does; a fold that got the images of another one would train on those that test it."""
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    dataset.load(("train", "validation", "test"), **SIZE, stage="verify")
    swapped = {"train": "test", "test": "train", "validation": "validation"}
    other = dataset.redivided({item.hash: swapped[split] for split, part in dataset.items.items() for item in part})
    for split, loaded in other.load(("train", "validation", "test"), **SIZE, stage="verify").items():
        assert set(loaded.sources) == {item.source for item in dataset.items[swapped[split]]}


def test_only_verify_gets_test_images(split_pets):
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    for stage in ("train", "export", ""):
        with pytest.raises(SplitError, match=f"the stage {stage!r} requested test images") as failure:
            dataset.load(("validation", "test"), **SIZE, stage=stage)
        assert failure.value.exit_code == 21
    loaded = dataset.load(("test",), **SIZE, stage="verify")
    assert {source.split("/")[0] for source in loaded["test"].sources} == {"test"}
    with pytest.raises(UnknownNameError, match=r"'val' is not a split. Did you mean 'validation'"):
        dataset.load(("val",), **SIZE, stage="train")


def test_duplicates_across_splits_are_reported_and_kept_out(split_pets, fill, picture, encoded):
    test_image, validation_image = picture(40), picture(1020)
    as_bmp = encoded(images.decode(validation_image), "BMP")  # the same pixels in another file
    fill(
        split_pets,
        {
            "val/cat/copy of test.png": test_image,
            "train/cat/copy of test.png": test_image,
            "train/dog/copy of validation.bmp": as_bmp,
            "train/cat/twin a.png": picture(5000),
            "train/cat/twin b.bmp": encoded(images.decode(picture(5000)), "BMP"),
        },
    )
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    assert dataset.sizes == {"train": 20, "validation": 9, "test": 8}
    assert dataset.duplicates == ()
    loaded = dataset.load(("train", "validation"), **SIZE, stage="train")
    expected = {
        Duplicate(source="val/cat/copy of test.png", split="validation", of_source="test/cat/0.png", of_split="test"),
        Duplicate(source="train/cat/copy of test.png", split="train", of_source="test/cat/0.png", of_split="test"),
        Duplicate(
            source="train/dog/copy of validation.bmp",
            split="train",
            of_source="val/dog/0.png",
            of_split="validation",
        ),
    }
    assert set(dataset.duplicates) == expected and len(dataset.duplicates) == 3
    kept = set(loaded["train"].sources) | set(loaded["validation"].sources)
    assert not kept & {duplicate.source for duplicate in expected}
    assert len(loaded["train"].sources) == len(loaded["train"].images) == 18
    assert {"train/cat/twin a.png", "train/cat/twin b.bmp"} < kept  # within one split, both stay
    alone = dataset.load(("validation",), **SIZE, stage="export")["validation"]
    assert alone.sources == loaded["validation"].sources
    assert (alone.images == loaded["validation"].images).all()
    assert len(dataset.load(("test",), **SIZE, stage="verify")["test"].images) == 8


def test_images_that_become_equal_at_the_models_size_are_duplicates(split_pets, fill, encoded):
    from PIL import Image

    flat = Image.new("RGB", (40, 40), (90, 10, 200))
    fill(split_pets, {"train/cat/large.png": encoded(flat), "test/cat/small.png": encoded(flat.resize((20, 20)))})
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    dataset.load(("train",), **SIZE, stage="train")
    assert [duplicate.source for duplicate in dataset.duplicates] == ["train/cat/large.png"]


def test_a_class_whose_training_images_are_all_duplicates_is_an_error(tmp_path, fill, pictures):
    files = pictures("train/cat", 0, 5) | pictures("train/dog", 50, 5)
    files |= pictures("test/dog", 50, 5) | pictures("val/cat", 90, 3)
    dataset = open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files))))
    with pytest.raises(DatasetError, match="'dog'"):
        dataset.load(("train",), **SIZE, stage="train")


def test_validation_images_that_are_all_test_images_too_are_an_error(tmp_path, fill, pictures):
    files = pictures("train/cat", 0, 5) | pictures("train/dog", 50, 5)
    files |= pictures("test/cat", 90, 3) | pictures("val/cat", 90, 3)
    dataset = open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files))))
    with pytest.raises(DatasetError, match="none of the 3 validation images is left"):
        dataset.load(("train", "validation"), **SIZE, stage="train")


def test_a_file_that_changes_after_listing_is_noticed(split_pets, picture):
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    (split_pets / "train/dog/3.png").write_bytes(picture(12345))
    (split_pets / "train/dog/4.png").unlink()
    with pytest.raises(DatasetError, match="2 of 32 images") as failure:
        dataset.load(("train",), **SIZE, stage="train")
    assert "train/dog/3.png (it changed after it was listed)" in str(failure.value)
    assert "train/dog/4.png (" in str(failure.value) and "No such file or directory)" in str(failure.value)


def test_more_pixels_than_memory_and_disk_are_an_error(split_pets, monkeypatch):
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    dataset.sizes["train"] = 10**12
    with pytest.raises(OutputError, match=r"1,000,000,000,016 images of 12x12x3 take 402,331.4 GiB, more than 25% of"):
        dataset.load(("train",), **SIZE, stage="train")
    monkeypatch.setattr("edgecnn.data.decoding.available_bytes", lambda: None)  # as on macOS
    with pytest.raises(DatasetError, match=r"take 402,331.4 GiB, more than this machine has"):
        dataset.load(("train",), **SIZE, stage="train")


def test_progress_counts_images(split_pets, monkeypatch):
    monkeypatch.setattr("edgecnn.data.items.PROGRESS_S", 0.0)
    calls = []
    dataset = open_dataset(DataRecipe(source=str(split_pets)), progress=lambda *call: calls.append(call))
    assert calls == [("reading pets", number, 32) for number in range(1, 33)]
    calls.clear()
    dataset.load(("validation",), **SIZE, stage="train", progress=lambda *call: calls.append(call))
    assert calls == [("decoding pets", number, 16) for number in range(1, 17)]


def test_titles(split_pets):
    assert open_dataset(DataRecipe(source=str(split_pets))).title == "pets"
    assert open_dataset(DataRecipe(source=str(split_pets), title="My pets")).title == "My pets"


def test_paths_below_the_data_folder(split_pets, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGECNN_DATA", str(tmp_path))
    monkeypatch.chdir("/")
    assert open_dataset(DataRecipe(source="pets")).sizes["train"] == 16


@pytest.mark.parametrize(
    ("source", "hint"),
    [("digit", "Did you mean 'digits'?"), ("fashion_mnist", "Did you mean 'fashion-mnist'?"), ("", "Known: cifar10")],
)
def test_unknown_names(source, hint):
    with pytest.raises(UnknownNameError) as failure:
        open_dataset(DataRecipe(source=source))
    assert str(failure.value).startswith(f"{source!r} is neither a dataset's name nor a folder or zip of images here")
    assert hint in str(failure.value) and "EDGECNN_DATA" in str(failure.value)
    assert failure.value.exit_code == 3


def test_a_missing_data_folder_is_an_error(monkeypatch):
    monkeypatch.setenv("EDGECNN_DATA", "/no/such/folder")
    with pytest.raises(DatasetError, match="EDGECNN_DATA is '/no/such/folder', which is not a folder"):
        open_dataset(DataRecipe(source="elsewhere"))


def test_every_named_dataset_is_described():
    assert list(DATASETS) == ["cifar10", "fashion-mnist", "digits"]
    for function in DATASETS.values():
        assert "classes" in function.__doc__.splitlines()[0]


def test_the_same_images_as_folder_and_as_zip(split_pets, tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in split_pets.rglob("*.png"):
            archive.write(path, path.relative_to(split_pets))
    folder = open_dataset(DataRecipe(source=str(split_pets)))
    packed = open_dataset(DataRecipe(source=str(tmp_path / "pets.zip")))
    assert (packed.name, packed.fingerprint, packed.hashes) == ("pets", folder.fingerprint, folder.hashes)
    assert packed.shape == folder.shape == (12, 12, 3) and packed.mirror
    one, other = (dataset.load(("train",), **SIZE, stage="train")["train"] for dataset in (folder, packed))
    assert (one.images == other.images).all() and one.sources == other.sources


def test_the_same_images_at_another_size(split_pets):
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    train = dataset.load(("train",), height=8, width=10, channels=3, stage="train")["train"]
    same = dataset.at_size("train", train.sources, (8, 10, 3), stage="train")
    assert np.array_equal(same, train.images)
    seen = []
    backwards = dataset.at_size(
        "train", train.sources[::-1], (16, 12, 3), stage="train", progress=lambda *work: seen.append(work)
    )
    assert backwards.shape == (len(train.classes), 16, 12, 3) and backwards.dtype == np.uint8
    one = dataset.at_size("train", train.sources[:1], (16, 12, 3), stage="train")
    assert np.array_equal(backwards[-1], one[0])
    assert seen[-1][1:] == (len(train.classes), len(train.classes)) and "12x16" in seen[-1][0]
    with pytest.raises(SplitError):
        dataset.at_size("test", ("any",), (8, 10, 3), stage="train")


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
    from edgecnn.bundle.file import read_bundle

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


def broken_items(count):
    return [Unreadable(source=f"{n}.jpg", split="train", reason=f"cut {n}") for n in range(count)]


def test_one_image_in_twenty_may_be_unreadable_and_five_are_named():
    assert [too_many(broken_items(count), 60) for count in (0, 3, 4)] == [False, False, True]
    one, five, seven = (unreadable_text(broken_items(count), 1200) for count in (1, 5, 7))
    assert one == "1 of 1,200 images cannot be read: 0.jpg (cut 0)"
    assert five.endswith("3.jpg (cut 3); 4.jpg (cut 4)") and "more" not in five
    assert seven.startswith("7 of 1,200 images") and seven.endswith("4.jpg (cut 4); and 2 more")


def test_progress_is_shown_at_once_ten_times_a_second_and_at_the_end(monkeypatch):
    now, steps = [50.0], []
    monkeypatch.setattr(items.time, "monotonic", lambda: now[0])
    meter = Meter(lambda *step: steps.append(step), "reading", 9)
    for moment, amount in ((50.0, 1), (50.05, 2), (50.125, 1), (50.2, 1), (50.25, 3), (50.26, 1)):
        now[0] = moment
        meter.advance(amount)
    assert steps == [("reading", 1, 9), ("reading", 4, 9), ("reading", 8, 9), ("reading", 9, 9)]


def test_images_of_an_array_are_numbered_and_hashed_one_by_one():
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)
    first, second = array_items("test", "x", pixels, np.array([4, 1]))
    assert (first.source, first.label, second.source, second.label) == ("x[0]", 4, "x[1]", 1)
    assert first.split == "test" and first.hash != second.hash and np.array_equal(second.handle, pixels[1])
    with pytest.raises(ValueError):
        list(array_items("test", "x", pixels, [1]))


def test_as_many_of_each_class_are_drawn_while_they_last():
    """Three, nine and five images; drawn are 1 to 17."""
    classes = np.array([0, 1, 1, 2, 1, 0, 2, 1, 1, 2, 1, 1, 2, 0, 1, 2, 1])
    for count, expected in {
        3: [1, 1, 1],
        7: [3, 2, 2],
        9: [3, 3, 3],
        11: [3, 4, 4],
        15: [3, 7, 5],
        40: [3, 9, 5],
    }.items():
        drawn = balanced(classes, count, 1)
        assert len(set(drawn.tolist())) == min(count, 17)
        assert sorted(np.bincount(classes[drawn], minlength=3)) == sorted(expected), count
    assert classes[balanced(classes, 9, 2)].tolist() == [0, 1, 2] * 3, "interleaved"
    assert balanced(classes, 9, 1).tolist() != balanced(classes, 9, 2).tolist()
    whole = Split(images=np.arange(17), classes=classes, sources=tuple(map(str, range(17))))
    part = some(whole, 6, 1)
    assert part.images.tolist() == sorted(balanced(classes, 6, 1).tolist()) == [int(one) for one in part.sources]
    assert part.classes.tolist() == classes[part.images].tolist()


SPLITS = ("train", "validation", "test")


@pytest.fixture
def run(pets, tmp_path):
    """A run on the folder of pets as it was when training began."""
    recipe = build_recipe({"data": {"source": str(pets)}})
    run, dataset = create_run(recipe, tmp_path / "run"), open_dataset(recipe.data)
    size = InputSize(height=12, width=12, channels=3)
    run.write_info(RunInfo(state="trained", data=dataset.info({}), input=size, parameters=1, versions={}))
    write_known(run, dataset)
    return run


def grow(pets, fill, picture):
    """Add photos of both classes, a copy, and a new class that sorts first; all are newer than the others."""
    names = [f"{label}/new{number}.png" for label in ("aardvark", "cat", "dog") for number in range(20)]
    fill(pets, {name: picture(9000 + number) for number, name in enumerate(names)})
    fill(pets, {"cat/copy.png": (pets / "cat" / "0.png").read_bytes()})
    for path in pets.glob("*/new*.png"):
        os.utime(path, (path.stat().st_mtime + 60,) * 2)
    later = (pets / "cat" / "copy.png").stat().st_mtime + 90
    os.utime(pets / "cat" / "copy.png", (later, later))


def test_added_photos_do_not_lock_a_run(run, pets, fill, picture):
    before = open_run_dataset(run).load(SPLITS, height=12, width=12, channels=3, stage="verify")
    grow(pets, fill, picture)
    notes = []
    dataset = open_run_dataset(run, note=notes.append)
    for split in SPLITS:
        require_split(run, dataset, split)
    after = dataset.load(SPLITS, height=12, width=12, channels=3, stage="verify")
    assert dataset.labels == run.info.data.labels == ("cat", "dog") and dataset.fingerprint == run.info.data.fingerprint
    for split in SPLITS:
        assert (after[split].images == before[split].images).all()
        assert (after[split].classes == before[split].classes).all()
    assert notes == ["pets: left out 61 images added after training began"]


def test_a_bundle_finds_its_test_photos_among_added_ones_by_its_list(run, pets, fill, picture, root):
    info, quiet = run.info.data, (lambda *state: None, lambda text: None)
    shipped = read_bundle(root / "models" / "digits" / "digits.edgecnn")
    provenance = {"recipe": {"data": {"source": str(pets)}}, "data": to_json(info)}
    manifest = replace(shipped.manifest, labels=info.labels, provenance=provenance)
    bundle = replace(shipped, manifest=manifest, files={IMAGES: images_csv(run)})
    fill(
        pets,
        {f"{label}/new{number}.png": picture(9000 + number) for label in ("aardvark", "cat") for number in range(20)},
    )
    assert recorded_data(bundle, None, "test", *quiet).hashes["test"] == info.split_hashes["test"]
    with pytest.raises(DatasetError, match="verified with other test images than pets"):
        recorded_data(replace(bundle, files={}), None, "test", *quiet)


def test_a_photo_stays_in_its_split_if_the_user_divides_them_later(run, pets):
    (pets / "train").mkdir()
    for label in ("cat", "dog"):
        (pets / label).rename(pets / "train" / label)
        (pets / "test" / label).mkdir(parents=True)
        os.link(pets / "train" / label / "0.png", pets / "test" / label / "0.png")
        (pets / "train" / label / "0.png").unlink()
    dataset = open_run_dataset(run)
    for split in SPLITS:
        require_split(run, dataset, split)


def test_a_photo_that_was_moved_and_copied_counts_once(run, pets):
    one = open_run_dataset(run).items["train"][0]
    (pets / "train").mkdir()
    for label in ("cat", "dog"):
        (pets / label).rename(pets / "train" / label)
    label, _, name = one.source.partition("/")
    (pets / "test" / label).mkdir(parents=True)
    (pets / "train" / label / name).rename(pets / "test" / label / name)
    (pets / "test" / label / "copy.png").write_bytes((pets / "test" / label / name).read_bytes())
    dataset = open_run_dataset(run)
    assert [item.hash for item in dataset.items["train"]].count(one.hash) == 1
    require_split(run, dataset, "train")


def test_a_missing_photo_is_named(run, pets, picture):
    dataset = open_run_dataset(run)
    (gone, *_), changed = dataset.items["test"], dataset.items["train"][0]
    (pets / gone.source).unlink()
    (pets / changed.source).write_bytes(picture(4242))
    dataset = open_run_dataset(run)
    count = run.info.data.split_sizes["test"]
    with pytest.raises(
        RunError, match=f"pets lacks .* 1 of the {count} test images that .*run began with: {gone.source}"
    ):
        require_split(run, dataset, "test")
    with pytest.raises(RunError, match=f"train images .*: {changed.source}"):
        require_split(run, dataset, "train")
    require_split(run, dataset, "validation")
    run.file(IMAGES).unlink()
    with pytest.raises(RunError, match=f"it had {count} images, now it has {count - 1}"):
        require_split(run, open_run_dataset(run), "test")
