"""Files for Frigate and MediaPipe: their content, and runs that cannot have one."""

import io
import zipfile
from types import SimpleNamespace

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import ExportError, OutputExistsError
from edgecnn.export import tflite
from edgecnn.export.flatbuffer import ALIGNMENT, load_schema, packed, read, unpacked
from edgecnn.interop import (
    LABELS,
    PIXELS,
    SCORES,
    check_program,
    export_program,
    program_files,
    programs_of,
    with_metadata,
    with_scores,
)
from edgecnn.networks.keras import keras
from edgecnn.recipe import build_recipe
from edgecnn.region import WHOLE
from edgecnn.run_info import InputSize
from edgecnn.runs import PROGRAMS
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


def test_a_file_that_is_not_int8_is_refused(int8):
    types = load_schema().TensorType
    for type_ in (types.UINT8, types.FLOAT32):
        model = unpacked(int8[0])
        for tensor in model.subgraphs[0].tensors:
            tensor.type = type_
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
    model = unpacked(with_metadata(plain, name="beetles", labels=labels, mean=3, std=255.5))
    (buffer,) = [item.buffer for item in model.metadata if item.name == b"TFLITE_METADATA"]
    written = np.asarray(model.buffers[buffer].data, np.uint8).tobytes()
    whole = TableOf(written)
    assert written[4:8] == b"M001" and whole.text(0) == "beetles"
    (graph,) = whole.tables(3)
    (pixels,), (scores,) = graph.tables(2), graph.tables(3)
    assert (pixels.text(0), scores.text(0)) == ("image", "scores")
    (normalized,) = pixels.tables(4)
    assert [normalized.table(1).numbers(slot) for slot in (0, 1)] == [[3.0], [255.5]], "(pixel - 3) / 255.5"
    assert [item.text(0) for item in scores.tables(6)] == [LABELS]
    assert np.array_equal(answers(file, images)[2], answers(plain, images)[2])


class TableOf:
    """A table of a flatbuffer, whose slots are read by their number in the schema."""

    def __init__(self, data, start=None):
        self.data = data
        start = flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0) if start is None else start
        self.own = flatbuffers.table.Table(data, start)

    def place(self, slot):
        return self.own.Pos + self.own.Offset(4 + 2 * slot)

    def table(self, slot):
        return TableOf(self.data, self.own.Indirect(self.place(slot)))

    def text(self, slot):
        return self.own.String(self.place(slot)).decode()

    def numbers(self, slot):
        return self.own.GetVectorAsNumpy(flatbuffers.number_types.Float32Flags, self.own.Offset(4 + 2 * slot)).tolist()

    def tables(self, slot):
        offset = self.own.Offset(4 + 2 * slot)
        start, count = self.own.Vector(offset), self.own.VectorLen(offset)
        return [TableOf(self.data, self.own.Indirect(start + 4 * index)) for index in range(count)]


def described(tmp_path, height=224, width=224, channels=3, labels=("a", "b"), region=WHOLE):
    """Return a run with only the input, the labels and the region."""
    size = InputSize(height=height, width=width, channels=channels)
    recipe = SimpleNamespace(data=SimpleNamespace(region=region))
    info = SimpleNamespace(input=size, data=SimpleNamespace(labels=labels))
    return SimpleNamespace(path=tmp_path, recipe=recipe, info=info)


def test_frigate_gives_224x224_rgb_and_mediapipe_any_rgb(tmp_path):
    check_program(described(tmp_path), "frigate")
    for shape in ({"height": 96, "width": 96}, {"width": 225}, {"height": 223}, {"channels": 1}):
        with pytest.raises(ExportError, match=r"Frigate provides 224x224 RGB\. Train one for it: edgecnn train"):
            check_program(described(tmp_path, **shape), "frigate")
    check_program(described(tmp_path, height=96), "mediapipe")
    with pytest.raises(ExportError, match="reads 224x96 images with 1 channel; MediaPipe provides RGB"):
        check_program(described(tmp_path, height=96, channels=1), "mediapipe")


