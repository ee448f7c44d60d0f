"""Ranges of activations, and kernels rounded to preserve outputs."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import edgecnn.train.phases as qat_phase
from edgecnn.data import open_dataset
from edgecnn.networks import build_network
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor
from edgecnn.recipe import build_recipe
from edgecnn.runtime.decision import softmax
from edgecnn.train import ranges
from edgecnn.train.phases import Qat, fake_quantize
from edgecnn.train.ranges import (
    SCORE_ERROR,
    calibrate,
    find_kernels,
    hessian_of,
    input_rows,
    narrow,
    on_grid,
    round_depthwise,
    round_kernels,
    round_matrix,
)
from edgecnn.train.train import training_batches


def error(logits, low, high):
    difference = softmax(on_grid(logits, low, high).astype(np.float32)) - softmax(logits)
    return float(np.sqrt(np.mean(difference**2)))


def changed(logits, low, high):
    return float(np.mean(on_grid(logits, low, high).argmax(axis=1) != logits.argmax(axis=1)))


def test_a_grid_has_255_steps_and_zero_on_it():
    logits = np.linspace(-3, 9, 1000)[:, np.newaxis]
    found = on_grid(logits, -2.0, 6.0)
    assert len(np.unique(found)) == 256 and 0 in found
    assert found.min() == pytest.approx(-2, abs=8 / 255) and found.max() == pytest.approx(6, abs=8 / 255)


@pytest.mark.parametrize("spread", [1.0, 4.0, 20.0])
def test_narrower_than_the_extremes_and_the_scores_stay(spread):
    logits = np.random.default_rng(0).normal(0, spread, (2000, 10)).astype(np.float32)
    low, high = narrow(logits)
    assert logits.min() <= low <= 0 <= high <= logits.max()
    assert error(logits, low, high) <= SCORE_ERROR * 1.001
    if spread > 1:
        assert high - low < logits.max() - logits.min()


def test_a_finer_grid_changes_fewer_answers():
    """Confident logits: a few are far above all others, but most images are decided near zero."""
    random = np.random.default_rng(1)
    logits = random.normal(0, 3, (5000, 10)).astype(np.float32)
    logits[:500] -= 25
    logits[np.arange(500), random.integers(0, 10, 500)] = 30
    assert changed(logits, *narrow(logits)) < changed(logits, float(logits.min()), float(logits.max()))


def test_scores_stay_however_many_classes_there_are():
    """With many classes most scores are close to 0: their mean would hide changes in the best ones."""
    random = np.random.default_rng(2)
    logits = random.normal(0, 1, (1000, 300)).astype(np.float32)
    logits[np.arange(1000), random.integers(0, 300, 1000)] = random.normal(9, 2, 1000)
    best = softmax(logits).max(axis=1)
    found = softmax(on_grid(logits, *narrow(logits)).astype(np.float32)).max(axis=1)
    assert np.sqrt(np.mean((found - best) ** 2)) <= SCORE_ERROR * np.sqrt(10)


def test_a_network_that_hardly_knows_anything_keeps_its_answers():
    """Scores that are close together survive almost any range; the answers do not."""
    logits = np.random.default_rng(3).normal(0, 0.02, (2000, 10)).astype(np.float32)
    whole = float(logits.min()), float(logits.max())
    assert changed(logits, *narrow(logits)) <= changed(logits, *whole)
    assert changed(logits, whole[0] / 20, whole[1] / 20) > 0.5


def test_if_every_logit_counts_the_range_is_complete():
    logits = np.repeat(np.linspace(-1, 1, 50, dtype=np.float32)[:, np.newaxis], 2, axis=1)
    logits[:, 1] += 0.3
    low, high = narrow(logits)
    assert error(logits, low, high) <= SCORE_ERROR * 1.001
    assert low <= -0.85 and high >= 1.15


RECIPE = {
    "data": {"source": "digits"},
    "train": {"epochs": 1, "batch_size": 128},
    "qat": {"epochs": 0, "batch_size": 128},
}


@pytest.mark.parametrize("per_output", [True, False])
def test_codes_keep_the_products(per_output):
    random = np.random.default_rng(0)
    inputs = random.normal(0, 1, (5000, 6)) @ random.normal(0, 1, (6, 24)) + random.normal(0, 0.2, (5000, 24))
    matrix = random.normal(0, 1, (24, 8))
    step = np.abs(matrix).max(axis=0 if per_output else None) / 15
    codes = round_matrix(matrix, step, inputs.T @ inputs)
    assert codes.shape == matrix.shape and np.array_equal(codes, np.rint(codes)) and np.abs(codes).max() <= 127

    def error(rounded):
        return float(np.mean((inputs @ (rounded * step - matrix)) ** 2))

    assert error(codes) < 0.5 * error(np.rint(matrix / step))


def test_the_codes_of_a_depthwise_kernel_keep_each_channels_products():
    random = np.random.default_rng(0)
    inputs = random.normal(0, 1, (4000, 1, 5)) + random.normal(0, 0.3, (4000, 9, 5))  # neighbours are alike
    matrix = random.uniform(-1, 1, (9, 5))
    matrix[4] = [1, -1, 1, 1, -1]
    step = np.array(1 / 127) * 8
    codes = round_depthwise(matrix, step, hessian_of(inputs))
    assert np.array_equal(codes, np.rint(codes)) and np.abs(codes).max() <= 127

    def error(rounded):
        return float(np.mean(np.einsum("npc,pc->nc", inputs, rounded * step - matrix) ** 2))

    assert error(codes) < 0.5 * error(np.rint(matrix / step))


def test_each_channel_has_a_hessian_of_its_own():
    rows = np.random.default_rng(0).normal(5, 1, (300, 4))
    channels = np.stack([rows, 2 * rows], axis=2)  # of two channels, the second twice the first
    np.testing.assert_allclose(hessian_of(channels), [rows.T @ rows, 4 * rows.T @ rows])


def test_the_ends_of_a_range_do_not_move():
    random = np.random.default_rng(0)
    matrix = random.normal(0, 1, (30, 12)).astype(np.float32)
    inputs = np.abs(random.normal(1, 1, (400, 30)))
    codes = round_matrix(matrix, np.abs(matrix).max(axis=0) / 127, inputs.T @ inputs)
    largest = np.argmax(np.abs(matrix), axis=0)
    assert np.array_equal(codes[largest, range(12)], 127 * np.sign(matrix[largest, range(12)]))


def test_unused_inputs_do_no_harm():
    matrix = np.random.default_rng(0).normal(0, 1, (10, 4))
    step = np.abs(matrix).max(axis=0) / 127
    assert np.array_equal(round_matrix(matrix, step, np.zeros((10, 10))), np.rint(matrix / step))


@pytest.fixture(scope="module")
def calibrated():
    """A fake-quantized resnet8 on digits with its float model, training images and recipe."""
    recipe = build_recipe(RECIPE | {"network": {"name": "resnet8"}})
    dataset = open_dataset(recipe.data)
    split = dataset.load(("train",), height=8, width=8, channels=1, stage="train")["train"]
    keras.utils.set_random_seed(0)
    model = build_network("resnet8", 8, 8, 1, 10, {})
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(tf.random.uniform(layer.gamma.shape, 0.5, 1.5))
    student = fake_quantize(model, recipe.input_scale, recipe.input_zero_point)
    calibrate(student, recipe, training_batches(recipe, split.images, split.classes, split.images.shape[1:3]))
    return recipe, model, student, split.images


@pytest.mark.parametrize(("side", "found"), [(8, 1), (80, 0)])
def test_a_single_layer_is_rounded_unless_it_is_too_wide(side, found):
    inputs = keras.Input((side, side, 1))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    student = fake_quantize(model, 1 / 128, 0)
    images = np.random.default_rng(0).integers(0, 256, (70, side, side, 1), np.uint8)
    student(tf.constant(images, tf.float32), training=True)
    before = student.get_weights()
    assert len(find_kernels(student)) == found
    round_kernels(student, images, 1 / 128, 0, seed=1)
    changed = sum(not np.array_equal(one, other) for one, other in zip(before, student.get_weights(), strict=True))
    assert changed == found


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("size", "strides", "dilation"), [((3, 3), 1, 1), ((3, 2), 2, 1), ((1, 1), 2, 1), ((3, 5), 1, 2), ((2, 2), 3, 1)]
)
def test_the_inputs_of_a_convolutions_kernel(padding, size, strides, dilation):
    """At every output position, the products equal the layer's own."""
    layer = keras.layers.Conv2D(5, size, strides=strides, padding=padding, dilation_rate=dilation, use_bias=False)
    inputs = tf.constant(np.random.default_rng(0).normal(0, 1, (3, 12, 13, 4)), tf.float32)
    outputs = layer(inputs).numpy()
    rows = input_rows(layer, inputs, np.random.default_rng(1), 10**6)
    products = rows @ layer.kernel.numpy().reshape(-1, 5)
    assert rows.dtype == np.float64 and len(rows) == outputs[..., 0].size
    for image, found in zip(outputs.reshape(3, -1, 5), np.split(products, 3), strict=True):
        assert np.sort(found, axis=0) == pytest.approx(np.sort(image, axis=0), abs=1e-5)
    assert len(input_rows(layer, inputs, np.random.default_rng(1), 2)) == 6


