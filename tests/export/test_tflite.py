"""TFLite files and the formats in general."""

import functools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

import onnx
from ai_edge_litert.interpreter import Interpreter

from edgecnn.bundle.file import read_bundle
from edgecnn.data import open_dataset
from edgecnn.data.decoding import balanced
from edgecnn.errors import ExportError, OutputExistsError, RunError
from edgecnn.evaluate.answers import input_contract
from edgecnn.export import (
    ALTERNATIVES,
    EXPORTS,
    alternative,
    convert,
    export,
    export_path,
    io_type,
    source_model,
    tflite,
)
from edgecnn.export.flatbuffer import read
from edgecnn.export.tflite import IMAGES, needs_representative_dataset, representative_dataset
from edgecnn.networks import build_network
from edgecnn.networks.blocks import describe
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import model_bytes, model_from_bytes, predictor
from edgecnn.recipe import build_recipe
from edgecnn.runs import FLOAT_MODEL, Run, create_run
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model
from edgecnn.runtime.selftest import selftest
from edgecnn.stages.bundle import bundle_stage
from edgecnn.stages.verify import verify
from edgecnn.tables import to_json
from edgecnn.train.loop import Batches
from edgecnn.train.phases import fake_quantize, set_batch_norm
from edgecnn.train.ranges import calibrate
from edgecnn.verify.golden import golden_images, time_exports
from edgecnn.verify.parity_report import Gate

RANDOM = np.random.default_rng(5)


def quantized(name, shape, options=None, input_range="centred"):
    """Return a calibrated fake-quantized network with random weights, its recipe and images."""
    keras.utils.set_random_seed(2)
    # all images in one batch: a second batch size would trace the whole network again
    recipe = build_recipe({"network": {"input_range": input_range}})
    images = RANDOM.integers(0, 256, (64, *shape), np.uint8)
    batches = Batches(images=images, classes=np.zeros(64, np.int64), batch_size=64, seed=1, flip=False, shift=0)
    network = build_network(name, *shape, 10, options)
    model = fake_quantize(network, recipe.input_scale, recipe.input_zero_point)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecnn.train.ranges.CALIBRATION_BATCHES", 1)
        calibrate(model, recipe, batches)
    return model, recipe, images


def trained(name, shape):
    """Return a network without zero weights, like a trained one: zero biases would share their bytes in a file."""
    model = build_network(name, *shape, 10)
    model.set_weights([array + RANDOM.uniform(0.01, 0.1, array.shape) for array in model.get_weights()])
    return model


@functools.cache
def untrained_int8(name, shape):
    """Return a network's stated int8 size and its int8 file, with weights from `trained` and the toolkit's initial ranges."""
    model = trained(name, shape)
    return describe(model).int8_bytes, tflite.int8(fake_quantize(model, 1 / 128, 0))


def opened(data):
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter, interpreter.get_input_details()[0], interpreter.get_output_details()[0]


