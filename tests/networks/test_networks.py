"""Each network, BatchNorm folded, and a workaround for oneDNN."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import NetworkError, UnknownNameError
from edgecnn.networks import NETWORKS, build_network
from edgecnn.networks.blocks import blocks_of, describe, halvings, is_whole
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import LEAST_REACH, fit_biases, folded
from edgecnn.train.phases import fake_quantize

FURTHER = {
    "resnet_100kb", "resnet_300kb", "resnet_500kb", "resnet_1000kb", "efficientnet_lite0_270kb",
    "efficientnet_lite0_1200kb", "efficientnet_lite0_4000kb", "efficientnet_lite2_1800kb", "efficientnet_lite2_5600kb",
}  # fmt: skip
"""Larger networks of the same families."""


def each(further):
    """Return all NETWORKS; these are further variants."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in further else name for name in NETWORKS]


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


def test_article_is_the_article_layer_by_layer():
    model = build_network("article", 32, 32, 3, 10)
    assert kinds(model) == [
        "Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Conv2D", "Flatten", "Dense", "Dense",
    ]  # fmt: skip
    assert [layer.output_shape[1:] for layer in model.layers[1:]] == [
        (30, 30, 32), (15, 15, 32), (13, 13, 64), (6, 6, 64), (4, 4, 64), (1024,), (64,), (10,),
    ]  # fmt: skip
    assert model.count_params() == 122_570


def test_resnet8_is_mlperf_tinys():
    cost = describe(build_network("resnet8", 32, 32, 3, 10))
    assert cost.parameters == 78_666
    assert cost.macs == 12_501_632


@pytest.mark.parametrize("name", each(FURTHER))
@pytest.mark.parametrize(
    "shape",
    [(8, 8, 1), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((28, 28, 1), (17, 23, 3), (96, 64, 3)))],
)
def test_any_input_size(name, shape):
    model = build_network(name, *shape, 7)
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, 7)


def test_the_stem_reduces_an_inputs_shorter_side_to_about_32():
    for side, times in (
        (8, 0), (28, 0), (32, 0), (45, 0), (46, 1), (64, 1), (90, 1), (91, 2), (128, 2), (181, 2), (182, 3), (224, 3),
    ):  # fmt: skip
        assert halvings(side, 2 * side) == halvings(3 * side, side) == times, side
        assert side < 46 or 22 < side / 2**times < 46


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet_25kb", 2.2e6),
        *(
            pytest.param(name, macs, marks=pytest.mark.slow)
            for name, macs in {
                "resnet_100kb": 21e6,
                "resnet_300kb": 21e6,
                "resnet_500kb": 61e6,
                "resnet_1000kb": 56e6,
            }.items()
        ),
    ],
)
def test_the_ladders_networks_cost_about_the_same_for_every_input(name, macs):
    assert 0.5 * macs < describe(build_network(name, 28, 28, 1, 10)).macs <= macs
    large = describe(build_network(name, 224, 224, 3, 10)).macs
    assert large < 2 * macs + 4e6, "a stem's halvings cost most of it"


@pytest.mark.parametrize("name", each({name for name in FURTHER if name.startswith("efficientnet")}))
def test_networks_end_in_logits_have_the_size_in_their_names_and_a_batch_norm_directly_follows_its_convolution(name):
    network = build_network(name, 32, 32, 3, 10)
    assert network.layers[-1].activation.__name__ == "linear"
    for layer in network.layers:
        if type(layer).__name__ == "BatchNormalization":
            before = layer.inbound_nodes[0].inbound_layers
            assert type(before).__name__ in ("Conv2D", "DepthwiseConv2D"), layer.name
    if name.endswith("kb"):
        stated = 1000 * int(name.rpartition("_")[2].removesuffix("kb"))
        assert describe(network).int8_bytes == pytest.approx(stated, rel=0.12)


def test_costs_are_counted_by_hand_for_an_input_that_is_not_square():
    inputs = keras.Input((6, 10, 2))
    x = keras.layers.Conv2D(4, (3, 1), (2, 1), "same", name="convolution")(inputs)
    x = keras.layers.ReLU()(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    cost = describe(keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))))
    named = {layer.name: layer for layer in cost.layers}
    convolution, depthwise = named["convolution"], named["depthwise"]
    assert (convolution.shape, convolution.macs, convolution.parameters) == (
        (3, 10, 4),
        3 * 10 * 3 * 2 * 4,
        3 * 2 * 4 + 4,
    )
    assert (depthwise.shape, depthwise.macs, depthwise.parameters) == ((1, 8, 8), 8 * 9 * 8, 9 * 8 + 8)
    assert (cost.macs, cost.parameters) == (720 + 576 + 40, 28 + 80 + 45)
    # weights; three operators with a kernel of 4, 8 and 5 channels; and one without
    assert cost.int8_bytes == (24 + 72 + 40) + 3 * 730 + 24 * (4 + 8 + 5) + 4 * 170


def test_the_backbones_have_the_published_blocks():
    """Filters, kernel and stride of each stage; Lite2 is 1.1 times as wide and 1.2 times as deep as Lite0."""
    for family, stages in {
        "efficientnet_lite0": ((1, 16, 3, 1), (2, 24, 3, 2), (2, 40, 5, 2), (3, 80, 3, 2), (3, 112, 5, 1), (4, 192, 5, 2), (1, 320, 3, 1)),
        "efficientnet_lite2": ((1, 16, 3, 1), (3, 24, 3, 2), (3, 48, 5, 2), (4, 88, 3, 2), (4, 120, 5, 1), (5, 208, 5, 2), (1, 352, 3, 1)),
    }.items():  # fmt: skip
        expected = [
            (filters, kernel, 1 if index else stride)
            for count, filters, kernel, stride in stages
            for index in range(count)
        ]
        assert [block[:3] for block in blocks_of(family)] == expected
        assert [block[3] for block in blocks_of(family)] == [1] + [6] * (len(expected) - 1)
    assert [name for name in NETWORKS if name.startswith("efficientnet") and is_whole(name)] == [
        "efficientnet_lite0_4000kb", "efficientnet_lite2_5600kb",
    ]  # fmt: skip


