"""CIFAR-10: a small archive in the official binary format, complete and faulty."""

import io
import tarfile

import numpy as np
import pytest

from edgecnn.data import cifar10, open_dataset
from edgecnn.data.cifar10 import BATCHES, read_batch
from edgecnn.errors import DatasetError, DownloadError
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe


def batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Return images in CIFAR-10's binary format: the class of each, then its red, green and blue planes."""
    return b"".join(
        bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(pixels, labels, strict=True)
    )


@pytest.fixture
def photos(monkeypatch):
    """A small CIFAR-10 that passes for the real one: {batch: (pixels, labels)}, and its files as {batch: bytes}."""
    pick = np.random.default_rng(1)
    arrays = {name: (pick.integers(0, 256, (20, 32, 32, 3), np.uint8), [*range(10)] * 2) for name in BATCHES}
    files = {name: batch(*content) for name, content in arrays.items()}
    pass_for_real(monkeypatch, files)
    monkeypatch.setattr("edgecnn.data.download.time.sleep", lambda seconds: None)
    return arrays, files


def pass_for_real(monkeypatch, files):
    monkeypatch.setattr(cifar10, "BATCHES", {name: sha256(data) for name, data in files.items()})


def archive(monkeypatch, files, folder="cifar-10-batches-bin"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", sha256(buffer.getvalue()))
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["archive", "unpacked", "unpacked itself"])
@pytest.mark.parametrize("by", ["name", "path"])
def test_a_local_copy(photos, monkeypatch, tmp_path, fill, form, by):
    arrays, files = photos
    if form == "archive":
        fill(tmp_path, {cifar10.ARCHIVE: archive(monkeypatch, files)})
        path = tmp_path / cifar10.ARCHIVE
    else:
        path = fill(tmp_path / cifar10.FOLDER, files)
    monkeypatch.setenv("EDGECNN_DATA", str(path if form == "unpacked itself" else tmp_path))
    dataset = open_dataset(DataRecipe(source="cifar10" if by == "name" else str(path)))
    assert (dataset.name, dataset.title, dataset.shape, dataset.mirror) == ("cifar10", "CIFAR-10", (32, 32, 3), True)
    assert dataset.labels[0] == "airplane" and dataset.labels[9] == "truck"
    assert dataset.sizes["test"] == 20 and dataset.sizes["train"] + dataset.sizes["validation"] == 100
    loaded = dataset.load(("train", "validation", "test"), height=32, width=32, channels=3, stage="verify")
    for split in loaded.values():
        for image, label, source in zip(split.images, split.classes, split.sources, strict=True):
            name, _, number = source[:-1].partition("[")
            name += ".bin"
            assert (image == arrays[name][0][int(number)]).all() and label == arrays[name][1][int(number)]
    assert {source.partition("[")[0] for source in loaded["test"].sources} == {"test_batch"}


def test_the_archive_is_downloaded_once_and_resumed(photos, monkeypatch, server, elsewhere):
    server.files = {cifar10.ARCHIVE: archive(monkeypatch, photos[1])}
    server.cuts = [5000]
    monkeypatch.setattr(cifar10, "URL", server.url + cifar10.ARCHIVE)
    for _ in range(2):
        assert open_dataset(DataRecipe(source="cifar10")).sizes["test"] == 20
    assert [wish for _, wish in server.asked] == [None, "bytes=5000-"]
    assert [path.name for path in (elsewhere / "edgecnn").iterdir()] == [cifar10.ARCHIVE]


def test_wrong_bytes_from_the_server(photos, monkeypatch, server, elsewhere):
    server.files = {cifar10.ARCHIVE: archive(monkeypatch, photos[1])[:-1] + b"!"}
    monkeypatch.setattr(cifar10, "URL", server.url + cifar10.ARCHIVE)
    with pytest.raises(DownloadError, match=r"cifar-10-binary\.tar\.gz[\s\S]*Without a network: put"):
        open_dataset(DataRecipe(source="cifar10"))
    assert list((elsewhere / "edgecnn").iterdir()) == []