@pytest.mark.parametrize(
    "name",
    ["article", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet8", "resnet_25kb"))],
)
def test_int8_is_int8_throughout_and_answers_like_the_fake_quantized_model(name):
    model, recipe, images = quantized(name, (20, 24, 3))
    data = tflite.int8(model)
    assert tflite.float_tensors(data) == []
    interpreter, entry, output = opened(data)
    assert entry["dtype"] == output["dtype"] == np.int8
    assert entry["quantization"] == (1 / 128, 0)
    scale, zero_point = output["quantization"]
    wanted = predictor(model, recipe.input_scale, recipe.input_zero_point)(images)
    codes = answers(interpreter, entry, output, images)
    # a layer may round a tie the other way and move the output by one code; a wrong conversion moves it by many
    assert np.abs(codes - (np.rint(wanted / scale) + zero_point)).max() <= 2
    unsigned = tflite.int8(model, signature=False)
    assert len(unsigned) < len(data) and np.array_equal(answers(*opened(unsigned), images), codes)


def answers(interpreter, entry, output, images):
    """The output's codes for each image."""
    found = []
    for image in images:
        interpreter.set_tensor(entry["index"], (image ^ 128).view(np.int8)[np.newaxis])
        interpreter.invoke()
        found.append(interpreter.get_tensor(output["index"])[0].astype(int))
    return np.array(found)


def scales_of_weights(data):
    """Return the number of weight scales and of channels for each convolution."""
    convolutions = [item for item in read(data).operators if item.name == "CONV_2D"]
    assert convolutions
    return [(len(item.inputs[1].scale), item.inputs[1].shape[0]) for item in convolutions]


@pytest.mark.slow
def test_weights_have_one_scale_per_channel():
    model, recipe, images = quantized("article", (20, 20, 3))
    set_batch_norm(model, trainable=True)
    dataset = tflite.RepresentativeDataset(images[:8], recipe.input_scale, recipe.input_zero_point)
    files = {
        "qat": tflite.int8(model),
        "qat, stored": tflite.int8(model_from_bytes(model_bytes(model))),
        "ptq": tflite.int8_post_training(build_network("article", 20, 20, 3, 10), dataset),
    }
    for name, data in files.items():
        for scales, channels in scales_of_weights(data):
            assert scales == channels, name


def test_raw_inputs_quantize_to_the_same_code(tiny_network):
    data = tflite.int8(quantized(tiny_network, (12, 12, 1), input_range="raw")[0])
    assert opened(data)[1]["quantization"] == (1.0, -128)


def test_float_in_an_int8_file_is_refused_and_names_the_operator(finished_run):
    with pytest.raises(ExportError, match="CONV_2D"):
        tflite.refuse_float(export_path(finished_run, "tflite", "float32").read_bytes())


def test_expected_bytes_are_close_to_the_real_ones(finished_run):
    model = model_from_bytes(finished_run.read(FLOAT_MODEL, "train"))
    real = export_path(finished_run, "tflite", "int8").stat().st_size
    assert describe(model).int8_bytes == pytest.approx(real, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["article", "resnet8"])
def test_expected_bytes_of_untrained_networks_are_close_to_the_real_ones(name):
    expected, data = untrained_int8(name, (32, 32, 3))
    assert expected == pytest.approx(len(data), rel=0.03)


LADDER = {
    "resnet_25kb": 27_000,
    "resnet8": 96_000,
    "resnet_100kb": 100_000,
    "resnet_300kb": 300_000,
    "resnet_500kb": 524_000,
    "resnet_1000kb": 1_000_000,
    "efficientnet_lite2_1800kb": 1_800_000,
    "efficientnet_lite2_5600kb": 5_600_000,
}
SHAPES = [(28, 28, 1), (32, 32, 3), (96, 96, 3), (224, 224, 3)]
BY_DEFAULT = ("resnet_25kb", (28, 28, 1))
RUNGS = [
    pytest.param(name, bytes_, shape, marks=() if (name, shape) == BY_DEFAULT else pytest.mark.slow)
    for name, bytes_ in LADDER.items()
    for shape in SHAPES
]
"""Every network at every size."""


@pytest.mark.parametrize(("name", "bytes_", "shape"), RUNGS)
def test_the_ladder_is_int8_throughout_and_has_the_stated_sizes(name, bytes_, shape):
    expected, data = untrained_int8(name, shape)
    assert tflite.float_tensors(data) == []
    assert expected == pytest.approx(len(data), rel=0.04)
    # each halving in the stem adds a convolution, which matters only in the smallest networks
    assert len(data) == pytest.approx(bytes_, rel=0.06 if max(shape) <= 32 else 0.3)


def test_exports_report_what_was_written(finished_run, tmp_path):
    for format_ in ("tflite", "onnx"):
        for precision in ("int8", "float32"):
            path = export_path(finished_run, format_, precision)
            assert path.stat().st_size > 10_000
    int8, float32 = (export_path(finished_run, "tflite", name).stat().st_size for name in ("int8", "float32"))
    assert int8 < 0.35 * float32


def test_export_does_not_replace_without_force(own_run):
    path = export_path(own_run, "tflite", "float32")
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match=path.name):
        export(own_run, "tflite", "float32")
    assert export(own_run, "tflite", "float32", force=True) == path
    assert path.read_bytes() == before, "conversion is deterministic"


