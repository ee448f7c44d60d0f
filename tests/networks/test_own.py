"""A user's own network, code in Keras files, and weights to start from."""

import io
import json
import pickle
from collections import OrderedDict
from importlib import resources

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn import images
from edgecnn.cli.help import missing_extra
from edgecnn.errors import NetworkError
from edgecnn.networks import build_network, network_module, pretrained
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.own import own_network, refuse_code
from edgecnn.networks.pretrained import SOURCES, read_weights, source_of
from edgecnn.pixels import to_real
from edgecnn.runs import FLOAT_MODEL, QAT_MODEL


@pytest.fixture
def trap(tmp_path):
    """Return a Keras 2 .h5 file whose Lambda leaves a mark when it runs, and the mark's path."""
    mark = tmp_path / "mark"
    source = f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Lambda(eval(source), name="trap")(inputs)))
    keras.Model(inputs, outputs).save(tmp_path / "trap.h5")
    mark.unlink()
    return tmp_path / "trap.h5", mark


def test_a_lambda_is_refused_by_every_reader_of_models(edgecnn, own_run, trap):
    file, mark = trap
    for name in (FLOAT_MODEL, QAT_MODEL):
        own_run.file(name).write_bytes(file.read_bytes())
    for command in (
        ("compare", file, file, "--data", "digits"),
        ("import", file, "--calibrate", "digits"),
        ("export", own_run.path, "--force"),
        ("verify", own_run.path),
        ("train", "--data", "digits", "--init", own_run.path, "--out", "new"),
    ):
        result = edgecnn(*command)
        assert result.code == NetworkError.exit_code, (command, result.err)
        assert "'trap'" in result.err
        assert not mark.exists(), command


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"class_name": "Popen", "module": "subprocess", "config": {}}, "Popen of the module subprocess"),
        (
            {"class_name": "TFOpLambda", "config": {"name": "w", "function": "io.write_file"}},
            r"calls tf\.io\.write_file",
        ),
        ({"class_name": "TFOpLambda", "config": {"name": "w", "function": "py_function"}}, r"calls tf\.py_function"),
        ({"class_name": "ReLU", "config": {"max_value": {"class_name": "__lambda__", "config": {}}}}, "a lambda"),
    ],
)
def test_other_code_is_refused(tmp_path, layer, message):
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [[layer]]}})
    with pytest.raises(
        NetworkError, match=rf"model\.h5 holds Python code \(.*{message}.*does not load it\.\nBuild the model without"
    ):
        refuse_code((tmp_path / "model.h5").read_bytes(), "model.h5")


def test_files_of_both_keras_versions_are_only_data(tmp_path):
    import keras as keras3

    for number, library in enumerate((keras, keras3)):
        inputs = library.Input((8, 8, 1))
        x = library.layers.Conv2D(4, 3, activation="relu")(tf.math.cos(inputs) if library is keras else inputs)
        model = library.Model(inputs, library.layers.Dense(3)(library.layers.GlobalAveragePooling2D()(x)))
        model(np.zeros((1, 8, 8, 1), np.float32))
        for suffix in (".keras", ".h5"):
            model.save(tmp_path / f"{number}{suffix}")
            refuse_code(tmp_path / f"{number}{suffix}", "model")


GOOD = """
from tf_keras import Input, Model, layers

def build(height, width, channels, num_classes, width_factor="1"):
    inputs = Input((height, width, channels))
    x = layers.Conv2D(4 * int(width_factor), 3, strides=2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return Model(inputs, layers.Dense(num_classes)(x))
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a network file and returns the network's name, with the function `build`."""

    def write(source, function="build"):
        (tmp_path / "net.py").write_text(source)
        return f"{tmp_path}/net.py:{function}"

    return write


def with_output(layer):
    return GOOD.replace("layers.Dense(num_classes)(x)", layer)


def test_a_good_one_is_built_with_its_options(write):
    name = write(GOOD)
    model = build_network(name, 8, 9, 1, 5, {"width_factor": "2"})
    assert model.input_shape == (None, 8, 9, 1) and model.output_shape == (None, 5)
    assert model.layers[1].filters == 8
    assert build_network(name, 8, 9, 1, 5).layers[1].filters == 4
    assert network_module(name).__name__ == "build"
    assert own_network(name).label == "net.py:build" and own_network(name).short == "net-build"
    assert own_network("resnet8") is None