def test_articles_convolutions_are_unpadded_from_the_smallest_input_that_allows_it():
    """What is flattened has 64 channels: 1 x 2 places of 18 x 22 pixels unpadded, 4 x 5 of 17 x 22 pixels padded."""
    for rows, places in ((18, 1 * 2), (17, 4 * 5)):
        model = build_network("article", rows, 22, 1, 3)
        (flat,) = (layer for layer in model.layers if type(layer).__name__ == "Flatten")
        assert flat.output.shape[1] == 64 * places


def test_an_input_that_is_too_small_reports_the_smallest_size():
    with pytest.raises(NetworkError, match="at least 4x4, received 3x8"):
        build_network("article", 3, 8, 1, 10)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'article'"):
        build_network("artcle", 32, 32, 3, 10)
    with pytest.raises(NetworkError, match="resnet8 has no options, received pooling"):
        build_network("resnet8", 32, 32, 3, 10, {"pooling": "max"})


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
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 6, 6, 2)).astype(np.float32)
    expected = model(pixels, training=False).numpy()
    fourth = folded(model).get_layer("convolution").get_weights()[0][..., 3]
    before = model.get_weights()
    fake_quantize(model, 1 / 128, 0)
    assert all(map(np.array_equal, before, model.get_weights())), "quantization does not change it"
    fit_biases(model)
    np.testing.assert_allclose(model(pixels, training=False), expected, atol=2e-3 * np.abs(expected).max())
    kernel, bias = folded(model).get_layer("convolution").get_weights()
    np.testing.assert_allclose(bias, [-5, 4, -3, 0.5], atol=1e-5)
    reach = np.abs(kernel).max(axis=(0, 1, 2))
    np.testing.assert_allclose(reach[:3], [5 * LEAST_REACH, 4 * LEAST_REACH, 0], rtol=1e-4)
    assert np.array_equal(kernel[..., 3], fourth)


def test_a_model_whose_biases_fit_is_unchanged(resnet8):
    before = resnet8.get_weights()
    fit_biases(resnet8)
    assert all(map(np.array_equal, before, resnet8.get_weights()))


ROOT = Path(__file__).resolve().parents[2]

TRAININGS = """
from edgecnn.recipe import build_recipe
from edgecnn.train.train import dry_run

for images, batch_size, precision in ((21, 128, "float32"), (127, 33, "bfloat16")):
    train = {"epochs": 1, "learning_rate": 0.003, "schedule": "one-cycle", "label_smoothing": 0.05}
    train |= {"batch_size": batch_size, "precision": precision}
    recipe = build_recipe({"network": {"name": "resnet_25kb"}, "train": train, "qat": {"epochs": 1, "batch_size": batch_size}})
    dry_run(recipe, (32, 32, 3), ("a", "b"), images, steps=2)
"""

STRIDED = ((32, 12, (2, 2)), (31, 12, (2, 2)), (16, 1, (2, 2)), (24, 12, (2, 1)))
"""Input side, input channels (fewer than a block of oneDNN's) and strides."""


def gradients(pixels, kernel, upstream, stride, padding):
    with tf.GradientTape() as tape:
        tape.watch((pixels, kernel))
        total = tf.reduce_sum(tf.nn.conv2d(pixels, kernel, stride, padding) * upstream)
    return tape.gradient(total, (pixels, kernel))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_gradients_of_strided_1x1_convolutions_are_right_and_avoid_the_kernel_that_overruns(padding):
    """TensorFlow 2.21.0's oneDNN writes out of bounds in the gradient of a strided 1x1 convolution with few channels."""
    random = np.random.default_rng(0)
    for side, inputs, (down, right) in STRIDED:
        x = random.standard_normal((3, side, side, inputs)).astype(np.float32)
        picked = x[:, ::down, ::right]
        kernel = random.standard_normal((1, 1, inputs, 16)).astype(np.float32)
        upstream = random.standard_normal((*picked.shape[:3], 16)).astype(np.float32)
        tensors = [tf.constant(array) for array in (x, kernel, upstream)]

        def eager(*tensors, stride=(down, right)):
            return gradients(*tensors, stride, padding)

        compiled = tf.function(eager)
        operations = compiled.get_concrete_function(*tensors).graph.get_operations()
        strides = [list(item.get_attr("strides")) for item in operations if item.type == "Conv2DBackpropFilter"]
        assert strides == [[1, 1, 1, 1]]
        expected = np.zeros_like(x)
        expected[:, ::down, ::right] = upstream @ kernel[0, 0].T
        for run in (compiled, eager):
            of_pixels, of_kernel = run(*tensors)
            np.testing.assert_allclose(of_pixels, expected, atol=1e-4)
            np.testing.assert_allclose(
                of_kernel[0, 0], np.einsum("nhwi,nhwo->io", picked, upstream), atol=1e-3, rtol=1e-4
            )


@pytest.mark.slow
def test_training_on_odd_batches_does_not_crash_the_process():
    """With one thread it would not: two threads share an odd batch unevenly."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", TRAININGS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