def test_blocks_give_the_codes_of_rounding_row_by_row(monkeypatch):
    random = np.random.default_rng(1)
    inputs, matrix = random.normal(size=(300, 21)) @ random.normal(size=(21, 21)), random.normal(size=(21, 6))
    step = np.abs(matrix).max(axis=0) / ranges.CODES
    found = []
    for block in (1, 8, 128):
        monkeypatch.setattr(ranges, "BLOCK", block)
        found.append(ranges.round_matrix(matrix, step, inputs.T @ inputs))
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[2])
    assert not np.array_equal(found[0], np.rint(matrix / step))


@pytest.mark.slow
def test_a_rounded_network_stays_closer_to_its_float_answers(calibrated):
    recipe, model, student, images = calibrated
    answers = {}
    for name, network in (("float", model), ("nearest", student)):
        answers[name] = predictor(network, recipe.input_scale, recipe.input_zero_point)(images[:500])
    before = student.get_weights()
    kernels = find_kernels(student)
    assert [kernel.layer.name for kernel in kernels if isinstance(kernel.layer, keras.layers.Dense)] == [
        model.layers[-1].name
    ]
    assert len(kernels) == sum(isinstance(layer, keras.layers.Conv2D | keras.layers.Dense) for layer in model.layers)

    round_kernels(student, images, recipe.input_scale, recipe.input_zero_point, seed=1)
    try:
        for kernel in kernels:
            codes = kernel.variable.numpy() / kernel.step
            assert np.abs(codes - np.rint(codes)).max() < 1e-3, "every weight is a code's"
        answers["gptq"] = predictor(student, recipe.input_scale, recipe.input_zero_point)(images[:500])
        student(tf.constant(images[:8], tf.float32), training=True)  # takes the kernels' ranges from the kernels
        assert all(
            np.allclose(kernel.step, again.step) for kernel, again in zip(kernels, find_kernels(student), strict=True)
        )
    finally:
        student.set_weights(before)

    def departed(name):
        return float(np.std(answers[name] - answers["float"]))

    assert departed("gptq") < departed("nearest")


