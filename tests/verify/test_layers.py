import json

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.errors import RunError
from edgecnn.export import export_path, tflite
from edgecnn.export.flatbuffer import read
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import model_from_bytes
from edgecnn.runs import QAT_MODEL
from edgecnn.train.phases import fake_quantize
from edgecnn.verify.layers import HINTS, Noise, Pair, layer_error, layer_errors, matched


def errors(run):
    return layer_errors(run, open_dataset(run.recipe.data))


def test_every_layer_of_a_good_model_is_matched_and_quiet(finished_run):
    found = errors(finished_run)
    assert found.unmatched == ()
    assert {item.layer for item in found.layers} == {
        "conv2d", "max_pooling2d", "conv2d_1", "max_pooling2d_1", "conv2d_2", "dense", "dense_1",
    }  # fmt: skip
    decibels = [item.sqnr_db for item in found.layers]
    assert decibels == sorted(decibels) and decibels[0] > 15


def test_a_wrong_bias_shows_from_its_layer_on(own_run, plant):
    before = {item.layer: item.sqnr_db for item in errors(own_run).layers}
    plant(own_run, 2, lambda weights, bias: np.copyto(bias.codes, np.rint(-0.3 / bias.scale).astype(np.int32)))
    after = {item.layer: item.sqnr_db for item in errors(own_run).layers}
    for layer in ("conv2d", "conv2d_1"):
        assert after[layer] == pytest.approx(before[layer], abs=0.5), "before the fault nothing changes"
    assert after["conv2d_2"] < 0.6 * before["conv2d_2"]


def test_too_narrow_a_range_is_named(own_run):
    model = model_from_bytes(own_run.read(QAT_MODEL, "train"))
    for variable in model.get_layer("quant_conv2d_1").weights:
        if "activation_max" in variable.name:
            variable.assign(variable / 8)
    export_path(own_run, "tflite", "int8").write_bytes(tflite.int8(model))
    found = {item.layer: item for item in errors(own_run).layers}
    assert found["conv2d_1"].saturated > 0.01
    assert found["conv2d_1"].hint == HINTS["saturated range"]


def test_hints_from_figures(finished_run):
    graph = read(export_path(finished_run, "tflite", "int8").read_bytes())
    convolution = next(operator for operator in graph.operators if operator.name == "CONV_2D")
    random = np.random.default_rng(0)
    real = random.normal(0, 1, (100, 16)).astype(np.float32)
    real[:, 3] *= 40
    noise = Noise(16)
    noise.add(real, np.clip(np.rint(real), -127, 126).astype(np.int8), 1.0, 0)
    item = layer_error(Pair("conv", convolution, convolution.outputs[0]), noise)
    assert item.channel_ratio > 20 and item.hint == HINTS["outlier channels"]


def test_signal_to_noise_in_decibels():
    real = np.full((10, 2), 4.0, np.float32)
    noise = Noise(2)
    noise.add(real, np.full((10, 2), 9, np.int8), 0.5, 0)  # 4.5 for 4
    assert noise.sqnr_db == pytest.approx(20 * np.log10(8))
    assert noise.channel_ratio == 1.0
    assert noise.saturated == 0


def test_fused_and_residual_layers_are_matched():
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.ReLU(name="first")(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inputs)))
    branch = layers.BatchNormalization(name="branch")(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.ReLU(name="joined")(layers.Add()([x, branch]))
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    model = keras.Model(inputs, layers.Dense(3, name="logits")(x))
    pairs, unmatched = matched(model, read(tflite.int8(fake_quantize(model, 1 / 128, 0))))
    assert unmatched == []
    assert [(pair.layer, pair.operator.name) for pair in pairs] == [
        ("first", "CONV_2D"), ("branch", "CONV_2D"), ("joined", "ADD"), ("pooled", "MEAN"), ("logits", "FULLY_CONNECTED"),
    ]  # fmt: skip


def test_the_command(edgecnn, own_run):
    found = json.loads(edgecnn("layers", own_run.path, "--json").out)
    assert found["images"] > 50
    printed = edgecnn("layers", own_run.path).out
    assert all(item["layer"] in printed for item in found["layers"])
    export_path(own_run, "tflite", "int8").unlink()
    with pytest.raises(RunError, match=r"First: edgecnn export .* --format tflite --int8"):
        errors(own_run)
