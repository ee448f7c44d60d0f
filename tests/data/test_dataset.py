"""Loading: sizes, order, duplicates across splits, the test split's lock, and the source that a name refers to."""

import zipfile
from collections import Counter

import numpy as np
import pytest

from edgecnn import images
from edgecnn.data import DATASETS, Duplicate, open_dataset
from edgecnn.errors import DatasetError, ImageError, OutputError, SplitError, UnknownNameError
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe

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


def test_unreadable_images_are_counted_and_five_are_named(split_pets, fill, picture):
    fill(split_pets, {f"train/dog/broken{n}.png": picture(300 + n)[:-40] for n in range(6)})
    fill(split_pets, {"test/cat/notes.jpg": b"not an image"})
    dataset = open_dataset(DataRecipe(source=str(split_pets)))
    with pytest.raises(DatasetError) as failure:
        dataset.load(("train",), **SIZE, stage="train")
    text = str(failure.value)
    assert text.startswith("pets: 7 of 39 images cannot be read: test/cat/notes.jpg (")
    assert text.count("broken") == 4 and "; and 2 more.\n" in text
    assert failure.value.exit_code == 5


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
    monkeypatch.setattr("edgecnn.data.arrays.available_bytes", lambda: None)  # as on macOS
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
