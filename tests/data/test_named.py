"""The named datasets and their downloads."""

import errno
import functools
import gzip
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from edgecnn.data import named, open_dataset
from edgecnn.data.named import BATCHES, download
from edgecnn.errors import DatasetError, DownloadError, OutputError
from edgecnn.files import sha256
from edgecnn.recipe import DataRecipe


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def clothes(monkeypatch, tmp_path):
    """A small Fashion-MNIST that passes for the real one, as {name: unpacked bytes}; no copy is installed."""
    pick = np.random.default_rng(1)
    files = {
        "train-images-idx3-ubyte": idx(pick.integers(0, 256, (200, 28, 28), np.uint8)),
        "train-labels-idx1-ubyte": idx(np.arange(200, dtype=np.uint8) % 10),
        "t10k-images-idx3-ubyte": idx(pick.integers(0, 256, (50, 28, 28), np.uint8)),
        "t10k-labels-idx1-ubyte": idx(np.arange(50, dtype=np.uint8) % 10),
    }
    monkeypatch.setattr(named, "FILES", {name: sha256(data) for name, data in files.items()})
    monkeypatch.setattr(named, "SYSTEM", tmp_path / "not installed")
    monkeypatch.setattr("edgecnn.data.named.time.sleep", lambda seconds: None)
    return files


def packed(files: dict[str, bytes], level: int = 9) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data, level) for name, data in files.items()}


def test_digits():
    dataset = open_dataset(DataRecipe(source="digits"))
    assert (dataset.name, dataset.title) == ("digits", "Handwritten digits (scikit-learn)")
    assert dataset.labels == tuple("0123456789") and dataset.shape == (8, 8, 1) and not dataset.mirror
    assert sum(dataset.sizes.values()) == 1797
    splits = dataset.load(("train", "validation", "test"), height=8, width=8, channels=1, stage="verify")
    from sklearn.datasets import load_digits

    original = load_digits()
    for split in splits.values():
        for image, label, source in zip(split.images, split.classes, split.sources, strict=True):
            number = int(source[len("digits[") : -1])
            expected = [int(value * 255 / 16 + 0.5) for value in original.images[number].ravel()]
            assert image.ravel().tolist() == expected
            assert label == original.target[number]
    assert {value for split in splits.values() for value in np.unique(split.images).tolist()} <= set(range(256))
    assert max(split.images.max() for split in splits.values()) == 255


def test_digits_are_always_the_same():
    one, other = (open_dataset(DataRecipe(source="digits")) for _ in range(2))
    assert one.fingerprint == other.fingerprint == "1c39cb22beee2406035f4344161e985c1726b319096bd0fa0a0f9c4adccbbd45"


def test_digits_larger_and_in_colour():
    dataset = open_dataset(DataRecipe(source="digits"))
    train = dataset.load(("train",), height=16, width=20, channels=3, stage="train")["train"]
    assert train.images.shape[1:] == (16, 20, 3)
    assert (train.images[..., 0] == train.images[..., 2]).all()


def test_opening_digits_imports_neither_scikit_learn_nor_tensorflow():
    heavy = ("sklearn", "tensorflow", "tf_keras", "keras")
    opened = "import sys; from edgecnn.data.named import open_digits; open_digits()"
    code = f"{opened}; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow  # 70,000 images
def test_the_real_fashion_mnist():
    if not named.is_fashion_mnist(named.SYSTEM):
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    dataset = open_dataset(DataRecipe(source="fashion-mnist"))
    assert dataset.labels[0] == "T-shirt/top" and dataset.labels[9] == "Ankle boot" and len(dataset.labels) == 10
    assert dataset.sizes["test"] == 10_000 and dataset.sizes["train"] + dataset.sizes["validation"] == 60_000
    test = dataset.load(("test",), height=28, width=28, channels=1, stage="verify")["test"]
    assert np.bincount(test.classes).tolist() == [1000] * 10
    first = test.sources.index("test[0]")
    assert test.classes[first] == 9  # the first test image is known to be an ankle boot
    assert test.images[first].sum() == 33_456


