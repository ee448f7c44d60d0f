"""Golden vectors, errors by layer, the matrix of engines, and networks that can be quantized."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import jsonschema

from edgecnn import images
from edgecnn.bundle.file import read_bundle
from edgecnn.bundle.manifest import InputContract
from edgecnn.data import open_dataset
from edgecnn.errors import EngineError, NetworkError, RunError, SelftestError
from edgecnn.export import export_path, tflite
from edgecnn.export.flatbuffer import read
from edgecnn.networks import build_network
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import folded, model_from_bytes
from edgecnn.report.sections import matrix_section
from edgecnn.runs import QAT_MODEL
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.selftest import require_pass, selftest
from edgecnn.stages.bundle import bundle_path
from edgecnn.stages.verify import verify
from edgecnn.tables import to_json
from edgecnn.train.phases import fake_quantize
from edgecnn.verify.golden import PHOTOS, golden_images, golden_photos
from edgecnn.verify.layers import HINTS, Noise, Pair, layer_error, layer_errors, matched
from edgecnn.verify.matrix import find_python
from edgecnn.verify.model_files import check_quantizable, refused_layers


@pytest.fixture(scope="module")
def bundle(finished_run):
    return read_bundle(bundle_path(finished_run))


def failure(bundle):
    with pytest.raises(SelftestError) as error:
        require_pass(selftest(bundle, ["litert"]))
    return str(error.value)


def test_all_three_layers_are_checked_and_pass(bundle):
    report = selftest(bundle)
    assert [(layer.layer, layer.images, layer.passed) for layer in report.layers] == [
        ("decode", len(PHOTOS), True),
        ("resize", len(PHOTOS), True),
    ]
    assert report.passed


def test_a_different_decoder_is_named(bundle, monkeypatch):
    decode = images.decode
    monkeypatch.setattr(
        images, "decode", lambda data, channels, least: decode(data, channels).point(lambda value: value ^ 1)
    )
    assert failure(bundle).startswith(f"the layer decode does not reproduce the bundle's bytes for {len(PHOTOS)} of")


def test_a_different_resize_is_named(bundle, monkeypatch):
    def nearest(image, contract):
        return np.asarray(image.resize((contract.width, contract.height), Image.Resampling.NEAREST))[:, :, np.newaxis]

    monkeypatch.setattr("edgecnn.runtime.selftest.fitted", nearest)
    assert failure(bundle).startswith(f"the layer resize does not reproduce the bundle's bytes for {len(PHOTOS)} of")


def test_ignoring_exif_is_named(bundle, monkeypatch):
    monkeypatch.setattr(images, "TURNS", {})
    assert "golden/encoded/turned.jpg" in failure(bundle)


def test_a_different_model_is_named(bundle, monkeypatch):
    monkeypatch.setattr("edgecnn.runtime.model.to_codes", lambda pixels: (pixels // 2).view(np.int8))
    assert failure(bundle).startswith("models/int8.tflite on litert does not reproduce the bundle's answers")


def test_photos_are_drawn_the_same_each_time_and_differ_from_each_other():
    contract = InputContract(height=20, width=24, channels=3, fit="crop", scale=1 / 128, zero_point=0)
    files, entries = golden_photos(contract)
    again, entries_again = golden_photos(contract)
    assert files == again and entries == entries_again
    assert len({entry.resized_sha256 for entry in entries}) == len(PHOTOS)
    drawn = golden_images(contract)
    assert drawn.min() == 0 and drawn.max() == 255


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
    file = read(tflite.int8(fake_quantize(model, 1 / 128, 0)))
    for named in (model, folded(model)):  # a folded BatchNorm keeps its name
        pairs, unmatched = matched(named, file)
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


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    import shutil

    from edgecnn.runs import Run

    path = tmp_path_factory.mktemp("matrix") / "tiny"
    shutil.copytree(finished_run.path, path)
    run = Run(path)
    return verify(run, open_dataset(run.recipe.data), matrix=True)


def test_every_engine_is_compared_with_every_other(report, schema_of):
    jsonschema.validate(to_json(report), schema_of("parity"))
    ran = [item for item in report.matrix if item.accuracy is not None]
    assert [item.name.split()[0] for item in ran] == ["Keras", "litert", "onnxruntime", "litert"]
    assert ["XNNPACK" in ran[1].name, "reference kernels" in ran[3].name] == [True, True]
    pairs = {(item.name, other.name): other for item in ran for other in item.against}
    assert len(pairs) == len(ran) * (len(ran) - 1)
    for (one, other), found in pairs.items():
        back = pairs[other, one]
        assert (found.agreement, found.largest_lsb) == (back.agreement, back.largest_lsb)
        assert found.agreement >= 0.98 and found.largest_lsb <= 5
    _, notes, table = matrix_section(report.matrix)
    assert all(item.name in str((notes, table)) for item in report.matrix)


def test_a_missing_engine_is_named_with_its_reason(report):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here, so it ran")
    (note,) = [item.note for item in report.matrix if item.accuracy is None]
    assert "CUDAExecutionProvider" in note


def test_reference_kernels_are_not_a_delegate(finished_run):
    data = export_path(finished_run, "tflite", "int8").read_bytes()
    assert open_engine("litert", data, "tflite", provider="reference").provider == "reference kernels"


def test_an_invalid_tflite_python(own_run, tmp_path):
    dataset = open_dataset(own_run.recipe.data)
    with pytest.raises(EngineError, match="program not found"):
        verify(own_run, dataset, matrix=True, tflite_python=tmp_path / "python")
    broken = tmp_path / "python"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(EngineError, match="cannot be run: "):
        verify(own_run, dataset, matrix=True, tflite_python=broken)
    with pytest.raises(EngineError, match=r"did not run the model: .*tflite_runtime"):
        verify(own_run, dataset, matrix=True, tflite_python=Path(sys.executable))


def test_a_python_is_given_by_relative_path_or_by_name_on_path(tmp_path, monkeypatch):
    """A virtual environment's link is not resolved: its target knows nothing about the environment."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    link = tmp_path / "venv" / "bin" / "python"
    link.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert find_python(Path("venv/bin/python")) == find_python(link) == link
    monkeypatch.setenv("PATH", "venv/bin")
    assert find_python(Path("python")) == link


def test_tflite_runtime_in_its_own_environment(own_run, root):
    python = root / ".venv-tflite-3.11" / "bin" / "python"
    if not python.exists():
        pytest.skip(
            f"no virtual environment {python.parents[1].name}: make test makes it where its Python is installed"
        )
    python = Path(os.path.relpath(python))
    report = verify(own_run, open_dataset(own_run.recipe.data), matrix=True, tflite_python=python)
    (there,) = [item for item in report.matrix if item.name.startswith("tflite_runtime ")]
    assert all(other.agreement >= 0.98 for other in there.against)