def test_export_before_training(tmp_path):
    run = create_run(build_recipe({}), tmp_path / "run")
    with pytest.raises(RunError, match="First: edgecnn train"):
        export(run, "tflite", "int8")


def test_no_such_export(own_run):
    with pytest.raises(ExportError, match="int4"):
        export(own_run, "tflite", "int4")


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
def images_formats(finished_run):
    return golden_images(input_contract(finished_run))


@pytest.mark.parametrize(("format_", "precision"), NEW)
def test_float_formats_answer_like_the_float_model(finished_run, images_formats, every, format_, precision):
    data = export_path(every, format_, precision).read_bytes()
    float_ = predictor(model_from_bytes(finished_run.read(FLOAT_MODEL, "train")), 1 / 128, 0)(images_formats)
    opened = model_of(data, format_, finished_run)
    assert opened.engine.input.dtype == opened.engine.output.dtype == np.float32
    largest = np.max(np.abs(float_))
    # float16 keeps 11 bits, int16 activations with int8 weights about 8: either changes an answer only at a near tie
    limit = {"float16": 0.01, "int16x8": 0.1}[precision] * largest
    assert np.max(np.abs(opened.logits(images_formats) - float_)) < limit
    assert (
        len(data)
        < {"float16": 0.6, "int16x8": 0.4}[precision] * export_path(finished_run, format_, "float32").stat().st_size
    )


def test_int16x8_is_int16_inside(every):
    graph = read(export_path(every, "tflite", "int16x8").read_bytes())
    assert [operator.name for operator in graph.operators][:: len(graph.operators) - 1] == ["QUANTIZE", "DEQUANTIZE"]
    inner = {tensor.type for operator in graph.operators[:-1] for tensor in operator.outputs}
    assert inner == {"INT16"}


def test_onnx_float16_is_float16_inside_and_takes_any_batch(finished_run, images_formats, every):
    data = export_path(every, "onnx", "float16").read_bytes()
    assert {tensor.data_type for tensor in onnx.load_from_string(data).graph.initializer} <= {
        onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64,
    }  # fmt: skip
    opened = model_of(data, "onnx", finished_run)
    assert opened.engine.input.shape[0] == -1
    alone = np.concatenate([opened.logits(images_formats[index : index + 1]) for index in range(3)])
    np.testing.assert_allclose(opened.logits(images_formats[:3]), alone, atol=0.02)


@pytest.mark.slow
def test_onnx_float16_answers_the_same_on_cuda(finished_run, images_formats, every):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu and an NVIDIA GPU")
    data = export_path(every, "onnx", "float16").read_bytes()
    cuda = Model(open_engine("onnxruntime", data, "onnx", provider="cuda"), input_contract(finished_run)).logits(
        images_formats
    )
    cpu = model_of(data, "onnx", finished_run).logits(images_formats)
    np.testing.assert_allclose(cuda, cpu, atol=0.01 * np.max(np.abs(cpu)))


def test_weights_beyond_float16_are_refused():
    from edgecnn.export import onnx as onnx_export

    model = build_network("article", 18, 18, 1, 3)
    model.layers[1].bias.assign(np.full(32, 1e5))
    with pytest.raises(ExportError, match="the largest float16 value is 65504"):
        onnx_export.float16(model)


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_int8_with_a_different_io_type_holds_the_same_model(finished_run, images_formats, converted, io):
    usual = model_of(export_path(finished_run, "tflite", "int8").read_bytes(), "tflite", finished_run)
    data = converted(io)
    other = model_of(data, "tflite", finished_run)
    assert other.engine.input.dtype == other.engine.output.dtype == np.dtype(io)
    assert tflite.float_tensors(data, io) == []
    np.testing.assert_allclose(
        other.logits(images_formats), usual.logits(images_formats), atol=1.01 * usual.engine.output.scale
    )
    assert (np.argmax(other.logits(images_formats), 1) == np.argmax(usual.logits(images_formats), 1)).mean() >= 0.95