@pytest.mark.parametrize("below", ["", "fashion-mnist"])
@pytest.mark.parametrize("pack", [packed, dict, lambda files: packed(files, 1)], ids=["gz", "unpacked", "packed anew"])
def test_fashion_mnist_from_the_data_folder(clothes, tmp_path, fill, monkeypatch, below, pack):
    fill(tmp_path / "data" / below, pack(clothes))
    monkeypatch.setenv("EDGECNN_DATA", str(tmp_path / "data"))
    dataset = open_dataset(DataRecipe(source="fashion-mnist"))
    assert (dataset.name, dataset.title) == ("fashion-mnist", "Fashion-MNIST")
    assert dataset.shape == (28, 28, 1) and dataset.mirror
    assert dataset.sizes["test"] == 50 and dataset.sizes["train"] + dataset.sizes["validation"] == 200
    test = dataset.load(("test",), height=28, width=28, channels=1, stage="verify")["test"]
    original = np.frombuffer(clothes["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(50, 28, 28, 1)
    for image, label, source in zip(test.images, test.classes, test.sources, strict=True):
        number = int(source[len("test[") : -1])
        assert (image == original[number]).all() and label == number % 10


def test_fashion_mnist_from_a_path_and_from_the_system(clothes, tmp_path, fill, monkeypatch):
    folder = fill(tmp_path / "clothes", packed(clothes))
    by_path = open_dataset(DataRecipe(source=str(folder)))
    monkeypatch.setattr(named, "SYSTEM", folder)
    by_name = open_dataset(DataRecipe(source="fashion-mnist"))
    assert by_path.name == by_name.name == "fashion-mnist"
    assert by_path.fingerprint == by_name.fingerprint


def test_fashion_mnist_is_downloaded_once(clothes, elsewhere, server, monkeypatch):
    monkeypatch.setattr(named, "FASHION_URL", server.url)
    server.files = packed(clothes)
    server.cuts = [100]
    for _ in range(2):
        assert open_dataset(DataRecipe(source="fashion-mnist")).sizes["test"] == 50
    assert len(server.asked) == 5  # four files, one of them in two pieces
    cached = sorted(path.name for path in (elsewhere / "edgecnn" / "fashion-mnist").iterdir())
    assert cached == sorted(packed(clothes))


def test_fashion_mnist_with_wrong_bytes_from_the_server(clothes, elsewhere, server, monkeypatch):
    monkeypatch.setattr(named, "FASHION_URL", server.url)
    server.files = packed(clothes) | {"train-labels-idx1-ubyte.gz": b"<html>Please log in</html>"}
    with pytest.raises(DownloadError, match=r"train-labels-idx1-ubyte.gz"):
        open_dataset(DataRecipe(source="fashion-mnist"))
    assert [path.name for path in (elsewhere / "edgecnn" / "fashion-mnist").iterdir()] == ["train-images-idx3-ubyte.gz"]


def test_fashion_mnist_without_a_network(clothes, monkeypatch):
    monkeypatch.setattr(named, "FASHION_URL", "http://127.0.0.1:9/")
    with pytest.raises(DownloadError) as failure:
        open_dataset(DataRecipe(source="fashion-mnist"))
    first, advice = str(failure.value).splitlines()
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz: Connection refused" in first
    assert advice == (
        "Without a network: install Debian's package dataset-fashion-mnist, or put the four files "
        "(train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
        "t10k-labels-idx1-ubyte.gz) into a folder and set EDGECNN_DATA to it."
    )


def test_a_copy_of_fashion_mnist_that_is_wrong_or_incomplete(clothes, tmp_path, fill, monkeypatch):
    monkeypatch.setenv("EDGECNN_DATA", str(tmp_path))
    fill(tmp_path, packed(clothes))
    name = "t10k-labels-idx1-ubyte.gz"
    whole = (tmp_path / name).read_bytes()
    for data, message in (
        (gzip.compress(clothes[name[:-3]][:-1] + b"\7"), "the SHA-256 of its unpacked bytes is"),
        (whole[:-9], f"{name} cannot be read: Compressed file ended"),
        (whole[:20] + b"\0\0\0\0" + whole[24:], f"{name} "),
        (b"", "the SHA-256 of its unpacked bytes is"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DatasetError, match=message):
            open_dataset(DataRecipe(source="fashion-mnist"))
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=f"{tmp_path} lacks {name}"):
        open_dataset(DataRecipe(source="fashion-mnist"))


def test_a_packed_file_is_not_unpacked_beyond_its_size(clothes, tmp_path, fill, monkeypatch):
    monkeypatch.setenv("EDGECNN_DATA", str(tmp_path))
    monkeypatch.setattr(named, "MAX_BYTES", 200_000)
    fill(tmp_path, packed(clothes))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    received = sha256(bytes(200_000))
    with pytest.raises(DatasetError, match=received):
        open_dataset(DataRecipe(source="fashion-mnist"))


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
    monkeypatch.setattr("edgecnn.data.named.time.sleep", lambda seconds: None)
    return arrays, files


def pass_for_real(monkeypatch, files):
    monkeypatch.setattr(named, "BATCHES", {name: sha256(data) for name, data in files.items()})


def archive(monkeypatch, files, folder="cifar-10-batches-bin"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(named, "ARCHIVE_SHA256", sha256(buffer.getvalue()))
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["archive", "unpacked", "unpacked itself"])
@pytest.mark.parametrize("by", ["name", "path"])
def test_a_local_copy(photos, monkeypatch, tmp_path, fill, form, by):
    arrays, files = photos
    if form == "archive":
        fill(tmp_path, {named.ARCHIVE: archive(monkeypatch, files)})
        path = tmp_path / named.ARCHIVE
    else:
        path = fill(tmp_path / named.FOLDER, files)
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
    server.files = {named.ARCHIVE: archive(monkeypatch, photos[1])}
    server.cuts = [5000]
    monkeypatch.setattr(named, "CIFAR10_URL", server.url + named.ARCHIVE)
    for _ in range(2):
        assert open_dataset(DataRecipe(source="cifar10")).sizes["test"] == 20
    assert [wish for _, wish in server.asked] == [None, "bytes=5000-"]
    assert [path.name for path in (elsewhere / "edgecnn").iterdir()] == [named.ARCHIVE]


def test_wrong_bytes_from_the_server(photos, monkeypatch, server, elsewhere):
    server.files = {named.ARCHIVE: archive(monkeypatch, photos[1])[:-1] + b"!"}
    monkeypatch.setattr(named, "CIFAR10_URL", server.url + named.ARCHIVE)
    with pytest.raises(DownloadError, match=r"cifar-10-binary\.tar\.gz[\s\S]*Without a network: put"):
        open_dataset(DataRecipe(source="cifar10"))
    assert list((elsewhere / "edgecnn").iterdir()) == []


def test_without_a_network(monkeypatch):
    monkeypatch.setattr(named, "CIFAR10_URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setattr("edgecnn.data.named.time.sleep", lambda seconds: None)
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
    fill(tmp_path, {named.ARCHIVE: data + b"x"})
    with pytest.raises(DatasetError, match=r"cifar-10-binary.tar.gz is not https://www.*: its SHA-256 is"):
        open_dataset(DataRecipe(source=str(tmp_path / named.ARCHIVE)))


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
    fill(tmp_path, {named.ARCHIVE: archive(monkeypatch, content)})
    with pytest.raises(DatasetError, match=message):
        open_dataset(DataRecipe(source=str(tmp_path / named.ARCHIVE)))
    message = message.replace("lacks data_batch_3.bin", "No such file or directory.*data_batch_3.bin")
    with pytest.raises(DatasetError, match=message):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "unpacked", content))))


