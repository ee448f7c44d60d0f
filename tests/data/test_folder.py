"""A user's own images: folders, zips and Frigate's folders."""

import contextlib
import io
import os
import random
import re
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecnn import images
from edgecnn.cli.recipes import resolve
from edgecnn.data import folder as archive_module
from edgecnn.data import open_dataset
from edgecnn.data.folder import open_folder
from edgecnn.errors import DatasetError, EdgeCNNError, RecipeError, UnknownNameError, UnsafeArchiveError
from edgecnn.interop import find_dataset
from edgecnn.recipe import DataRecipe, build_recipe
from edgecnn.runs import without_folders
from edgecnn.train.candidates import sides_of
from edgecnn.train.settle import images_choose, settle


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


SHARED_ZIP = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.zip"


@pytest.fixture
def pack(tmp_path):
    """Write a zip of the given members and return its path."""

    def packed(files, compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "pets.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name) if compression == zipfile.ZIP_STORED else name, data)
        return path

    return packed


@pytest.fixture
def good(pictures):
    return pictures("cat", 0, 30) | pictures("dog", 100, 30)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_with_an_enclosing_folder_and_macos_entries(pack, pictures, compression):
    files = {}
    for number, split in enumerate(("train", "test")):
        files |= pictures(f"outer/{split}/cat", 1000 * number, 20)
        files |= pictures(f"outer/{split}/dog", 1000 * number + 500, 20)
    for junk in ("__MACOSX/outer/train/cat/._0.png", "outer/.DS_Store", "outer/train/cat/.x.png"):
        files[junk] = b"junk"
    listing = open_folder(pack(files, compression))
    assert (listing.name, listing.labels, len(listing.items)) == ("pets", ("cat", "dog"), 80)
    assert {item.split for item in listing.items} == {"train", "test"}
    assert all(listing.read(item) == files[item.source] for item in listing.items)
    assert listing.skipped == ()


def test_folder_entries_and_backslashes(pack, pictures):
    files = {"cat/": b"", "dog/": b""} | pictures("cat", 0, 2)
    files |= {name.replace("/", "\\"): data for name, data in pictures("dog", 9, 2).items()}
    assert len(open_folder(pack(files)).items) == 4
    with pytest.raises(DatasetError, match="the class folder empty/ has no images"):
        open_folder(pack(files | {"empty/": b""}))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "cat/../../evil.png",
        "/etc/evil.png",
        "..\\evil.png",
        "\\evil.png",
        "C:\\evil.png",
        "c:evil.png",
        "cat/..",
    ],
)
def test_paths_that_lead_outside_are_refused(pack, good, picture, name):
    with pytest.raises(UnsafeArchiveError, match=r"points outside the archive. Nothing was read") as failure:
        open_dataset(DataRecipe(source=str(pack(good | {name: picture(1)}))))
    assert repr(name) in str(failure.value)
    assert failure.value.exit_code == 6