def test_float_inputs_and_outputs_are_refused_unless_requested(converted):
    data = converted("float32")
    with pytest.raises(
        ExportError, match=r"the int8 TFLite file holds 2 float tensors, at: DEQUANTIZE, QUANTIZE.*; replace it"
    ):
        tflite.refuse_float(data)


def test_an_input_and_output_type_that_is_not_supported_is_refused_with_those_that_are():
    default = {("tflite", "int8"): "int8", ("tflite", "int16x8"): "float32", ("onnx", "int8"): "uint8"}
    assert {pair: io_type(*pair) for pair in default} == default
    assert io_type("tflite", "int8", "float32") == "float32"
    with pytest.raises(ExportError) as refused:
        io_type("onnx", "int8", "float32")
    assert str(refused.value) == "onnx int8 supports input and output of uint8, received float32."


def test_float_inside_is_refused_for_every_io_type():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1))
    cosine = keras.layers.Lambda(lambda x: keras.backend.cos(x))(keras.layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(cosine)))
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    with pytest.raises(ExportError, match="COS"):
        tflite.int8_post_training(model, tflite.RepresentativeDataset(images, 1 / 128, 0), "float32")


def test_a_converter_sees_the_range_from_a_black_to_a_white_corner_in_real_inputs():
    images = np.array([[[50, 60, 70], [80, 90, 100]], [[1, 2, 3], [4, 5, 6]]], np.uint8)[..., np.newaxis]
    first, second = (batch for (batch,) in tflite.RepresentativeDataset(images, 1 / 4, -28).batches())
    assert first.shape == (1, 2, 3, 1) and first.dtype == np.float32
    # a quarter of (pixel - 128 + 28)
    assert first[0, :, :, 0].tolist() == [[-25, -10, -7.5], [-5, -2.5, 38.75]]
    assert second[0, :, :, 0].tolist() == [[-24.75, -24.5, -24.25], [-24, -23.75, -23.5]]
    assert images[0, 0, 0, 0] == 50, "the images themselves are not changed"


def test_the_source_and_the_alternative_of_an_int8_file_follow_the_runs_method(tmp_path):
    def run_of(method, ptq="measured", trained=True):
        run, path = SimpleNamespace(int8_method=method, float_model="float.h5"), tmp_path / "qat.h5"
        path.touch() if trained else path.unlink(missing_ok=True)
        run.file = tmp_path.joinpath
        run.info = SimpleNamespace(int8=SimpleNamespace(validation=SimpleNamespace(ptq=ptq)))
        return run

    assert alternative(run_of("qat")) == ("tflite", "int8-ptq") and alternative(run_of("qat", ptq=None)) is None
    assert alternative(run_of("ptq")) == ("tflite", "int8-qat") and alternative(run_of("ptq", trained=False)) is None
    sources = {
        "qat": ("qat.h5", "float.h5", "qat.h5", "float.h5"),
        "ptq": ("float.h5", "float.h5", "qat.h5", "float.h5"),
    }
    for method, expected in sources.items():
        run = run_of(method)
        precisions = ("int8", "int8-ptq", "int8-qat", "float32")
        assert tuple(source_model(run, precision) for precision in precisions) == expected, method
        needed = [one for one in (*precisions, "int16x8") if needs_representative_dataset(run, one)]
        assert needed == [*(["int8"] if method == "ptq" else []), "int8-ptq", "int16x8"]
    names = [
        export_path(run, *one).name
        for one in (("tflite", "int8"), ("tflite", "int8", "int8"), ("tflite", "int8", "uint8"))
    ]
    assert names == ["model-int8.tflite", "model-int8.tflite", "model-int8-uint8.tflite"]


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