def test_a_run_that_sees_a_region_is_refused(tmp_path):
    for program in PROGRAMS:
        with pytest.raises(ExportError, match=r"sees the region 0\.5,0,0\.5,1 of each image; .*Train without --region"):
            check_program(described(tmp_path, region=(0.5, 0.0, 0.5, 1.0)), program)


def test_labels_that_frigate_would_confuse_are_refused(tmp_path):
    for labels in (("cat", "cat "), (" ", "cat")):
        check_program(described(tmp_path, labels=labels), "mediapipe")
        with pytest.raises(ExportError, match="strips spaces"):
            check_program(described(tmp_path, labels=labels), "frigate")
    check_program(described(tmp_path, labels=("cat ", "dog")), "frigate")


def exportable(tmp_path, data, labels, /, **recipe):
    """Return a run with an int8 file, labels and a recipe, at the size that Frigate reads."""
    run = described(tmp_path, labels=labels)
    run.file, run.read, run.name = tmp_path.joinpath, lambda *names: data, "door"
    run.recipe = build_recipe(recipe)
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "model-int8.tflite").write_bytes(data)
    return run


def test_mediapipe_reads_pixels_as_the_run_did_and_frigate_lists_the_classes_in_order(int8, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("edgecnn.interop.with_metadata", lambda model, **how: given.append(how) or model)
    labels = ("zebra", " ant ", "müller")
    for range_, numbers in (("unit", (0, 255)), ("centred", (128, 128)), ("raw", (0, 1))):
        run = exportable(tmp_path, int8[0], labels, network={"input_range": range_})
        program_files(run, "mediapipe")
        how = given.pop()
        assert (how["mean"], how["std"]) == (numbers[0], pytest.approx(numbers[1])), range_
        assert (how["name"], how["labels"]) == ("door", labels)
    files = program_files(run, "frigate")
    assert sorted(files) == ["labelmap.txt", "model.tflite"]
    assert files["labelmap.txt"].decode() == "zebra\nant\nmüller\n"


def test_a_programs_files_are_written_to_the_run_and_to_another_folder_and_replaced_only_on_request(int8, tmp_path):
    run, notes, out = exportable(tmp_path / "run", int8[0], ("a", "b")), [], tmp_path / "out"
    written = export_program(run, "frigate", out=out, note=notes.append)
    assert written == [out / "model.tflite", out / "labelmap.txt"] and programs_of(run) == ["frigate"]
    assert "trained with fit = crop" in notes[-1] and not any("converting" in note for note in notes)
    for name in ("model.tflite", "labelmap.txt"):
        assert (out / name).read_bytes() == (tmp_path / "run" / "frigate" / name).read_bytes()
    (out / "model.tflite").unlink()
    (out / "labelmap.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        export_program(run, "frigate", out=out)
    assert [path.name for path in out.iterdir()] == ["labelmap.txt"] and (out / "labelmap.txt").read_text() == "mine"
    stretched = exportable(tmp_path / "run", int8[0], ("c", "b"), data={"fit": "stretch"})
    notes.clear()
    export_program(stretched, "frigate", out=out, force=True, note=notes.append)
    assert (out / "labelmap.txt").read_text() == "c\nb\n" == (tmp_path / "run/frigate/labelmap.txt").read_text()
    assert not any("fit =" in note for note in notes)
    assert programs_of(run) == ["frigate"] and len(list((tmp_path / "run" / "frigate").iterdir())) == 2
    assert len(export_program(run, "mediapipe")) == 1 and programs_of(run) == ["frigate", "mediapipe"]


def test_the_command_refuses_a_run_of_another_size(own_run, edgecnn):
    result = edgecnn("export", own_run.path, "--for", "frigate")
    assert result.code == ExportError.exit_code
    assert not (own_run.path / "frigate").exists()


def test_it_excludes_other_options(edgecnn):
    for options in (("--int8",), ("--format", "tflite"), ("--io", "uint8"), ("--float16",)):
        assert edgecnn("export", "--for", "frigate", *options).code == 2
    assert edgecnn("export", "--out", "x").code == 2
    assert edgecnn("export", "--for", "frigat").code == 2