def lie(path: Path, name: str, size: int) -> None:
    """Change the unpacked size that the central directory claims for a member."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
    while data[place : place + 4] == b"PK\1\2":
        length, extra, comment = struct.unpack_from("<HHH", data, place + 28)
        if data[place + 46 : place + 46 + length] == name.encode():
            struct.pack_into("<I", data, place + 24, size)
        place += 46 + length + extra + comment
    path.write_bytes(data)


def test_a_member_that_claims_too_much_is_refused(pack, good):
    path = pack(good)
    lie(path, "cat/3.png", 256 * 1024 * 1024 + 1)
    with pytest.raises(UnsafeArchiveError, match=r"'cat/3.png'.*268,435,457.*268,435,456"):
        open_folder(path)


def test_members_that_claim_too_much_together_are_refused(pack, good, monkeypatch):
    path = pack(good)
    for number in range(30):
        lie(path, f"cat/{number}.png", 256 * 1024 * 1024)
        lie(path, f"dog/{number}.png", 256 * 1024 * 1024)
    open_limit = archive_module.MAX_ARCHIVE_BYTES
    assert open_limit == 60 * 2**28 + 2**30
    lie(path, "dog/29.png", 256 * 1024 * 1024)
    monkeypatch.setattr(archive_module, "MAX_ARCHIVE_BYTES", 60 * 2**28 - 1)
    with pytest.raises(
        UnsafeArchiveError, match=r"brings the total to 16,106,127,360. The limits are 268,435,456 for one and"
    ):
        open_folder(path)


def test_a_member_that_unpacks_to_more_than_it_claims_does_not_fill_the_memory(pack, good):
    path = pack(good | {"cat/bomb.png": bytes(60_000_000)})
    lie(path, "cat/bomb.png", 1000)
    tracemalloc.start()
    try:
        (item,) = open_folder(path).unreadable
        assert item.source == "cat/bomb.png" and item.reason
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_packing_is_refused(pack, good, compression):
    with pytest.raises(DatasetError, match=r"'cat/0.png' is encrypted or uses an unsupported compression method"):
        open_folder(pack(good, compression))


def test_encrypted_members_are_refused(pack, good):
    path = pack(good)
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\1\2")
    data[place + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"'cat/0.png'"):
        open_folder(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_name_is_refused(tmp_path, good, picture):
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in [*good.items(), ("cat/0.png", picture(999))]:
            archive.writestr(name, data)
    with pytest.raises(DatasetError, match=r"'cat/0.png' is in it twice"):
        open_folder(path)


def test_a_name_that_is_both_file_and_folder_is_refused(pack, good, picture):
    with pytest.raises(DatasetError, match="'cat' is both a file and a folder"):
        open_folder(pack({"cat": picture(1)} | good))
    with pytest.raises(DatasetError, match="'cat' is "):
        open_folder(pack(good | {"cat": picture(1)}))


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_zips_are_refused(pack, good, kept):
    path = pack(good)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(DatasetError, match="is not a zip file, or it is damaged"):
        open_folder(path)


def test_a_damaged_member_is_named(pack, good):
    path = pack(good, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(good["dog/5.png"]) + 100] ^= 1
    path.write_bytes(data)
    (item,) = open_folder(path).unreadable
    assert item.source == "dog/5.png" and item.reason.startswith("it is damaged in the zip: Bad CRC")


def test_random_damage_raises_nothing_else(pack, pictures):
    path = pack(pictures("cat", 0, 4) | pictures("dog", 100, 4))
    data = path.read_bytes()
    chance = random.Random(1)
    failures = 0
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 4, 40))):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(DatasetError):
            open_folder(path)
            continue
        failures += 1
    assert failures > 50


def test_random_damage_to_the_directory_raises_nothing_else(pack, pictures):
    path = pack(pictures("cat", 0, 4) | pictures("dog", 100, 4))
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    chance = random.Random(2)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[chance.randrange(start, len(data))] = chance.choice((0, 1, 255, chance.randrange(256)))
        path.write_bytes(damaged)
        with contextlib.suppress(EdgeCNNError):
            open_folder(path)


@pytest.mark.slow  # 55,000 files
def test_the_jpeg_copy_of_cifar10():
    if not SHARED_ZIP.is_file():
        pytest.skip(f"needs {SHARED_ZIP.name} in ../shared/data next to the project")
    dataset = open_dataset(DataRecipe(source=str(SHARED_ZIP)))
    assert dataset.name == "cifar10-jpeg" and dataset.shape == (32, 32, 3)
    assert dataset.labels[:3] == ("airplane", "automobile", "bird") and len(dataset.labels) == 10
    assert dataset.sizes["test"] == 5000 and sum(dataset.sizes.values()) == 55_000
    assert 4500 < dataset.sizes["validation"] < 5500
    test = dataset.load(("test",), height=32, width=32, channels=3, stage="verify")["test"]
    assert test.images.shape == (5000, 32, 32, 3) and np.bincount(test.classes).tolist() == [500] * 10
    with zipfile.ZipFile(SHARED_ZIP) as archive:
        from PIL import Image

        first = np.asarray(Image.open(io.BytesIO(archive.read(test.sources[0]))))
    assert (test.images[0] == first).all()


@pytest.fixture
def media(tmp_path, fill, pictures):
    """Frigate's media folder with one classifier, `door`; the class none has no images, and some images have no class yet."""
    dataset = "frigate/clips/door/dataset"
    files = pictures(f"{dataset}/open", 0, 30) | pictures(f"{dataset}/closed", 100, 30)
    files |= {f"{dataset}/none/": b"", "frigate/clips/door/train/1-2-none-0.5.webp": b"x", "frigate/recordings/": b""}
    files |= {"frigate/clips/door/.training_metadata.json": b"{}", "frigate/clips/previews/front/": b""}
    return fill(tmp_path / "media", files)


def recipe_of(path, **data):
    return build_recipe({"data": {"source": f"frigate:{path}", **data}})


@pytest.mark.parametrize("below", ["", "frigate", "frigate/clips", "frigate/clips/door", "frigate/clips/door/dataset"])
def test_every_folder_that_leads_to_the_dataset_is_accepted(media, below):
    dataset = open_dataset(recipe_of(media / below).data)
    assert (dataset.name, dataset.labels, dataset.shape) == ("door", ("closed", "open"), (224, 224, 3))
    assert sum(dataset.sizes.values()) == 60 and min(dataset.sizes.values()) > 0


