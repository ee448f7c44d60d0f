import functools
import hashlib

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from ai_edge_litert.interpreter import Interpreter

from edgecnn.errors import ExportError, OutputExistsError, RunError
from edgecnn.export import export, export_path, tflite
from edgecnn.export.flatbuffer import read
from edgecnn.networks import build_network
from edgecnn.networks.blocks import describe
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import model_bytes, model_from_bytes, predictor
from edgecnn.recipe import build_recipe
from edgecnn.runs import FLOAT_MODEL, create_run
from edgecnn.train.loop import Batches
from edgecnn.train.phases import fake_quantize, set_batch_norm
from edgecnn.train.ranges import calibrate

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
    result = export(own_run, "tflite", "float32", force=True)
    assert path.read_bytes() == before, "conversion is deterministic"
    assert result.sha256 == hashlib.sha256(before).hexdigest()
    assert result.size_bytes == len(before)


def test_export_before_training(tmp_path):
    run = create_run(build_recipe({}), tmp_path / "run")
    with pytest.raises(RunError, match="First: edgecnn train"):
        export(run, "tflite", "int8")


def test_no_such_export(own_run):
    with pytest.raises(ExportError, match="int4"):
        export(own_run, "tflite", "int4")