def test_an_archive_that_is_not_a_tar(monkeypatch, tmp_path, fill):
    for data in (b"not gzip", b"\x1f\x8b\x08\0truncated"):
        monkeypatch.setattr(named, "ARCHIVE_SHA256", sha256(data))
        fill(tmp_path, {named.ARCHIVE: data})
        with pytest.raises(DatasetError, match=r"cifar-10-binary.tar.gz is damaged"):
            open_dataset(DataRecipe(source=str(tmp_path / named.ARCHIVE)))


def test_members_elsewhere_in_the_archive_are_not_read(photos, monkeypatch, tmp_path, fill):
    fill(tmp_path, {named.ARCHIVE: archive(monkeypatch, photos[1], folder="../cifar-10-batches-bin")})
    with pytest.raises(DatasetError, match=r"data_batch_1\.bin, data_batch_2\.bin"):
        open_dataset(DataRecipe(source=str(tmp_path / named.ARCHIVE)))


DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def pauses(monkeypatch):
    """Record the pauses between attempts instead of waiting."""
    taken = []
    monkeypatch.setattr(named.time, "sleep", taken.append)
    return taken


@pytest.fixture
def remote(server):
    server.files["file.bin"] = DATA

    def check(path: Path) -> None:
        if path.read_bytes() != DATA:
            raise DatasetError(f"{path} is something else")

    return functools.partial(
        download, f"{server.url}file.bin", check=check, offline="Offline: put file.bin into a folder."
    )


@pytest.mark.usefixtures("pauses")
def test_a_download_is_complete_and_shows_progress(server, remote, tmp_path, monkeypatch):
    monkeypatch.setattr("edgecnn.data.items.PROGRESS_S", 0.0)
    calls = []
    remote(tmp_path / "new" / "file.bin", lambda *call: calls.append(call))
    assert (tmp_path / "new" / "file.bin").read_bytes() == DATA
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]
    assert calls[0] == ("downloading file.bin", 0, len(DATA))
    assert calls[-1] == ("downloading file.bin", len(DATA), len(DATA))
    assert [call[1] for call in calls] == sorted(call[1] for call in calls)
    assert len(calls) > 2


