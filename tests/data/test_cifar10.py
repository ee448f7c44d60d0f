"""CIFAR-10: a small archive in the official form, and pickles that want more than numbers."""

import hashlib
import io
import os
import pickle
import random
import struct
import tarfile

import numpy as np
import pytest

from edgecnn.data import cifar10, open_dataset
from edgecnn.data.cifar10 import BATCHES, read_batch
from edgecnn.errors import DatasetError, DownloadError
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def batch(pixels: np.ndarray, labels: list[int], *, kind: bytes = b"u1", fortran: bool = False) -> bytes:
    """Pickle a batch as Python 2 did: protocol 2, byte strings without a global, an old-style numpy array."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    raw = planes.tobytes("F" if fortran else "C")
    shape = b"".join(b"J" + struct.pack("<i", size) for size in planes.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + short(kind) + b"K\0K\1\x87R"
    dtype += b"(K\3" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + short(b"b") + b"\x87R"
    array += b"(K\1" + shape + dtype + (b"\x88" if fortran else b"\x89")
    array += b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    entries = short(b"batch_label") + short(b"training batch") + short(b"labels") + listed + short(b"data") + array
    return b"\x80\2}(" + entries + b"u."


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
    monkeypatch.setattr(cifar10, "BATCHES", {name: hashlib.md5(data).hexdigest() for name, data in files.items()})


def archive(monkeypatch, files, folder="cifar-10-batches-py"):
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
    with pytest.raises(DownloadError, match=r"sent something else than expected(.|\n)*Without a network: put cifar-10"):
        open_dataset(DataRecipe(source="cifar10"))
    assert list((elsewhere / "edgecnn").iterdir()) == []


def test_without_a_network(monkeypatch):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr("edgecnn.data.download.time.sleep", lambda seconds: None)
    with pytest.raises(DownloadError) as failure:
        open_dataset(DataRecipe(source="cifar10"))
    assert str(failure.value) == (
        "cannot download http://127.0.0.1:9/cifar-10-python.tar.gz: Connection refused.\n"
        "Without a network: put cifar-10-python.tar.gz (or cifar-10-batches-py/, unpacked) into a folder and set "
        "EDGECNN_DATA to that folder."
    )


def test_an_archive_that_is_another(photos, monkeypatch, tmp_path, fill):
    data = archive(monkeypatch, photos[1])
    fill(tmp_path, {cifar10.ARCHIVE: data + b"x"})
    with pytest.raises(DatasetError, match=r"cifar-10-python.tar.gz is not https://www.*: its SHA-256 is"):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (lambda files: {k: v for k, v in files.items() if k != "data_batch_3"}, "lacks data_batch_3"),
        (lambda files: files | {"data_batch_2": files["data_batch_1"]}, "data_batch_2 is not CIFAR-10's: its MD5 is"),
    ],
)
def test_incomplete_and_wrong_batches(photos, monkeypatch, tmp_path, fill, files, message):
    content = files(photos[1])
    fill(tmp_path, {cifar10.ARCHIVE: archive(monkeypatch, content)})
    with pytest.raises(DatasetError, match=message):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))
    message = message.replace("lacks data_batch_3", "data_batch_3: No such file or directory")
    with pytest.raises(DatasetError, match=message):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "unpacked", content))))


def test_an_archive_that_is_no_tar(monkeypatch, tmp_path, fill):
    for data in (b"not gzip", b"\x1f\x8b\x08\0truncated"):
        monkeypatch.setattr(cifar10, "ARCHIVE_SHA256", sha256(data))
        fill(tmp_path, {cifar10.ARCHIVE: data})
        with pytest.raises(DatasetError, match=r"cifar-10-python.tar.gz is damaged"):
            open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))


def test_members_elsewhere_in_the_archive_are_not_read(photos, monkeypatch, tmp_path, fill):
    fill(tmp_path, {cifar10.ARCHIVE: archive(monkeypatch, photos[1], folder="../cifar-10-batches-py")})
    with pytest.raises(DatasetError, match="lacks data_batch_1, data_batch_2"):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))


@pytest.mark.parametrize("fortran", [False, True])
def test_a_batch_is_read_as_numpy_reads_it(fortran):
    pixels = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)
    data = batch(pixels, [3, 1, 9], fortran=fortran)
    images, labels = read_batch(data, "batch")
    assert (images == pixels).all() and labels == [3, 1, 9]
    trusted = pickle.loads(data, encoding="bytes")[b"data"]  # the same file, read by numpy itself
    assert (trusted.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) == images).all()


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_executes_nothing(tmp_path, protocol):
    marker = tmp_path / "executed"
    for evil in (Evil(os.system, f"touch {marker}"), Evil(eval, f"open({str(marker)!r}, 'w')"), Evil(os.mkdir, marker)):
        for hostile in (evil, {b"data": evil, b"labels": [1]}, {b"data": [[evil]]}):
            data = pickle.dumps(hostile, protocol)
            with pytest.raises(DatasetError, match=r"batch is not a batch of CIFAR-10: it (asks for|holds)") as failure:
                read_batch(data, "batch")
            assert failure.value.exit_code == 5
            assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(os.mkdir, marker), protocol))
    assert marker.exists()  # the same pickle does execute where it may


def test_a_hostile_pickle_in_an_archive(photos, monkeypatch, tmp_path, fill):
    marker = tmp_path / "executed"
    files = photos[1] | {"data_batch_1": pickle.dumps(Evil(os.mkdir, str(marker)), 2)}
    pass_for_real(monkeypatch, files)
    fill(tmp_path, {cifar10.ARCHIVE: archive(monkeypatch, files)})
    with pytest.raises(DatasetError, match=r"data_batch_1 is not a batch of CIFAR-10: it asks for posix.mkdir"):
        open_dataset(DataRecipe(source=str(tmp_path / cifar10.ARCHIVE)))
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps([]),
        pickle.dumps({b"data": 1, b"labels": [1]}, 0),
        b"\x80\2}(" + short(b"data") + b"cnumpy\nndarray\n}b" + short(b"labels") + b"]u.",  # state for the class itself
        b"\x80\2cnumpy\ndtype\n)\x81.",
        b"\x80\4\x8c\2os\x8c\6system\x93.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\2\x82\1.",
        b"Pid\n.",
        b"\x80\5\x97.",
        b"\x80\5\x96\0\0\0\0\0\1\0\0.",  # a bytearray of a TiB
        b"\x80\2}r\xff\xff\xff\xff.",  # a memo of 4 billion entries
        b"(" * 100_000,
    ],
)
def test_pickles_of_another_kind(data):
    with pytest.raises(DatasetError, match=r"^batch is "):
        read_batch(data, "batch")


def test_batches_that_do_not_fit():
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    for data, message in (
        (batch(pixels, [1]), "it holds .* for 1 labels"),
        (batch(pixels, [1, 10]), "a label is not one of 0 to 9"),
        (batch(pixels, [1, 2], kind=b"O8"), "values of b'O8'"),
        (batch(pixels[:, :31], [1, 2]), "it holds"),
        (batch(pixels, [1, 2]).replace(b"T" + struct.pack("<i", 6144), b"T" + struct.pack("<i", 6143)), "batch is "),
    ):
        with pytest.raises(DatasetError, match=message):
            read_batch(data, "batch")


def test_damaged_batches_raise_nothing_else():
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    data = batch(pixels, [1])
    start = data.index(b"T" + struct.pack("<i", 3072)) + 5
    chance = random.Random(1)
    read = 0
    for _ in range(5000):
        damaged = bytearray(data)
        place = chance.randrange(start + 4)
        damaged[place if chance.random() < 0.95 else chance.randrange(start, len(data))] = chance.randrange(256)
        try:
            read_batch(bytes(damaged), "batch")
            read += 1
        except DatasetError:
            pass
    assert 0 < read < 4000
    for length in range(0, len(data), 7):
        with pytest.raises(DatasetError):
            read_batch(data[:length], "batch")