def test_a_sequential_model_becomes_a_functional_one(write):
    source = """
import tf_keras
def build(height, width, channels, num_classes):
    return tf_keras.Sequential([
        tf_keras.Input((height, width, channels)), tf_keras.layers.Flatten(), tf_keras.layers.Dense(num_classes)])
"""
    model = build_network(write(source), 8, 8, 1, 3)
    assert [type(layer).__name__ for layer in model.layers] == ["InputLayer", "Flatten", "Dense"]


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        (GOOD, "bild", r"has no function 'bild'\. Did you mean 'build'"),
        ("x = 1", "build", r"has no function 'build'\. It defines no functions"),
        ("def build(:", "build", r"net\.py:build, line 1: SyntaxError"),
        ("import no_such_package", "build", r"line 1: ModuleNotFoundError when executing it: No module named 'no_such_package'"),
        ("def build(a, b, c, d):\n    return a // 0", "build", r"line 2: ZeroDivisionError when called with \(8, 8, 1, 3\)"),
        ("def build(a, b):\n    return a", "build", r"TypeError when called"),
        ("def build(a, b, c, d):\n    return None", "build", r"returned NoneType, expected a functional tf_keras model"),
        (GOOD.replace("tf_keras", "keras"), "build", r"returned a Keras 3 model.*\n.*from tf_keras import"),
        (
            "import tf_keras\nclass Mine(tf_keras.Model):\n    pass\ndef build(*shape):\n    return Mine()",
            "build",
            "returned the subclassed model Mine, expected a functional one",
        ),
        (with_output("layers.Dense(num_classes + 1)(x)"), "build", r"the output is \(None, 4\), expected \(None, 3\)"),
        (GOOD.replace("Input((height,", "Input((height + 1,"), "build", r"the input is \(None, 9, 8, 1\), expected \(None, 8, 8, 1\)"),
        (with_output("layers.Dense(num_classes, activation='softmax')(x)"), "build", r"ends in softmax \(layer dense.*expected logits"),
        (with_output("layers.Softmax()(layers.Dense(num_classes)(x))"), "build", r"ends in softmax \(layer softmax"),
    ],
)  # fmt: skip
def test_each_fault_is_reported(write, source, function, message):
    with pytest.raises(NetworkError, match=message):
        build_network(write(source, function), 8, 8, 1, 3)


def test_a_missing_file_and_a_missing_function(tmp_path):
    with pytest.raises(NetworkError, match=r"cannot read the network .*/none\.py: No such file"):
        build_network(f"{tmp_path}/none.py:build", 8, 8, 1, 3)
    with pytest.raises(NetworkError, match=r"names a file without a function\. Write net\.py:build"):
        build_network("net.py", 8, 8, 1, 3)
    with pytest.raises(NetworkError, match=r"as FILE\.py:FUNCTION; received 'net\.txt:build'"):
        build_network("net.txt:build", 8, 8, 1, 3)


SOURCE = SOURCES[0]


class FloatStorage:
    """Stands in for PyTorch's classes, which pickles name."""


class Evil:
    """Would create a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def legacy_file(state, storages):
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
    for value in (1, 2, {"little_endian": True}):
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
    arrays = pretrained.read_state(legacy_file(state, {"1": values}))
    np.testing.assert_array_equal(arrays["rows"], values.reshape(3, 4))
    np.testing.assert_array_equal(arrays["columns"], [[2, 6], [3, 7], [4, 8], [5, 9]])


def test_a_pickle_that_names_anything_else_is_refused_before_it_runs(tmp_path):
    data = legacy_file({"weight": Evil(tmp_path / "created")}, {})
    with pytest.raises(NetworkError, match=r"the weights name \w+\.open, but only tensors are read"):
        pretrained.read_state(data)
    assert not (tmp_path / "created").exists()


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
        pytest.param("efficientnet_lite0_4000kb", 224, 985, marks=pytest.mark.slow),  # daisy
        ("efficientnet_lite2_5600kb", 260, 599),  # honeycomb, for a dahlia
    ],
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
    from edgecnn.networks.blocks import costs, describe, frozen_network, rungs_of
    from edgecnn.networks.keras import keras

    shape, family = (32, 48, 1), source.prefix.rstrip("_")
    state, rungs = read_weights(source), rungs_of(family)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)
    found = frozen_network(family, shape[2])(pixels)
    assert list(found) == list(rungs)
    for rung in rungs[::every]:
        alone = build_network(rung, *shape, 3)
        pretrained.load_weights(alone, state)
        expected = keras.Model(alone.inputs, alone.layers[-1].input)(pixels)
        np.testing.assert_allclose(found[rung], expected, atol=1e-4, err_msg=rung)
        cost, own = costs(rung, *shape, 3), describe(alone)
        assert (cost.parameters, cost.macs, cost.int8_bytes) == (own.parameters, own.macs, own.int8_bytes), rung
