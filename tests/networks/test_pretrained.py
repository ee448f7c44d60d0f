"""ImageNet weights: read without PyTorch, correct, and refused before any of their code runs if they are not the expected ones."""

import io
import pickle
import zipfile
from collections import OrderedDict
from importlib import resources

import numpy as np
import pytest

from edgecnn import images
from edgecnn.cli.help import missing_extra
from edgecnn.errors import NetworkError
from edgecnn.networks import pretrained
from edgecnn.networks.pretrained import SOURCES, read_weights, source_of
from edgecnn.pixels import to_real

SOURCE = SOURCES[0]


class FloatStorage:
    """Stands in for PyTorch's classes, which pickles name."""


class Evil:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def legacy_file(state, storages, header=(pretrained.MAGIC, pretrained.PROTOCOL)):
    """Return a file in PyTorch's legacy format: state maps names to (key, offset, shape, strides), or to anything else."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            if isinstance(item, tuple) and item and item[0] == "storage":
                return item
            return None

        def reducer_override(self, item):
            if isinstance(item, Reference):
                storage = ("storage", FloatStorage, item.key, "cpu", len(storages[item.key]), None)
                return _rebuild_tensor_v2, (storage, item.offset, item.shape, item.strides, False, OrderedDict())
            return NotImplemented

    out = io.BytesIO()
    for value in (*header, {"little_endian": True}):
        pickle.dump(value, out, 2)
    Pickler(out, 2).dump(OrderedDict(state))
    pickle.dump(list(storages), out, 2)
    for values in storages.values():
        out.write(len(values).to_bytes(8, "little") + np.asarray(values, "<f4").tobytes())
    # give this file's stand-ins PyTorch's names
    return (
        out.getvalue()
        .replace(f"c{__name__}\n_rebuild_tensor_v2\n".encode(), b"ctorch._utils\n_rebuild_tensor_v2\n")
        .replace(f"c{__name__}\nFloatStorage\n".encode(), b"ctorch\nFloatStorage\n")
    )


class Reference:
    """A tensor of `legacy_file`."""

    def __init__(self, key, offset, shape, strides):
        self.key, self.offset, self.shape, self.strides = key, offset, shape, strides


def _rebuild_tensor_v2(*arguments):
    raise AssertionError("only named, never called")


def test_tensors_are_read_in_any_layout():
    values = np.arange(12.0)
    state = {"rows": Reference("1", 0, (3, 4), (4, 1)), "columns": Reference("1", 2, (4, 2), (1, 4))}
    arrays = pretrained.read_state(legacy_file(state, {"1": values}), "weights")
    np.testing.assert_array_equal(arrays["rows"], values.reshape(3, 4))
    np.testing.assert_array_equal(arrays["columns"], [[2, 6], [3, 7], [4, 8], [5, 9]])


def test_a_pickle_that_names_anything_else_is_refused_before_it_runs(tmp_path):
    data = legacy_file({"weight": Evil(tmp_path / "created")}, {})
    with pytest.raises(NetworkError, match=r"weights: it names \w+\.open, but only tensors are read"):
        pretrained.read_state(data, "weights")
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    ("state", "storages", "message"),
    [
        ({"w": Reference("1", 0, (3, 5), (5, 1))}, {"1": np.zeros(12)}, "reaches beyond its storage"),
        ({"w": Reference("1", -1, (2,), (1,))}, {"1": np.zeros(12)}, "reaches beyond its storage"),
        ({"w": Reference("1", 0, (2,), (-1,))}, {"1": np.zeros(12)}, "reaches beyond its storage"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(state, storages, message):
    with pytest.raises(NetworkError, match=message):
        pretrained.read_state(legacy_file(state, storages), "weights")


def test_damaged_files_are_refused():
    whole = legacy_file({"w": Reference("1", 0, (3, 4), (4, 1))}, {"1": np.arange(12.0)})
    for length in range(0, len(whole), 7):
        with pytest.raises(NetworkError):
            pretrained.read_state(whole[:length], "weights")
    with pytest.raises(NetworkError, match="not a file of PyTorch weights"):
        pretrained.read_state(legacy_file({}, {}, header=(1, 2)), "weights")
    with zipfile.ZipFile(zipped := io.BytesIO(), "w") as file:
        file.writestr("data.pkl", b"")
    with pytest.raises(NetworkError):
        pretrained.read_state(zipped.getvalue(), "weights")


def test_an_altered_package_is_refused_before_it_is_read(tmp_path, monkeypatch):
    file = tmp_path / SOURCE.package / SOURCE.file
    file.parent.mkdir(parents=True)
    (tmp_path / SOURCE.package / "__init__.py").write_text("raise SystemExit('executed')")
    file.write_bytes(legacy_file({"weight": Evil(tmp_path / "created")}, {}))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pretrained, "read_state", None)
    with pytest.raises(NetworkError, match=r"is not the file of .*Nothing was read"):
        read_weights(SOURCE)
    assert not (tmp_path / "created").exists()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        read_weights(SOURCE)
    error = str(missing_extra(caught.value))
    assert "[backbones]" in error and "--network resnet_100kb" in error


def test_each_backbone_has_a_source():
    assert source_of("efficientnet_lite0_150kb") is SOURCE
    assert source_of("efficientnet_lite2_1800kb") is SOURCES[1]
    assert source_of("resnet_100kb") is None


@pytest.fixture(scope="module")
def whole():
    """A whole EfficientNet-Lite with all its weights, including the dense layer's: a function from scikit-learn's photos to its classes."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.networks import build_network

    def build(network, side, channels):
        state = read_weights(source_of(network))
        model = build_network(network, side, side, channels, 1000)
        pretrained.load_weights(model, state)
        model.layers[-1].set_weights([state["_fc.weight"].T, state["_fc.bias"]])

        def best(name):
            data = (resources.files("sklearn") / "datasets" / "images" / name).read_bytes()
            pixels = images.load(data, side, side, channels, "crop")[np.newaxis]
            return np.argsort(-model(to_real(pixels, 1 / 128, 0), training=False).numpy()[0])

        return best

    return build


