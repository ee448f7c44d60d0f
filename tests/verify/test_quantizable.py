"""Layers that cannot be quantized are named before training; those that can pass."""

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import NetworkError
from edgecnn.networks import build_network
from edgecnn.networks.keras import keras
from edgecnn.verify.model_files import check_quantizable, refused_layers

layers = keras.layers


def network(*middle):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="first")(inputs)
    for layer in middle:
        x = layer([x, x]) if isinstance(layer, layers.Multiply) else layer(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.slow  # each of them becomes int8 in tests/export/test_tflite.py
@pytest.mark.parametrize("name", ["resnet_25kb", "resnet8"])
def test_networks_of_the_registry_pass(name):
    model = build_network(name, 16, 16, 3, 4)
    assert refused_layers(model) == {}
    check_quantizable(model, name, 1 / 128, 0)


def test_every_refused_layer_is_named_in_order_and_what_to_do():
    model = network(
        layers.BatchNormalization(name="folded"),
        layers.ReLU(),
        layers.BatchNormalization(name="alone"),
        layers.Multiply(name="gate"),
        layers.Conv2D(4, 3, activation="swish", name="swished"),
    )
    assert list(refused_layers(model)) == ["alone", "gate", "swished"]
    with pytest.raises(NetworkError) as caught:
        check_quantizable(model, "net.py:build", 1 / 128, 0)
    message = str(caught.value)
    assert message.startswith("net.py:build does not support quantization-aware training: alone (BatchNormalization), ")
    assert "gate (Multiply), swished (Conv2D with activation swish) cannot be quantized" in message
    assert message.endswith("quantize after training instead: --set qat.method=ptq")


def test_a_nested_model_is_named():
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3)], name="inner")
    with pytest.raises(NetworkError, match="inner"):
        check_quantizable(network(inner), "net.py:build", 1 / 128, 0)


def test_a_custom_layer_that_the_toolkit_cannot_wrap_is_named():
    class Mine(layers.Layer):
        def call(self, inputs):
            return inputs * 2.0 + keras.backend.exp(inputs)

    with pytest.raises(NetworkError, match="Mine"):
        check_quantizable(network(Mine(name="mine")), "net.py:build", 1 / 128, 0)