@pytest.mark.guard
@pytest.mark.parametrize("harm", [pytest.param(False, marks=pytest.mark.slow), True])
def test_only_improvements_are_kept(monkeypatch, tiny_network, harm):
    """If rounding degrades the network, the weights use the nearest codes; "nearest" never rounds."""
    rounded = []

    def spoil(student, *args, **kwargs):
        rounded.append(student)
        if harm:
            for kernel in find_kernels(student):
                kernel.variable.assign(tf.zeros_like(kernel.variable))
        else:
            round_kernels(student, *args, **kwargs)

    monkeypatch.setattr(qat_phase, "round_kernels", spoil)
    keras.utils.set_random_seed(0)
    model = build_network(tiny_network, 8, 8, 1, 10)
    recipe = build_recipe(RECIPE)
    splits = open_dataset(recipe.data).load(("train", "validation"), height=8, width=8, channels=1, stage="train")
    validation = splits["validation"].images, splits["validation"].classes
    batches = training_batches(recipe, splits["train"].images, splits["train"].classes, (8, 8))
    reference = predictor(model, recipe.input_scale, recipe.input_zero_point)(validation[0])
    phases = {}
    for rounding in (None, "nearest"):
        recipe = build_recipe(RECIPE | {"qat": RECIPE["qat"] | {"rounding": rounding}})
        phases[rounding] = Qat(recipe, model, validation, reference, batches)
        phases[rounding].begin()
    assert len(rounded) == 1
    chosen, nearest = phases.values()
    assert nearest.rounding == "nearest" and chosen.nearest == nearest.best.score
    mine, others = (phase.finish().get_weights() for phase in (chosen, nearest))
    same = all(np.array_equal(one, other) for one, other in zip(mine, others, strict=True))
    assert (chosen.rounding, same) == (("nearest", True) if harm else ("gptq", False))
