"""Files for Frigate and MediaPipe: their content, and runs that cannot have one."""

import io
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import ExportError
from edgecnn.export import tflite
from edgecnn.export.flatbuffer import ALIGNMENT, load_schema, packed, read, unpacked
from edgecnn.interop.mediapipe import LABELS, with_metadata
from edgecnn.interop.programs import PROGRAMS, check_program
from edgecnn.interop.scores import PIXELS, SCORES, with_scores
from edgecnn.networks.keras import keras
from edgecnn.region import WHOLE
from edgecnn.run_info import InputSize
from edgecnn.runtime.decision import softmax

RANDOM = np.random.default_rng(11)


@pytest.fixture(scope="module")
def int8():
    """An int8 file with spread-out logits, and images that it reads."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3, 2, activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(5)(x))
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([6 * kernel, bias + RANDOM.normal(0, 1, bias.shape)])
    images = RANDOM.integers(0, 256, (80, 32, 32, 3), np.uint8) // RANDOM.integers(1, 6, (80, 1, 1, 3), np.uint8)
    data = tflite.int8_post_training(model, tflite.RepresentativeDataset(images[:40], 1 / 128, 0))
    return data, images


def answers(data, images):
    interpreter = Interpreter(model_content=data, num_threads=2)
    interpreter.allocate_tensors()
    (read_,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for image in images:
        interpreter.set_tensor(read_["index"], image[np.newaxis])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(given["index"])[0])
    return read_, given, np.stack(rows)


def test_pixels_go_in_and_scores_come_out(int8):
    data, images = int8
    read_, given, scores = answers(with_scores(data), images)
    assert (read_["name"], read_["dtype"], read_["quantization"]) == (PIXELS, np.uint8, (1 / 128, 128))
    assert (given["name"], given["dtype"], given["quantization"]) == (SCORES, np.uint8, (1 / 256, 0))
    (signature,) = Interpreter(model_content=with_scores(data)).get_signature_list().values()
    assert signature == {"inputs": ["pixels"], "outputs": ["scores"]}
    _, logits, codes = answers(data, (images ^ 128).view(np.int8))
    scale, zero_point = logits["quantization"]
    expected = softmax((codes.astype(np.float32) - zero_point) * np.float32(scale))
    assert len({tuple(row) for row in codes}) > 60 and expected.max() > 0.8 and expected.max(axis=1).min() < 0.6
    assert np.abs(scores - 256 * expected).max() <= 1.5, (
        "half a code of rounding, and one of the kernel's table; 255 is the last code"
    )
    assert np.all(scores[np.arange(len(scores)), codes.argmax(axis=1)] == scores.max(axis=1))


def test_the_inner_graph_is_the_files_own(int8):
    data, _ = int8
    before, after = read(data), read(with_scores(data))
    assert [item.name for item in after.operators] == [
        "QUANTIZE", *(item.name for item in before.operators), "SOFTMAX", "QUANTIZE",
    ]  # fmt: skip
    for one, other in zip(before.tensors, after.tensors, strict=False):
        assert (one.name, one.type, one.signature) == (other.name, other.type, other.signature)
        assert np.array_equal(one.scale, other.scale) and np.array_equal(one.zero_point, other.zero_point)
        assert (one.data is None) == (other.data is None)
        assert one.data is None or np.array_equal(one.data, other.data)
    for one, other in zip(before.operators, after.operators[1:-2], strict=True):
        assert [item and item.index for item in one.inputs] == [item and item.index for item in other.inputs]
        assert [item.index for item in one.outputs] == [item.index for item in other.outputs]


def test_every_buffer_is_aligned(int8):
    data = with_scores(int8[0])
    model = load_schema().Model.GetRootAsModel(data, 0)
    buffers = [model.Buffers(index).DataAsNumpy() for index in range(model.BuffersLength())]
    first = np.frombuffer(data, np.uint8).ctypes.data
    starts = [buffer.ctypes.data - first for buffer in buffers if isinstance(buffer, np.ndarray)]
    assert len(starts) > 3 and all(start % ALIGNMENT == 0 for start in starts)


@pytest.mark.parametrize("io_", ["uint8", "float32"])
def test_a_file_that_is_not_int8_is_refused(int8, io_):
    model = unpacked(int8[0])
    schema = load_schema()
    for tensor in model.subgraphs[0].tensors:
        tensor.type = {"uint8": schema.TensorType.UINT8, "float32": schema.TensorType.FLOAT32}[io_]
    with pytest.raises(ExportError, match="one input and one output"):
        with_scores(packed(model))


def test_metadata_and_labels_come_with_the_same_graph(int8):
    data, images = int8
    plain, labels = with_scores(data), ["ein Hund", "Käfer", "c", "d", "e"]
    file = with_metadata(plain, name="beetles", labels=labels, mean=128, std=128)
    assert file == with_metadata(plain, name="beetles", labels=labels, mean=128, std=128)
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == (LABELS, zipfile.ZIP_STORED)
        assert archive.read(LABELS).decode().splitlines() == labels
    model = unpacked(file)
    (buffer,) = [item.buffer for item in model.metadata if item.name == b"TFLITE_METADATA"]
    written = np.asarray(model.buffers[buffer].data, np.uint8).tobytes()
    assert written[4:8] == b"M001" and b"beetles" in written and LABELS.encode() in written
    assert np.array_equal(answers(file, images)[2], answers(plain, images)[2])


def described(tmp_path, height=224, width=224, channels=3, labels=("a", "b"), region=WHOLE):
    """Return a run with only the input, the labels and the region."""
    size = InputSize(height=height, width=width, channels=channels)
    recipe = SimpleNamespace(data=SimpleNamespace(region=region))
    info = SimpleNamespace(input=size, data=SimpleNamespace(labels=labels))
    return SimpleNamespace(path=tmp_path, recipe=recipe, info=info)


def test_frigate_gives_224x224_rgb_and_mediapipe_any_rgb(tmp_path):
    check_program(described(tmp_path), "frigate")
    for shape in ({"height": 96, "width": 96}, {"width": 225}, {"channels": 1}):
        with pytest.raises(ExportError, match=r"Frigate provides 224x224 RGB\. Train one for it: edgecnn train"):
            check_program(described(tmp_path, **shape), "frigate")
    check_program(described(tmp_path, height=96), "mediapipe")
    with pytest.raises(ExportError, match="MediaPipe provides RGB"):
        check_program(described(tmp_path, channels=1), "mediapipe")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_that_sees_a_region_is_refused(tmp_path, program):
    with pytest.raises(ExportError, match=r"sees the region 0\.5,0,0\.5,1 of each image; .*Train without --region"):
        check_program(described(tmp_path, region=(0.5, 0.0, 0.5, 1.0)), program)


@pytest.mark.parametrize("labels", [("cat", "cat "), (" ", "cat")])
def test_labels_that_frigate_would_confuse_are_refused(tmp_path, labels):
    check_program(described(tmp_path, labels=labels), "mediapipe")
    with pytest.raises(ExportError, match="strips spaces"):
        check_program(described(tmp_path, labels=labels), "frigate")


def test_the_command_refuses_a_run_of_another_size(own_run, edgecnn):
    result = edgecnn("export", own_run.path, "--for", "frigate")
    assert result.code == ExportError.exit_code
    assert not (own_run.path / "frigate").exists()


def test_it_excludes_other_options(edgecnn):
    for options in (("--int8",), ("--format", "tflite"), ("--io", "uint8"), ("--float16",)):
        assert edgecnn("export", "--for", "frigate", *options).code == 2
    assert edgecnn("export", "--out", "x").code == 2
    assert edgecnn("export", "--for", "frigat").code == 2
