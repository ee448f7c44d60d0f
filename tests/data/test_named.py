"""digits and Fashion-MNIST: content, locations and refusals."""

import gzip
import subprocess
import sys

import numpy as np
import pytest

from edgecnn.data import fashion_mnist, open_dataset
from edgecnn.data.fashion_mnist import FILES
from edgecnn.errors import DatasetError, DownloadError
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
    monkeypatch.setattr(fashion_mnist, "FILES", {name: sha256(data) for name, data in files.items()})
    monkeypatch.setattr(fashion_mnist, "SYSTEM", tmp_path / "not installed")
    monkeypatch.setattr("edgecnn.data.download.time.sleep", lambda seconds: None)
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
    opened = "import sys; from edgecnn.data.digits import open_digits; open_digits()"
    code = f"{opened}; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow  # 70,000 images
def test_the_real_fashion_mnist():
    if not fashion_mnist.is_fashion_mnist(fashion_mnist.SYSTEM):
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
    monkeypatch.setattr(fashion_mnist, "SYSTEM", folder)
    by_name = open_dataset(DataRecipe(source="fashion-mnist"))
    assert by_path.name == by_name.name == "fashion-mnist"
    assert by_path.fingerprint == by_name.fingerprint


def test_fashion_mnist_is_downloaded_once(clothes, elsewhere, server, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "URL", server.url)
    server.files = packed(clothes)
    server.cuts = [100]
    for _ in range(2):
        assert open_dataset(DataRecipe(source="fashion-mnist")).sizes["test"] == 50
    assert len(server.asked) == 5  # four files, one of them in two pieces
    cached = sorted(path.name for path in (elsewhere / "edgecnn" / "fashion-mnist").iterdir())
    assert cached == sorted(packed(clothes))


def test_fashion_mnist_with_wrong_bytes_from_the_server(clothes, elsewhere, server, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "URL", server.url)
    server.files = packed(clothes) | {"train-labels-idx1-ubyte.gz": b"<html>Please log in</html>"}
    with pytest.raises(DownloadError, match=r"train-labels-idx1-ubyte.gz"):
        open_dataset(DataRecipe(source="fashion-mnist"))
    assert [path.name for path in (elsewhere / "edgecnn" / "fashion-mnist").iterdir()] == ["train-images-idx3-ubyte.gz"]


def test_fashion_mnist_without_a_network(clothes, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "URL", "http://127.0.0.1:9/")
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
    monkeypatch.setattr(fashion_mnist, "MAX_BYTES", 200_000)
    fill(tmp_path, packed(clothes))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    received = sha256(bytes(200_000))
    with pytest.raises(DatasetError, match=received):
        open_dataset(DataRecipe(source="fashion-mnist"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x0d\3" + bytes(12), r"IDX.* complete copy"),
        ("train-images-idx3-ubyte", b"\0\0\x08\3" + bytes(4), r"IDX.* complete copy"),
        ("train-images-idx3-ubyte", b"\0\0\x08\3" + b"\xff" * 12, r"0 values.* complete copy"),
        ("train-labels-idx1-ubyte", idx(np.zeros(3, np.uint8)), "complete copy"),
        ("train-labels-idx1-ubyte", idx(np.full(200, 10, np.uint8)), "complete copy"),
    ],
)
def test_files_that_are_not_idx(clothes, tmp_path, fill, monkeypatch, name, data, message):
    files = clothes | {name: data}
    monkeypatch.setattr(fashion_mnist, "FILES", {name: sha256(data) for name, data in files.items()})
    with pytest.raises(DatasetError, match=message):
        open_dataset(DataRecipe(source=str(fill(tmp_path / "data", packed(files)))))


def test_the_files_are_four():
    assert len(FILES) == 4 and all(len(value) == 64 for value in FILES.values())
