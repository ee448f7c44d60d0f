"""Every export format of the tiny run: the file's content, its answers, and the reported speed."""

import functools
import json
import shutil

import numpy as np
import onnx
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.bundle.read import read_bundle
from edgecnn.data import open_dataset
from edgecnn.data.balanced import balanced
from edgecnn.errors import ExportError, RunError
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import ALTERNATIVES, EXPORTS, convert, export, export_path, tflite
from edgecnn.export.flatbuffer import read
from edgecnn.export.representative import IMAGES, representative_dataset
from edgecnn.networks import build_network
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.runs import FLOAT_MODEL, Run
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.runtime.selftest import selftest
from edgecnn.stages.bundle import bundle_stage
from edgecnn.stages.verify import verify
from edgecnn.tables import to_json
from edgecnn.verify import Gate
from edgecnn.verify.golden import golden_images
from edgecnn.verify.speed import time_exports

NEW = (("tflite", "float16"), ("tflite", "int16x8"), ("onnx", "float16"))


def model_of(data, format_, run):
    return Model(open_engine(None, data, format_), input_contract(run))


@pytest.fixture(scope="module")
def every(finished_run, tmp_path_factory):
    """A copy of the finished run with every format."""
    run = Run(tmp_path_factory.mktemp("formats") / finished_run.name)
    shutil.copytree(finished_run.path, run.path)
    for format_, precision in NEW:
        export(run, format_, precision)
    return run


@pytest.fixture(scope="module")
def converted(every):
    """Return the int8 TFLite file with an io type, converted once for all tests."""
    return functools.cache(lambda io: convert(every, "tflite", "int8", io))


@pytest.fixture(scope="module")
def images(finished_run):
    return golden_images(input_contract(finished_run))


@pytest.mark.parametrize(("format_", "precision"), NEW)
def test_float_formats_answer_like_the_float_model(finished_run, images, every, format_, precision):
    data = export_path(every, format_, precision).read_bytes()
    float_ = predictor(model_from_bytes(finished_run.read(FLOAT_MODEL, "train")), 1 / 128, 0)(images)
    opened = model_of(data, format_, finished_run)
    assert opened.engine.input.dtype == opened.engine.output.dtype == np.float32
    largest = np.max(np.abs(float_))
    # float16 keeps 11 bits, int16 activations with int8 weights about 8: either changes an answer only at a near tie
    limit = {"float16": 0.01, "int16x8": 0.1}[precision] * largest
    assert np.max(np.abs(opened.logits(images) - float_)) < limit
    assert (
        len(data)
        < {"float16": 0.6, "int16x8": 0.4}[precision] * export_path(finished_run, format_, "float32").stat().st_size
    )


def test_int16x8_is_int16_inside(every):
    graph = read(export_path(every, "tflite", "int16x8").read_bytes())
    assert [operator.name for operator in graph.operators][:: len(graph.operators) - 1] == ["QUANTIZE", "DEQUANTIZE"]
    inner = {tensor.type for operator in graph.operators[:-1] for tensor in operator.outputs}
    assert inner == {"INT16"}


def test_onnx_float16_is_float16_inside_and_takes_any_batch(finished_run, images, every):
    data = export_path(every, "onnx", "float16").read_bytes()
    assert {tensor.data_type for tensor in onnx.load_from_string(data).graph.initializer} <= {
        onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64,
    }  # fmt: skip
    opened = model_of(data, "onnx", finished_run)
    assert opened.engine.input.shape[0] == -1
    alone = np.concatenate([opened.logits(images[index : index + 1]) for index in range(3)])
    np.testing.assert_allclose(opened.logits(images[:3]), alone, atol=0.02)


@pytest.mark.gpu
def test_onnx_float16_answers_the_same_on_cuda(finished_run, images, every):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu and an NVIDIA GPU")
    data = export_path(every, "onnx", "float16").read_bytes()
    cuda = Model(open_engine("onnxruntime", data, "onnx", provider="cuda"), input_contract(finished_run)).logits(images)
    cpu = model_of(data, "onnx", finished_run).logits(images)
    np.testing.assert_allclose(cuda, cpu, atol=0.01 * np.max(np.abs(cpu)))


def test_weights_beyond_float16_are_refused():
    from edgecnn.export import onnx as onnx_export

    model = build_network("article", 18, 18, 1, 3)
    model.layers[1].bias.assign(np.full(32, 1e5))
    with pytest.raises(ExportError, match="the largest float16 value is 65504"):
        onnx_export.float16(model)


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_int8_with_a_different_io_type_holds_the_same_model(finished_run, images, converted, io):
    usual = model_of(export_path(finished_run, "tflite", "int8").read_bytes(), "tflite", finished_run)
    data = converted(io)
    other = model_of(data, "tflite", finished_run)
    assert other.engine.input.dtype == other.engine.output.dtype == np.dtype(io)
    assert tflite.float_tensors(data, io) == []
    np.testing.assert_allclose(other.logits(images), usual.logits(images), atol=1.01 * usual.engine.output.scale)
    assert (np.argmax(other.logits(images), 1) == np.argmax(usual.logits(images), 1)).mean() >= 0.95