def test_a_dataset_that_was_copied_away(media, tmp_path):
    copy = tmp_path / "doors"
    (media / "frigate/clips/door/dataset").rename(copy)
    assert open_dataset(recipe_of(copy).data).name == "doors"


def test_classes_of_frigates_own_folder_names(tmp_path, fill, pictures):
    files = pictures("x/dataset/clips", 0, 20) | pictures("x/dataset/dataset", 100, 20)
    assert open_dataset(recipe_of(fill(tmp_path, files) / "x/dataset").data).labels == ("clips", "dataset")


def test_none_is_a_class_if_it_has_images(media, fill, pictures):
    fill(media, pictures("frigate/clips/door/dataset/none", 200, 30))
    assert open_dataset(recipe_of(media).data).labels == ("closed", "none", "open")


def test_another_class_without_images_is_an_error(media, fill):
    fill(media, {"frigate/clips/door/dataset/ajar/": b""})
    with pytest.raises(DatasetError, match=r"the class folder ajar/ has no images"):
        open_dataset(recipe_of(media).data)


def test_several_classifiers_are_named(media, fill, pictures):
    fill(media, pictures("frigate/clips/cat/dataset/leo", 300, 3))
    with pytest.raises(DatasetError, match=r"2 classifiers: cat, door\. Name one, such as frigate:.*clips/cat"):
        open_dataset(recipe_of(media).data)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["clips/"], "expected NAME/dataset/CLASS"),
        (["clips/previews/front/a.webp"], "expected NAME/dataset/CLASS"),
        (["a.png"], "expected NAME/dataset/CLASS"),
        (["clips/door/dataset/"], "has no class folders"),
        (["clips/door/dataset/", "clips/door/train/a.webp"], "has no class folders"),
        (["clips/door/dataset/open/a.png"], "has only one class, 'open'"),
    ],
)
def test_missing_parts_are_named(tmp_path, fill, picture, files, message):
    fill(tmp_path / "media", {name: picture(1) for name in files})
    with pytest.raises(DatasetError, match=message):
        open_dataset(recipe_of(tmp_path / "media").data)


def test_a_file_or_no_folder_at_all(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match="is not a folder"):
        find_dataset(tmp_path / "file")
    with pytest.raises(UnknownNameError, match=r"expected a folder of frigate"):
        open_dataset(recipe_of(tmp_path / "nowhere").data)


def test_the_input_is_frigates_but_the_images_choose_the_network(media):
    source = f"frigate:{media}"
    dataset = open_dataset(recipe_of(media).data)
    small = "efficientnet_lite0_270kb"
    for stated, expected in (({}, "efficientnet_lite0_1200kb"), ({"name": small}, small)):
        recipe = settle(build_recipe({"data": {"source": source}, "network": stated}), dataset)
        network = recipe.network
        assert (recipe.data.fit, network.height, network.width, network.channels) == ("stretch", 224, 224, 3)
        assert network.name == expected
    left_open = build_recipe({"data": {"source": source}})
    assert images_choose(left_open, dataset)
    assert sides_of("efficientnet_lite2", left_open.network) == ((224, 224),), "only the cut of the network is chosen"


def test_a_recipe_overrides_frigates_input(media):
    assert recipe_of(media, fit="crop").data.fit == "crop"
    assert build_recipe({"data": {"source": f"frigate:{media}"}, "network": {"width": 96}}).network.width == 96
    assert build_recipe({"data": {"source": str(media)}}).data.fit == "crop"
    with pytest.raises(RecipeError, match="data"):
        build_recipe({"data": "frigate:x"})


def test_a_run_to_start_from_does_not_change_frigates_input(media, finished_run):
    network = resolve(None, None, {"data.source": f"frigate:{media}", "init.source": str(finished_run.path)}).network
    assert (network.name, network.height, network.width, network.channels) == ("article", 224, 224, 3)


def test_a_run_keeps_the_full_path_and_a_bundle_omits_it(media, monkeypatch):
    monkeypatch.chdir(media.parent)
    recipe = resolve(None, None, {"data.source": "frigate:media/frigate/clips/door"})
    assert recipe.data.source == f"frigate:{media.resolve()}/frigate/clips/door"
    assert without_folders(recipe).data.source == "frigate:door"


@pytest.mark.slow
def test_the_command_line_reads_it(edgecnn, media, tiny_network):
    result = edgecnn("train", "--data", f"frigate:{media}", "--network", tiny_network, "--dry-run")
    assert result.code == 0, result.err
    assert "input (224, 224, 3), 2 classes" in result.out
