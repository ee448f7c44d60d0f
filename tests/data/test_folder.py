"""Folders of images: layouts, formats, shapes, and the faults of a folder that cannot be used."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edgecnn import images
from edgecnn.data import open_dataset
from edgecnn.data.folder import open_folder
from edgecnn.errors import DatasetError
from edgecnn.recipe import DataRecipe


def sources(listing, split):
    return {item.source for item in listing.items if item.split == split}


def test_classes_without_splits(pets):
    listing = open_folder(pets)
    assert (listing.name, listing.title, listing.labels, listing.mirror) == ("pets", "pets", ("cat", "dog"), True)
    assert {item.split for item in listing.items} == {"train"} and len(listing.items) == 120
    assert {listing.labels[item.label] == item.source.split("/")[0] for item in listing.items} == {True}
    dataset = open_dataset(DataRecipe(source=str(pets)))
    assert sum(dataset.sizes.values()) == 120 and min(dataset.sizes.values()) > 0


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
@pytest.mark.parametrize("enclosing", ["", "outer/inner/"])
def test_splits_and_an_enclosing_folder(tmp_path, fill, pictures, validation, enclosing):
    files = {f"{enclosing}README.txt": b"about"}
    for number, split in enumerate(("train", validation, "test")):
        files |= pictures(f"{enclosing}{split}/cat", 1000 * number, 3)
        files |= pictures(f"{enclosing}{split}/dog", 1000 * number + 500, 3)
    listing = open_folder(fill(tmp_path / "data", files))
    assert listing.labels == ("cat", "dog")
    for folder, split in ((validation, "validation"), ("test", "test"), ("train", "train")):
        expected = {f"{enclosing}{folder}/{label}/{n}.png" for label in ("cat", "dog") for n in range(3)}
        assert sources(listing, split) == expected
    assert listing.skipped == (f"{enclosing}README.txt",)


def test_a_single_train_folder_holds_the_classes(tmp_path, fill, pictures):
    listing = open_folder(fill(tmp_path / "data", pictures("train/cat", 0, 3) | pictures("train/dog", 9, 3)))
    assert listing.labels == ("cat", "dog") and len(sources(listing, "train")) == 6


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("abstain", "'abstain' is the answer when the classifier is unsure"),
        ("cat\x1b[2J", "it contains a control character"),
        ("cat\n", "it contains a control character"),
        ("\u202etac", "changes the direction of text"),
    ],
)
def test_a_folder_whose_name_is_not_a_class_name(tmp_path, fill, pictures, name, why):
    """Reported before any training, because the bundle could not be written."""
    with pytest.raises(DatasetError) as error:
        open_folder(fill(tmp_path / "data", pictures(name, 0, 3) | pictures("dog", 9, 3)))
    text = str(error.value)
    assert f"the class folder {name!r} cannot be a class: " in text and why in text and "Rename the folder" in text
    assert all(line.isprintable() for line in text.splitlines())


def test_a_class_may_be_named_train(tmp_path, fill, pictures):
    files = pictures("train", 0, 3) | pictures("bus", 9, 3) | pictures("car", 20, 3)
    assert open_folder(fill(tmp_path / "data", files)).labels == ("bus", "car", "train")


def test_hidden_entries_are_ignored_and_other_files_are_named(tmp_path, fill, pictures, picture):
    files = pictures("cat", 0, 2) | pictures("dog", 9, 2)
    files |= {
        ".git/cat/x.png": picture(50),
        "__MACOSX/cat/x.png": picture(51),
        "cat/.hidden.png": picture(52),
        "cat/Thumbs.db": b"thumbs",
        "dog/phone.heic": b"ftypheic",
        "stray.png": picture(53),
    }
    listing = open_folder(fill(tmp_path / "data", files))
    assert len(listing.items) == 4
    assert listing.skipped == ("stray.png", "cat/Thumbs.db", "dog/phone.heic")


def test_a_class_may_be_absent_from_test(tmp_path, fill, pictures):
    files = {**pictures("train/cat", 0, 3), **pictures("train/dog", 9, 3), **pictures("test/cat", 20, 3)}
    assert open_folder(fill(tmp_path / "data", files)).labels == ("cat", "dog")


def test_every_common_format_is_listed(tmp_path, fill, picture, pictures):
    kinds = {
        ".jpe": "JPEG",
        ".jfif": "JPEG",
        ".TIFF": "TIFF",
        ".tif": "TIFF",
        ".gif": "GIF",
        ".webp": "WEBP",
        ".bmp": "BMP",
    }
    files = {f"cat/{n}{suffix}": picture(n, format=kind) for n, (suffix, kind) in enumerate(kinds.items())}
    listing = open_folder(fill(tmp_path / "data", files | pictures("dog", 50, 3)))
    assert len(listing.items) == 10 and listing.skipped == ()


def test_the_summary_names_the_smallest_and_largest_class_and_what_is_left_out(tmp_path, fill, pictures, picture):
    files = pictures("cat", 0, 55) | pictures("dog", 100, 60) | pictures("fox", 200, 40)
    files |= {"cat/a.heic": b"x", "cat/b.HEIC": b"y", "dog/notes.txt": b"z", "stray.png": picture(999)}
    dataset = open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files))))
    first, stray, others = dataset.summary()
    sizes = dataset.sizes
    assert first == (
        "pets: 155 images in 3 classes, 40 (fox) to 60 (dog) per class; "
        f"{sizes['train']} for training, {sizes['validation']} for validation, {sizes['test']} for test"
    )
    assert "left out 1 image outside" in stray and "stray.png" in stray
    assert "3 files left out (2 .heic, 1 .txt)" in others and "Convert photos among them to JPEG or PNG." in others
    names = [f"{number}.k{kind}" for kind in range(11) for number in range(13 - kind)]
    line = images.left_out(["README", *names])
    common = ", ".join(f"{13 - kind} .k{kind}" for kind in range(8))
    assert line.startswith(f"{len(names) + 1} files left out ({common} and 4 other kinds): only .jpg ")
    assert images.left_out(["README"]).startswith("1 file left out (1 without a suffix): ") and not images.left_out([])


def test_the_same_image_in_two_classes_is_reported(tmp_path, fill, pictures):
    cats = pictures("cat", 0, 40)
    twice = {path.replace("cat/", "dog/same-"): data for path, data in list(cats.items())[:10]}
    again = {"cat/again.png": cats["cat/0.png"]}  # twice in one class is not a conflict
    dataset = open_dataset(
        DataRecipe(source=str(fill(tmp_path / "pets", cats | again | pictures("dog", 100, 40) | twice)))
    )
    assert {item.source for item in dataset.conflicts} | {item.other_source for item in dataset.conflicts} >= set(twice)
    assert len(dataset.conflicts) == 10
    assert {(item.label, item.other_label) for item in dataset.conflicts} <= {("cat", "dog"), ("dog", "cat")}
    line = dataset.summary()[-1]
    assert (
        "10 images with two labels: " in line and "; and 5 more." in line and "remove it from the wrong class" in line
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/0.png", "dog/"], r"the class folder dog/ has no images: images end in .jpg .jpeg .jpe"),
        (["cat/0.png", "dog/a.heic"], r"the class folder dog/ has no images: 1 file left out (1 .heic)"),
        (
            ["train/cat/0.png", "train/dog/1.png", "train/fox/2.png", "test/cat/3.png", "test/dgo/4.png"],
            "test has classes that train does not have: 'dgo'; and train has classes that test does not have: 'dog', 'fox'.",
        ),
        (["train/cat/0.png", "train/dog/0.png", "val/dog/"], r"the class folder val/dog/ has no images"),
        (["cat/0.png", "cat/1.png"], r"has only one class, 'cat'"),
        (["train/cat/0.png", "test/cat/1.png"], r"has only one class, 'cat'"),
        ([], r"has no class folders"),
        (["0.png", "1.png"], r"has no class folders"),
        (["train/cat/0.png", "train/dog/0.png", "test/"], r"the split folder test/ has no class folders"),
        (
            ["train/cat/0.png", "train/dog/0.png", "a/0.png", "b/1.png"],
            r"train/ must contain only images, but contains the folder 'cat'",
        ),
        (
            ["cat/train/0.png", "dog/0.png", "fox/1.png"],
            r"cat/ must contain only images, but contains the folder 'train'",
        ),
        (["cat/0.png", "dog/1.png", "cat/1/2/3/4/5/6/7/8/9.png"], r"is more than 8 folders deep"),
        (["cat/"], r"the class folder cat/ has no images"),
    ],
)
def test_folders_that_are_not_datasets(tmp_path, fill, picture, names, message):
    files = {name: picture(number) if name.endswith(".png") else b"" for number, name in enumerate(names)}
    folder = fill(tmp_path / "data", {"./": b"", **files})
    with pytest.raises(DatasetError, match=re.escape(message)) as failure:
        open_folder(folder)
    assert failure.value.exit_code == 5
    assert str(folder) in str(failure.value) and len(str(failure.value).splitlines()) <= 3


def test_folders_in_a_class_folder_count_for_the_class(tmp_path, fill, pictures):
    files = pictures("cat", 0, 40) | pictures("cat/2023/may", 50, 40) | pictures("dog/2024", 100, 40)
    files |= {"cat/2023/phone.heic": b"x"}
    dataset = open_dataset(DataRecipe(source=str(fill(tmp_path / "pets", files))))
    assert dataset.labels == ("cat", "dog") and sum(dataset.sizes.values()) == 120
    _, nested, left = dataset.summary()
    assert nested == "pets: images in subfolders count for their class, such as cat/2023/may/"
    assert "1 file left out (1 .heic)" in left


def test_all_faulty_folders_are_named_together(tmp_path, fill, pictures):
    files = pictures("train/cat", 0, 3) | pictures("train/dog", 9, 3) | {"train/fox/": b"", "test/": b""}
    with pytest.raises(DatasetError, match=r"split folder test/ has no class folders[\s\S]*train/fox/ has no images"):
        open_folder(fill(tmp_path / "data", files))


def test_a_file_that_is_neither_folder_nor_zip(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DatasetError, match=r"notes\.txt"):
        open_dataset(DataRecipe(source=str(tmp_path / "notes.txt")))


def test_a_bundle_as_data_is_refused_as_a_bundle(root):
    with pytest.raises(DatasetError, match=r"bundle.*--model"):
        open_dataset(DataRecipe(source=str(next((root / "models" / "digits").glob("*.edgecnn")))))


def test_circular_links_do_not_hang(tmp_path, fill, pictures):
    folder = fill(tmp_path / "data", pictures("cat", 0, 3) | pictures("dog", 9, 3))
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "dog" / "self").symlink_to(folder / "dog")
    (folder / "round").symlink_to(folder / "round")
    os.mkfifo(folder / "cat" / "pipe.png")
    listing = open_folder(folder)
    assert listing.labels == ("cat", "dog") and len(listing.items) == 6


def test_links_are_followed_and_dangling_ones_are_unreadable_images(tmp_path, fill, pictures):
    elsewhere = fill(tmp_path / "elsewhere", pictures("cats", 0, 3))
    folder = fill(tmp_path / "data", pictures("dog", 9, 3))
    (folder / "cat").symlink_to(elsewhere / "cats")
    assert len(open_folder(folder).items) == 6
    (folder / "dog" / "gone.png").symlink_to(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"1 of 7 images .* dog/gone.png \(.*No such file"):
        open_folder(folder)


def test_names_that_are_not_utf8(tmp_path, fill, pictures, picture):
    folder = fill(tmp_path / "data", pictures("cat", 0, 3))
    os.makedirs(os.fsencode(folder) + b"/ch\xe2t")
    for name in (b"\xe9.png", b"\xe8.png"):
        with open(os.fsencode(folder) + b"/ch\xe2t/" + name, "wb") as file:
            file.write(picture(name[0]))
    listing = open_folder(folder)
    assert listing.labels == ("cat", "ch\\xe2t")
    assert {"ch\\xe2t/\\xe9.png", "ch\\xe2t/\\xe8.png"} < sources(listing, "train")
    assert all(listing.read(item) for item in listing.items)


def load_one(tmp_path, fill, pictures, name, data, *, channels=3, size=12):
    """Load one image through the folder source, as a training image of the class "cat"."""
    files = pictures("train/dog", 0, 2) | pictures("val/dog", 50, 2) | pictures("test/dog", 90, 2)
    folder = fill(tmp_path / "data", files | {f"train/cat/{name}": data})
    dataset = open_dataset(DataRecipe(source=str(folder), fit="stretch"))
    split = dataset.load(("train",), height=size, width=size, channels=channels, stage="train")["train"]
    return split.images[split.classes.tolist().index(0)]


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.webp", "a.jpg"])
def test_lossless_formats_are_exact_whatever_the_suffix_says(tmp_path, fill, pictures, encoded, name):
    pixels = np.random.default_rng(5).integers(0, 256, (12, 12, 3), np.uint8)
    format = {"bmp": "BMP", "webp": "WEBP"}.get(name[2:], "PNG")
    data = encoded(Image.fromarray(pixels), format, **({"lossless": True} if format == "WEBP" else {}))
    assert (load_one(tmp_path, fill, pictures, name, data) == pixels).all()


def test_jpeg_is_close(tmp_path, fill, pictures, encoded):
    ramp = np.repeat(np.arange(0, 240, 20, dtype=np.uint8)[:, None], 12, 1)
    loaded = load_one(tmp_path, fill, pictures, "a.jpeg", encoded(Image.fromarray(ramp), "JPEG", quality=95))
    assert np.abs(loaded.astype(int) - ramp[..., None]).max() <= 4


def test_grey_becomes_three_equal_channels_and_colour_one(tmp_path, fill, pictures, encoded):
    grey = np.random.default_rng(5).integers(0, 256, (12, 12), np.uint8)
    loaded = load_one(tmp_path, fill, pictures, "a.png", encoded(Image.fromarray(grey)))
    assert (loaded == grey[..., None]).all()
    red = encoded(Image.new("RGB", (12, 12), (255, 0, 0)))
    loaded = load_one(tmp_path / "2", fill, pictures, "a.png", red, channels=1)
    assert loaded.shape == (12, 12, 1) and (loaded == 76).all()  # Pillow's luma: 0.299 red


def test_transparency_is_laid_over_white(tmp_path, fill, pictures, encoded):
    image = Image.new("RGBA", (12, 12), (0, 0, 0, 0))
    image.putpixel((3, 2), (10, 20, 30, 255))
    loaded = load_one(tmp_path, fill, pictures, "a.png", encoded(image))
    assert loaded[2, 3].tolist() == [10, 20, 30]
    assert loaded[0, 0].tolist() == [255, 255, 255]


def test_cmyk(tmp_path, fill, pictures, encoded):
    cyan = encoded(Image.new("CMYK", (12, 12), (255, 0, 0, 0)), "JPEG", quality=100)
    red, green, blue = load_one(tmp_path, fill, pictures, "a.jpg", cyan)[6, 6].tolist()
    assert red < 10 and green > 245 and blue > 245


def test_16_bit_grey_keeps_its_upper_8_bits(tmp_path, fill, pictures, encoded):
    samples = (np.arange(144, dtype=np.uint16).reshape(12, 12) * 400) + 77
    loaded = load_one(tmp_path, fill, pictures, "a.png", encoded(Image.fromarray(samples)))
    assert (loaded == (samples >> 8).astype(np.uint8)[..., None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, fill, pictures, encoded, orientation):
    upright = np.random.default_rng(5).integers(0, 256, (12, 12, 3), np.uint8)
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(undo(upright))), "PNG", exif=exif)
    assert (load_one(tmp_path, fill, pictures, "a.png", data) == upright).all()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few kilobytes whose header claims gigabytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_001, 10_000)])
def test_a_decompression_bomb_is_reported_not_decoded(tmp_path, fill, pictures, width, height):
    with pytest.raises(DatasetError, match=r"1 of 7 images cannot be read: train/cat/a.png \(.*(claims|too large)"):
        load_one(tmp_path, fill, pictures, "a.png", bomb(width, height))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("kept", [0.5, 0.98, 20, 0])
def test_truncated_images_are_reported(tmp_path, fill, pictures, picture, format, kept):
    data = picture(3, 40, 40, format)
    data = data[: int(len(data) * kept) if isinstance(kept, float) else kept]
    with pytest.raises(DatasetError, match=r"1 of 7 images cannot be read: train/cat/a.png"):
        load_one(tmp_path, fill, pictures, "a.png", data)


def test_a_huge_file_is_not_read(tmp_path, fill, pictures, monkeypatch, picture):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2000)
    folder = fill(tmp_path / "data", pictures("cat", 0, 2) | {"dog/large.png": picture(1, 60, 60)})
    with pytest.raises(DatasetError, match=r"dog/large.png \(the file has more than 2,000 bytes\)"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("sizes", "mode", "expected"),
    [
        ([(20, 30)], "RGB", (20, 30, 3)),
        ([(20, 30)], "L", (20, 30, 1)),
        ([(224, 224)], "L", (224, 224, 1)),
        ([(225, 100)], "RGB", (96, 96, 3)),
        ([(20, 30), (30, 20)], "RGB", (96, 96, 3)),
        ([(20, 30), (30, 20)], "L", (96, 96, 1)),
    ],
)
def test_native_shape(tmp_path, fill, picture, sizes, mode, expected):
    files = {
        f"{label}/{n}.png": picture(n + 100 * (label == "dog"), *sizes[n % len(sizes)], mode=mode)
        for label in ("cat", "dog")
        for n in range(4)
    }
    assert open_folder(fill(tmp_path / "data", files)).shape == expected


def test_native_shape_of_rotated_and_mixed_images(tmp_path, fill, picture, encoded):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {f"cat/{n}.jpg": picture(n, 20, 30, "JPEG", exif=exif.tobytes()) for n in range(3)}
    upright = {f"dog/{n}.png": picture(50 + n, 30, 20) for n in range(3)}
    assert open_folder(fill(tmp_path / "turned", turned | upright)).shape == (30, 20, 3)
    mixed = {f"cat/{n}.png": picture(n, mode="L") for n in range(9)} | {"dog/0.png": picture(77)}
    assert open_folder(fill(tmp_path / "mixed", mixed)).shape == (12, 12, 3)


def test_native_shape_uses_only_training_images(tmp_path, fill, pictures):
    files = pictures("train/cat", 0, 3) | pictures("train/dog", 10, 3) | pictures("test/dog", 20, 3, height=40)
    assert open_folder(fill(tmp_path / "data", files)).shape == (12, 12, 3)


def test_no_readable_header_at_all(tmp_path, fill):
    files = {f"{label}/{n}.png": b"broken %d" % n + label.encode() for label in ("cat", "dog") for n in range(4)}
    with pytest.raises(DatasetError, match="8 of 8 images cannot be read"):
        open_folder(fill(tmp_path / "data", files))