def test_without_a_network(monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr("edgecnn.data.download.time.sleep", lambda seconds: None)
    with pytest.raises(DownloadError) as failure:
        open_dataset(DataRecipe(source="cifar10"))
    first, advice = str(failure.value).splitlines()
    assert "http://127.0.0.1:9/cifar-10-binary.tar.gz: Connection refused" in first
    assert advice == (
        "Without a network: put cifar-10-binary.tar.gz (or cifar-10-batches-bin/, unpacked) into a folder and set "
        "EDGECNN_DATA to that folder."
    )


def test_a_different_archive(photos, monkeypatch, tmp_path, fill):
    data = archive(monkeypatch, photos[1])
    fill(tmp_path, {cifar10.ARCHIVE: data + b"x"})
    with pytest.raises(DatasetError, match=r"cifar-10-binary.tar.gz is not https://www.*: its SHA-256 is"):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (lambda files: {k: v for k, v in files.items() if k != "data_batch_3.bin"}, "lacks data_batch_3.bin"),
        (
            lambda files: files | {"data_batch_2.bin": files["data_batch_1.bin"]},
            "data_batch_2.bin is not CIFAR-10's: its SHA-256 is",
        ),
    ],
)
def test_incomplete_and_wrong_batches(photos, monkeypatch, tmp_path, fill, files, message):
    content = files(photos[1])
    fill(tmp_path, {cifar10.ARCHIVE: archive(monkeypatch, content)})
    with pytest.raises(DatasetError, match=message):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))
    message = message.replace("lacks data_batch_3.bin", "data_batch_3.bin: No such file or directory")
    with pytest.raises(DatasetError, match=message):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "unpacked", content))))


def test_an_archive_that_is_not_a_tar(monkeypatch, tmp_path, fill):
    for data in (b"not gzip", b"\x1f\x8b\x08\0truncated"):
        monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", sha256(data))
        fill(tmp_path, {cifar10.ARCHIVE: data})
        with pytest.raises(DatasetError, match=r"cifar-10-binary.tar.gz is damaged"):
            open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))


def test_members_elsewhere_in_the_archive_are_not_read(photos, monkeypatch, tmp_path, fill):
    fill(tmp_path, {cifar10.ARCHIVE: archive(monkeypatch, photos[1], folder="../cifar-10-batches-bin")})
    with pytest.raises(DatasetError, match=r"data_batch_1\.bin, data_batch_2\.bin"):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))


def test_a_record_is_a_class_and_three_planes():
    data = bytes([3]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1023 + bytes([31])
    images, labels = read_batch(data + bytes([9]) + bytes(range(256)) * 12, "batch")
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert labels == [3, 9]
    assert (images[0, :-1] == (10, 20, 30)).all() and images[0, 31, 31].tolist() == [10, 20, 31]
    assert images[1, 0, :, 0].tolist() == list(range(32)) and images[1, 1, 0].tolist() == [32, 32, 32]


@pytest.mark.parametrize(
    "data", [b"", b"x", bytes(3072), bytes(3074), bytes(3073) + bytes([10]) + bytes(3072)], ids=len
)
def test_batches_with_another_format(data):
    with pytest.raises(DatasetError, match=r"^batch is not a batch of CIFAR-10: .*received [\d,]+ bytes"):
        read_batch(data, "batch")


def test_an_invalid_batch_is_refused_even_with_the_right_hash(photos, monkeypatch, tmp_path, fill):
    """A matching hash is no reason to trust a file's content."""
    files = photos[1] | {"data_batch_1.bin": b"\xff" * 3073}
    pass_for_real(monkeypatch, files)
    fill(tmp_path, {cifar10.ARCHIVE: archive(monkeypatch, files)})
    with pytest.raises(DatasetError, match=r"data_batch_1\.bin .*3,073"):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))