@pytest.mark.usefixtures("pauses")
def test_progress_is_called_at_most_ten_times_per_second(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(named, "BLOCK_BYTES", 64)
    monkeypatch.setattr("edgecnn.data.items.PROGRESS_S", 3600.0)
    calls = []
    remote(tmp_path / "file.bin", lambda *call: calls.append(call))
    assert [call[1] for call in calls] == [0, len(DATA)]


@pytest.mark.usefixtures("pauses")
def test_a_cut_connection_is_resumed_where_it_stopped(server, remote, tmp_path, pauses):
    server.cuts = [300_000, 200_000]
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert [wish for _, wish in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert pauses == [1.0, 2.0]


@pytest.mark.usefixtures("pauses")
def test_a_part_file_of_an_earlier_command_is_resumed(server, remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA[:1000])
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.asked == [("file.bin", "bytes=1000-")]


@pytest.mark.usefixtures("pauses")
def test_a_complete_part_file_needs_no_more_bytes(server, remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA)
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA


@pytest.mark.usefixtures("pauses")
def test_a_server_without_ranges_starts_over(server, remote, tmp_path):
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(DATA[:1000])
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA


@pytest.mark.usefixtures("pauses")
def test_a_passing_server_error_is_retried(server, remote, tmp_path, pauses):
    server.statuses = [503, 500]
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert pauses == [1.0, 2.0]


@pytest.mark.usefixtures("pauses")
def test_a_missing_file_is_not_retried(server, remote, tmp_path, pauses):
    del server.files["file.bin"]
    with pytest.raises(DownloadError, match="HTTP 404 Not Found"):
        remote(tmp_path / "file.bin")
    assert len(server.asked) == 1 and pauses == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pauses")
def test_attempts_end_and_the_part_stays_for_the_next_command(server, remote, tmp_path):
    server.cuts = [1000] * named.ATTEMPTS
    with pytest.raises(DownloadError, match=r"4,000 of 1,048,576 bytes"):
        remote(tmp_path / "file.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.part"]
    remote(tmp_path / "file.bin")
    assert server.asked[-1] == ("file.bin", "bytes=4000-")


@pytest.mark.usefixtures("pauses")
def test_wrong_bytes_are_deleted(server, remote, tmp_path):
    server.files["file.bin"] = DATA[:-1] + b"!"
    with pytest.raises(DownloadError, match="did not send the expected file; what it sent was deleted") as failure:
        remote(tmp_path / "file.bin")
    assert failure.value.exit_code == 9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pauses")
def test_a_wrong_part_is_deleted_so_that_the_next_command_succeeds(remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(DownloadError):
        remote(tmp_path / "file.bin")
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA


@pytest.mark.usefixtures("pauses")
def test_a_part_longer_than_the_file_is_deleted(remote, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(DATA + b"more")
    with pytest.raises(DownloadError):
        remote(tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pauses")
def test_no_server_is_a_download_error_with_reason_and_advice(server, remote, tmp_path, pauses):
    closed = functools.partial(download, "http://127.0.0.1:9/file.bin", **remote.keywords)
    with pytest.raises(DownloadError) as failure:
        closed(tmp_path / "file.bin")
    assert str(failure.value) == (
        "cannot download http://127.0.0.1:9/file.bin: Connection refused.\nOffline: put file.bin into a folder."
    )
    assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.usefixtures("pauses")
def test_a_full_disk_is_an_output_error_and_the_download_resumes_later(server, remote, tmp_path, file_limit):
    with file_limit(500_000), pytest.raises(OutputError, match=re.escape(f"{tmp_path}/file.bin.part: File too large")):
        remote(tmp_path / "file.bin")
    assert len(server.asked) == 1  # a full disk is not retried
    assert (tmp_path / "file.bin.part").stat().st_size == 500_000
    remote(tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.asked[-1] == ("file.bin", "bytes=500000-")


@pytest.mark.usefixtures("pauses")
def test_a_folder_that_cannot_be_made_is_an_output_error(server, remote, tmp_path):
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(OutputError, match="Not a directory") as failure:
        remote(tmp_path / "taken" / "deeper" / "file.bin")
    assert failure.value.__cause__.errno == errno.ENOTDIR
    assert server.asked == []
