"""A user's own network: every fault in its file ends in one clear message."""

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import NetworkError
from edgecnn.networks import build_network, network_module
from edgecnn.networks.own import own_network

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
