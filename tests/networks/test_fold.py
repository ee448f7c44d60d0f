import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.networks import build_network
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import LEAST_REACH, fitting_biases, folded


def shaken(model):
    """Give each BatchNorm its own statistics and parameters."""
    random = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 2, array.shape).astype(np.float32) for array in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def resnet8():
    return shaken(build_network("resnet8", 16, 16, 3, 5))


def norms(model):
    return [layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def same(model):
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, *model.input_shape[1:])).astype(np.float32)
    other = folded(model)(pixels, training=False).numpy()
    one = model(pixels, training=False).numpy()
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(one).max())


def test_resnet8_answers_the_same_without_batch_norm(resnet8):
    before = resnet8.get_weights()
    assert norms(resnet8) and norms(folded(resnet8)) == []
    same(resnet8)
    assert all(np.array_equal(*pair) for pair in zip(before, resnet8.get_weights(), strict=True)), "it is not changed"


def test_a_model_without_batch_norm_is_unchanged():
    model = build_network("article", 18, 18, 1, 3)
    assert folded(model) is model


def test_depthwise_convolutions_without_bias_and_norms_that_must_stay():
    layers = keras.layers
    inputs = keras.Input((8, 8, 2))
    x = layers.BatchNormalization(name="first")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=False)(x)
    x = layers.BatchNormalization(scale=False)(x)
    shared = layers.Conv2D(4, 1)(x)
    x = layers.Add()([layers.BatchNormalization(name="one")(shared), layers.BatchNormalization(name="other")(shared)])
    x = layers.BatchNormalization(name="active")(layers.Conv2D(4, 1, activation="relu")(x))
    x = layers.BatchNormalization(center=False)(layers.Conv2D(4, 3, use_bias=False)(x))
    model = shaken(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    assert norms(folded(model)) == ["first", "one", "other", "active"]
    same(model)


def constant_channels():
    """A network whose first channels have a bias and hardly any weights: a bias below zero, above it, and with no weights at all."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = keras.Input((6, 6, 2))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, use_bias=False, name="convolution")(inputs))
    x = layers.BatchNormalization(name="depthwise_norm")(layers.DepthwiseConv2D(3, use_bias=False)(layers.ReLU(6)(x)))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.ReLU(6)(x))))
    for name in ("norm", "depthwise_norm"):
        _, _, mean, variance = model.get_layer(name).get_weights()
        weights = [[1e-9, -1e-8, 0, 1], [-5, 4, -3, 0.5], mean, variance]
        model.get_layer(name).set_weights([np.array(value, np.float32) for value in weights])
    return model


def test_weights_of_constant_channels_are_enlarged_until_biases_fit():
    model = constant_channels()
    before = model.get_weights()
    fitting = fitting_biases(model)
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 6, 6, 2)).astype(np.float32)
    answers, expected = fitting(pixels, training=False).numpy(), model(pixels, training=False).numpy()
    np.testing.assert_allclose(answers, expected, atol=2e-3 * np.abs(expected).max())
    convolution = folded(fitting).get_layer("convolution")
    kernel, bias = convolution.get_weights()
    reach = np.abs(kernel).max(axis=(0, 1, 2))
    np.testing.assert_allclose(bias, [-5, 4, -3, 0.5], atol=1e-5)
    np.testing.assert_allclose(reach[:3], [5 * LEAST_REACH, 4 * LEAST_REACH, 0], rtol=1e-4)
    assert np.array_equal(
        reach[3], np.abs(folded(model).get_layer("convolution").get_weights()[0]).max(axis=(0, 1, 2))[3]
    )
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True)), "it is not changed"


def test_a_model_whose_biases_fit_is_unchanged(resnet8):
    assert fitting_biases(resnet8) is resnet8