@pytest.mark.parametrize(
    ("network", "side", "flower"),
    [
        pytest.param("efficientnet_lite0_4000kb", 224, 985, marks=pytest.mark.slow),
        ("efficientnet_lite2_5600kb", 260, 599),
    ],  # daisy; honeycomb, for a dahlia
)
def test_it_recognises_photos(whole, network, side, flower):
    best = whole(network, side, 3)
    assert best("flower.jpg")[0] == flower
    assert best("china.jpg")[:2].tolist() == [698, 442], "ImageNet's palace and bell cote"


@pytest.mark.slow
def test_a_grey_input_answers_like_three_equal_channels(whole):
    assert 698 in whole("efficientnet_lite0_4000kb", 224, 1)("china.jpg")[:10]


@pytest.mark.parametrize(
    ("source", "every"), [(SOURCE, 3), *(pytest.param(source, 1, marks=pytest.mark.slow) for source in SOURCES)]
)
def test_one_pass_gives_the_features_and_costs_of_every_rung(source, every):
    """`every` third rung is the smallest one, and the whole network with its head."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.networks import build_network
    from edgecnn.networks.blocks import all_features, costs, describe
    from edgecnn.networks.keras import keras

    shape, family = (32, 48, 1), source.prefix.rstrip("_")
    state = read_weights(source)
    rungs, whole = all_features(family, *shape)
    pretrained.load_weights(whole, state)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)
    found = dict(zip(rungs, whole(pixels), strict=True))
    for rung in rungs[::every]:
        alone = build_network(rung, *shape, 3)
        pretrained.load_weights(alone, state)
        expected = keras.Model(alone.inputs, alone.layers[-1].input)(pixels)
        np.testing.assert_allclose(found[rung], expected, atol=1e-4, err_msg=rung)
        cost, own = costs(family, *shape, 3)[rung], describe(alone)
        assert (cost.parameters, cost.macs, cost.int8_bytes) == (own.parameters, own.macs, own.int8_bytes), rung