def test_float_inputs_and_outputs_are_refused_unless_requested(converted):
    data = converted("float32")
    with pytest.raises(
        ExportError, match=r"the int8 TFLite file holds 2 float tensors, at: DEQUANTIZE, QUANTIZE.*; replace it"
    ):
        tflite.refuse_float(data)


def test_float_inside_is_refused_for_every_io_type():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1))
    cosine = keras.layers.Lambda(lambda x: keras.backend.cos(x))(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(cosine)))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    with pytest.raises(ExportError, match="COS"):
        tflite.int8_post_training(model, tflite.RepresentativeDataset(images, 1 / 128, 0), "float32")


def test_impossible_exports(finished_run):
    with pytest.raises(ExportError, match="cannot export as onnx int16x8"):
        convert(finished_run, "onnx", "int16x8")
    with pytest.raises(ExportError, match="received uint8"):
        convert(finished_run, "tflite", "float32", "uint8")


def test_a_representative_dataset_is_balanced_seeded_and_from_training_only(own_run):
    dataset = open_dataset(own_run.recipe.data)
    split = dataset.load(("train",), **vars(own_run.info.input), stage="export")["train"]
    chosen = balanced(split.classes, 57, seed=3)
    assert len(set(chosen)) == 57
    counts = np.bincount(split.classes[chosen])
    assert counts.min() >= 5 and counts.max() <= 6
    assert np.array_equal(chosen, balanced(split.classes, 57, seed=3))
    assert not np.array_equal(chosen, balanced(split.classes, 57, seed=4))
    assert len(balanced(split.classes, 10**6, seed=1)) == len(split.classes)
    drawn = representative_dataset(own_run)
    training = {image.tobytes() for image in split.images}
    assert len(drawn.images) == IMAGES and all(image.tobytes() in training for image in drawn.images)
    recorded = own_run.info.representative_dataset
    representative_dataset(own_run)
    assert own_run.info.representative_dataset == recorded and recorded.split == "train"


def test_a_representative_dataset_from_other_data_is_refused(own_run):
    text = own_run.file("run.json").read_text()
    own_run.file("run.json").write_text(text.replace(own_run.info.data.split_hashes["train"], "0" * 64))
    with pytest.raises(RunError, match=r"train .*digits"):
        convert(own_run, "tflite", "int16x8")


@pytest.mark.usefixtures("blank_plots")
def test_every_format_is_verified_bundled_and_replayed(every, tmp_path):
    report = verify(every, open_dataset(every.recipe.data), gate=Gate(max_drop=2.0))
    assert {(model.format, model.precision) for model in report.models[2:]} == {*EXPORTS, ALTERNATIVES[0]}
    assert report.passed
    path, _ = bundle_stage(every, tmp_path / "all.edgecnn")
    bundle = read_bundle(path)
    assert bundle.manifest.provenance["representative_dataset"] == to_json(every.info.representative_dataset)
    rows = selftest(bundle).rows
    assert len(rows) == len(EXPORTS) and all(row.passed for row in rows), rows


def test_the_faster_format_is_named(finished_run, own_run):
    timing = time_exports(finished_run, "tflite")
    medians = {name: item.p50_ms for name, item in timing.measured.items()}
    assert timing.faster == min(medians, key=medians.get)
    assert timing.text.startswith(f"{timing.faster} is faster here") and "one thread" in timing.text
    export_path(own_run, "onnx", "float32").unlink()
    assert to_json(time_exports(own_run, "onnx")) == {
        "text": "not timed: no onnx float32 to compare with. "
        f"First: edgecnn export {own_run.path} --format onnx --float32"
    }


def test_a_missing_engine_does_not_stop_an_export(own_run, edgecnn, monkeypatch):
    monkeypatch.setattr("edgecnn.runtime.engines.is_installed", lambda name: False)
    result = edgecnn("export", own_run.path, "--format", "tflite", "--float32", "--force", "--json")
    assert result.code == 0, result.err
    written = json.loads(result.out)
    assert "faster" not in written["timing"] and "litert" in written["timing"]["text"]


def test_options_that_exclude_each_other(edgecnn):
    for options in (
        ("--int8", "--float16"),
        ("--float32", "--io", "uint8"),
        ("--io", "int4"),
        ("--format", "onnx", "--int16x8"),
    ):
        assert edgecnn("export", *options).code == 2, options
