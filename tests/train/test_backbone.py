"""A network that starts from ImageNet: what fine-tuning keeps, per-channel int8, and what the run and the card say about the weights."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from sklearn.datasets import load_sample_images

from edgecnn.data import open_dataset
from edgecnn.evaluate.answers import contract_of, device_model
from edgecnn.export import tflite
from edgecnn.export.flatbuffer import read
from edgecnn.networks import build_network
from edgecnn.networks.blocks import RUNGS
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import even_depthwise, model_from_bytes, predictor
from edgecnn.networks.pretrained import SOURCES, load_weights, read_weights, source_of, tuned_variables
from edgecnn.recipe import build_recipe
from edgecnn.report.card import origin_lines
from edgecnn.runs import FLOAT_MODEL, QAT_MODEL, create_run
from edgecnn.train.loop import Batches
from edgecnn.train.phases import fake_quantize
from edgecnn.train.ranges import calibrate, measure, round_kernels
from edgecnn.train.train import train

NETWORK = "efficientnet_lite0_150kb"


@pytest.fixture(scope="module", autouse=True)
def short():
    """Cut the network after four blocks, the fourth of which has the larger kernel: it is built in two thirds of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNGS, NETWORK, 4)
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run on digits with 32 pixels and one epoch, the int8 file of its fake-quantized model, and that model."""
    recipe = build_recipe(
        {
            "data": {"source": "digits", "test_fraction": 0.5, "validation_fraction": 0.3},
            "network": {"name": NETWORK, "height": 32, "width": 32},
            "train": {
                "epochs": 1,
                "augment": "photo",
                "flip": "no",
                "batch_size": 64,
                "schedule": "one-cycle",
                "learning_rate": 0.0001,
            },
            "qat": {"epochs": 0, "rounding": "nearest"},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tuned"))
        run = create_run(recipe, tmp_path_factory.mktemp("runs") / "run")
        train(recipe, open_dataset(recipe.data), run, lambda progress: None)
    model = model_from_bytes(run.read(QAT_MODEL, "train"))
    return run, tflite.int8(model), model


@pytest.fixture(scope="module")
def pretrained():
    model = build_network(NETWORK, 32, 32, 1, 10)
    load_weights(model, read_weights(SOURCES[0]))
    return model


def test_it_learns_from_few_images(tuned):
    run, *_ = tuned
    assert run.info.int8.validation.calibrated.agreement > 0.9
    assert run.info.int8.validation.float.accuracy > 0.7, "with ten classes, after one epoch on a few hundred images"


def test_run_and_card_name_the_weights_and_their_licence(tuned):
    run, *_ = tuned
    init = run.info.init
    assert (init.licence, init.sha256) == ("Apache-2.0", SOURCES[0].sha256)
    assert f"Started from {init.run}, licence Apache-2.0." in origin_lines(run.info)


def test_all_layers_of_a_small_cut_learn_and_all_statistics_stay(tuned, pretrained):
    trained = model_from_bytes(tuned[0].read(FLOAT_MODEL, "train"))
    for mine, given in zip(trained.layers, pretrained.layers, strict=True):
        for one, other in zip(mine.weights, given.weights, strict=True):
            assert np.array_equal(one.numpy(), other.numpy()) == ("moving" in one.name), one.name


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0_1200kb",
        *(pytest.param(f"efficientnet_{name}", marks=pytest.mark.slow) for name in ("lite0_4000kb", "lite2_1800kb")),
    ],
)
def test_early_layers_of_a_large_network_stay(name):
    source, model = source_of(name), build_network(name, 32, 32, 1, 10)
    names = [layer.name for layer in model.layers]
    later = model.layers[names.index(source.first_tuned) :]
    expected = [variable.name for layer in later for variable in layer.trainable_variables]
    assert [variable.name for variable in tuned_variables(model, source, name)] == expected
    assert 0.5 < len(expected) / len(model.trainable_variables) < 1


def test_int8_is_int8_throughout_with_one_scale_per_channel(tuned):
    graph = read(tuned[1])
    assert tflite.float_tensors(tuned[1]) == []
    depthwise = [operator for operator in graph.operators if operator.name == "DEPTHWISE_CONV_2D"]
    assert len(depthwise) == 4
    for operator in depthwise:
        kernel = operator.inputs[1]
        assert len(kernel.scale) == kernel.shape[-1] > 1 and len(set(kernel.scale)) > 1


def test_no_bias_is_clipped_to_int32(tuned):
    graph = read(tuned[1])
    biases = [
        np.frombuffer(operator.inputs[2].data, np.int32).astype(np.int64)
        for operator in graph.operators
        if "CONV_2D" in operator.name
    ]
    assert len(biases) == 12
    assert max(np.abs(bias).max() for bias in biases) < 2**30


def reaches(layer):
    """The largest weight of each channel of a depthwise layer, without channels of zeros."""
    kernel = next(values for values in layer.get_weights() if values.ndim == 4)
    reach = np.abs(kernel).max(axis=(0, 1, 3))
    return reach[reach > 0]


def test_kernels_of_even_size_answer_as_before_and_are_quantized(pretrained, tuned):
    even = even_depthwise(pretrained)
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 1), np.uint8)
    before, after = (predictor(model, 1 / 128, 0)(images) for model in (pretrained, even))
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    *_, quantized = tuned
    found = [
        reaches(layer) for model in (even, quantized) for layer in model.layers if layer.name.endswith("_depthwise")
    ]
    assert len(found) == 8
    np.testing.assert_allclose(np.concatenate(found), 1, rtol=1e-6)


@pytest.mark.guard
def test_ranges_from_the_float_model_are_those_that_calibration_would_find(pretrained):
    """The student's own activations differ from the float model's by its rounding only."""
    recipe = build_recipe({})
    images = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 1), np.uint8)
    found, expected = fake_quantize(pretrained, 1 / 128, 0), fake_quantize(pretrained, 1 / 128, 0)
    measure(found, pretrained, recipe, [images])
    calibrate(
        expected, recipe, Batches(images=images, classes=np.zeros(40, int), batch_size=40, seed=1, flip=False, shift=0)
    )
    compared = 0
    for mine, theirs in zip(found.variables, expected.variables, strict=True):
        if "post_activation" in mine.name or mine.name.rpartition("/")[2] in ("kernel_min:0", "kernel_max:0"):
            reach = max(np.abs(theirs.numpy()).max(), 0.1)
            np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=0.1 * reach, err_msg=mine.name)
            compared += 1
    assert compared == 20


@pytest.mark.guard
def test_rounding_with_shifts_keeps_the_features_nearer_to_the_float_models():
    """Depthwise kernels are rounded too, and the mean of each channel does not move."""
    photos = [image for image in load_sample_images().images for _ in range(20)]
    random = np.random.default_rng(1)
    corners = [random.integers(0, np.array(photo.shape[:2]) - 64) for photo in photos]
    images = np.stack(
        [photo[top : top + 64, left : left + 64] for photo, (top, left) in zip(photos, corners, strict=True)]
    )
    model = build_network(NETWORK, 64, 64, 3, 2)
    load_weights(model, read_weights(SOURCES[0]))
    body = keras.Model(model.inputs, model.layers[-1].input)
    expected = predictor(body, 1 / 128, 0)(images)
    student = fake_quantize(model, 1 / 128, 0)
    measure(student, model, build_recipe({}), [images])
    before, errors = student.get_weights(), []
    inner = predictor(keras.Model(student.input, student.layers[-1].input), 1 / 128, 0)
    for round_ in (
        lambda: None,
        lambda: round_kernels(student, images, 1 / 128, 0, 1, rows=4_000),
        lambda: round_kernels(student, images, 1 / 128, 0, 1, rows=4_000, shift=True),
    ):
        student.set_weights(before)
        round_()
        errors.append(inner(images) - expected)
    spread = [float(error.std(axis=0).mean()) for error in errors]
    shifted = [float(np.abs(error.mean(axis=0)).mean()) for error in errors]
    assert spread[2] < spread[0] and shifted[2] < 0.5 * shifted[0] and shifted[2] < shifted[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["efficientnet_lite0_1200kb", "efficientnet_lite2_1800kb", "efficientnet_lite2_5600kb"]
)
def test_a_rung_becomes_int8_with_a_tenth_of_the_spread_as_error(name):
    """ImageNet weights and a random head on crops of photos: the classes of such a head are within a few steps of each other."""
    photos = [image for image in load_sample_images().images for _ in range(32)]
    random = np.random.default_rng(1)
    corners = [random.integers(0, np.array(photo.shape[:2]) - 96) for photo in photos]
    images = np.stack(
        [photo[top : top + 96, left : left + 96] for photo, (top, left) in zip(photos, corners, strict=True)]
    )
    recipe = build_recipe({})
    keras.utils.set_random_seed(2)
    model = build_network(name, 96, 96, 3, 10)
    load_weights(model, read_weights(source_of(name)))
    fake = fake_quantize(model, recipe.input_scale, recipe.input_zero_point)
    batches = Batches(images=images, classes=np.zeros(64, np.int64), batch_size=32, seed=1, flip=False, shift=0)
    calibrate(fake, recipe, batches)
    expected = predictor(fake, recipe.input_scale, recipe.input_zero_point)(images)
    int8 = device_model(tflite.int8(fake), "tflite", contract_of(recipe, images.shape[1:]))
    error = np.sqrt(np.mean((int8.logits(images) - expected) ** 2))
    assert error < 0.1 * expected.std(axis=0).mean()
