"""Zips of images: read without unpacking, and refused if hostile or damaged."""

import contextlib
import io
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgecnn.data import archive as archive_module
from edgecnn.data import open_dataset
from edgecnn.data.folder import open_folder
from edgecnn.errors import DatasetError, EdgeCNNError, UnsafeArchiveError
from edgecnn.recipe import DataRecipe

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
