"""Hidden units put to use: answers stay, the rounding that reaches them shrinks, and other networks are left alone."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.networks import build_network
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.predict import predictor
from edgecnn.train.hidden_units import Firing, Head, find_head, observed, rewritten, scaling, split, used_well

INPUTS, UNITS, CLASSES = 200, 32, 10
DEAD = np.arange(UNITS) % 2 == 1


def hidden(head, inputs):
    return np.maximum(inputs @ head.kernel + head.bias, 0)


def logits(head, inputs):
    return hidden(head, inputs) @ head.outputs + head.output_bias


def in_eight_bits(head, inputs):
    """The logits of a head of which kernels and activations are rounded to their codes; biases are finer."""

    def rounded(values, step):
        return np.rint(values / step) * step

    kernel = rounded(head.kernel, np.abs(head.kernel).max() / 127)
    outputs = rounded(head.outputs, np.abs(head.outputs).max() / 127)
    activations = np.maximum(inputs @ kernel + head.bias, 0)
    return rounded(activations, hidden(head, inputs).max() / 255) @ outputs + head.output_bias


def centred(values):
    return values - values.mean(axis=1, keepdims=True)


@pytest.fixture
def trained():
    """A head of which every second unit never fires and has the largest weights, and inputs as of a ReLU before it."""
    random = np.random.default_rng(0)
    kernel = random.normal(0, 0.1, (INPUTS, UNITS))
    outputs = random.normal(0, 0.1, (UNITS, CLASSES)) + 0.1
    outputs[DEAD] *= 3
    bias = np.where(DEAD, -50.0, 0.5)
    head = Head(kernel, bias, outputs, random.normal(2, 0.3, CLASSES))
    return head, np.maximum(random.normal(0, 1, (2000, INPUTS)), 0)


def test_answers_stay_and_rounding_reaches_them_less(trained):
    head, inputs = trained
    firing = observed(iter(np.split(hidden(head, inputs).astype(np.float32), 20)))
    assert np.array_equal(firing.largest == 0, DEAD)
    found = rewritten(head, firing, np.random.default_rng(1))
    assert [values.shape for values in found] == [values.shape for values in head]
    before = centred(logits(head, inputs))
    assert logits(found, inputs) == pytest.approx(before, abs=0.02 * before.std())
    noise = np.std(centred(in_eight_bits(head, inputs)) - before)
    assert np.std(centred(in_eight_bits(found, inputs)) - before) < 0.6 * noise


def test_every_place_is_used_and_no_range_grows(trained):
    head, inputs = trained
    firing = observed(iter([hidden(head, inputs)]))
    found = rewritten(head, firing, np.random.default_rng(1))
    assert (hidden(found, inputs).max(axis=0) > 0).all()
    assert np.abs(found.kernel).max() <= np.abs(head.kernel[:, ~DEAD]).max() * 128 / 127
    assert np.abs(found.outputs).max() <= np.abs(head.outputs[~DEAD]).max()
    assert hidden(found, inputs).max() <= 1.01 * firing.room
    assert found.outputs.sum(axis=1) == pytest.approx(0, abs=1e-12) and found.output_bias.sum() == pytest.approx(0)


def test_a_unit_is_scaled_up_as_far_as_neither_range_grows():
    kernel = np.array([[1.0, 0.5, 0.1, 0.2], [-0.5, 0.25, -0.1, 0.0]])
    firing = Firing(np.array([8.0, 5.0, 2.0, 0.0]), np.ones(4), 8.0)
    assert scaling(kernel, firing).tolist() == [1.0, 1.6, 4.0, 1.0]
    assert scaling(kernel, firing._replace(room=4.0)).tolist() == [1.0, 1.0, 2.0, 1.0], "never down"


def test_free_places_go_to_the_noisiest():
    noise = np.array([0.0, 40.0, 0.0, 9.0, 0.0, 1.0, 0.0])
    assert split(noise, np.array([0, 2, 4])) == [[1, 0, 2], [3, 4]]  # 40 and 9, then 10 and 9, then 40 / 9 and 9
    assert split(noise, np.array([], int)) == []


def test_a_head_without_a_unit_that_fires_is_left_alone(trained):
    head, _ = trained
    assert rewritten(head, Firing(np.zeros(UNITS), np.zeros(UNITS), 0.0), np.random.default_rng(1)) is head


def dense(*, activation="relu", dropout=False, last="linear", read_twice=False):
    layers = keras.layers
    inputs = keras.Input((4, 4, 1))
    x = y = layers.Dense(8, activation=activation)(layers.Flatten()(inputs))
    if dropout:
        x = layers.Dropout(0.5)(x)
    if read_twice:
        x = layers.Add()([x, layers.Dense(8)(y)])
    return keras.Model(inputs, layers.Dense(3, activation=last)(x))


def test_heads_that_are_found():
    found = [find_head(dense()), find_head(dense(dropout=True)), find_head(build_network("article", 8, 8, 1, 10, {}))]
    assert [[layer.units for layer in head] for head in found] == [[8, 3], [8, 3], [64, 10]]


@pytest.mark.parametrize(
    "model",
    [
        dense(activation="sigmoid"),
        dense(last="softmax"),
        dense(read_twice=True),
        build_network("resnet8", 8, 8, 1, 10, {}),
    ],
    ids=["sigmoid", "softmax", "read twice", "resnet8"],
)
def test_networks_that_are_left_alone(model):
    images = np.zeros((4, *model.input_shape[1:]), np.uint8)
    assert find_head(model) is None and used_well(model, images, 2, 1 / 128, 0, 1) is model


def test_a_network_answers_as_before_and_keeps_its_other_weights():
    keras.utils.set_random_seed(2)
    model = build_network("article", 12, 12, 3, 10, {})
    units = model.layers[-2]
    units.bias.assign(tf.where(tf.range(64) % 3 == 0, -100.0, 0.1))
    images = np.random.default_rng(0).integers(0, 256, (300, 12, 12, 3), np.uint8)
    found, again = (used_well(model, images, 64, 1 / 128, 0, 1) for _ in range(2))
    same = [np.array_equal(*pair) for pair in zip(model.get_weights(), found.get_weights(), strict=True)]
    assert same[:6] == [True] * 6 and same[6:9] == [False] * 3
    assert all(np.array_equal(*pair) for pair in zip(found.get_weights(), again.get_weights(), strict=True))
    before, after = (predictor(each, 1 / 128, 0)(images) for each in (model, found))
    assert tf.nn.softmax(after).numpy() == pytest.approx(tf.nn.softmax(before).numpy(), abs=1e-3)
