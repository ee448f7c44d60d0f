"""Other programs, Frigate and MediaPipe: the files that they load, made of a run's int8 model, and Frigate's labelled images.

TFLite's metadata are written by hand, because MediaPipe's own writer (mediapipe 1.2.3) fails to import. Delete that when a writer installs
alongside TensorFlow.

Source: metadata_schema.fbs of TFLite Support. Comments give its slot numbers.
"""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np

from edgecnn.data.folder import escaped_name, open_folder
from edgecnn.data.items import LabelledImages, Progress
from edgecnn.errors import DatasetError, ExportError
from edgecnn.export import export, export_path
from edgecnn.export.flatbuffer import load_schema, packed, unpacked
from edgecnn.export.onnx_int8 import FEATURES
from edgecnn.files import refuse_existing, write_atomic
from edgecnn.labels import plural
from edgecnn.region import WHOLE, region_text
from edgecnn.runs import FRIGATE, PROGRAMS, Run

LABELS = "labels.txt"

METADATA = b"TFLITE_METADATA"
IDENTIFIER = b"M001"
PARSER = "1.0.0"
IMAGE_PROPERTIES, RGB, NORMALIZATION, TENSOR_AXIS_LABELS = 2, 1, 1, 2


def with_metadata(data: bytes, *, name: str, labels: Sequence[str], mean: float, std: float) -> bytes:
    """Add metadata and labels to a TFLite file with one image input, read as (pixel - mean) / std, and one output of scores.

    A zip with the labels follows the file. It is stored uncompressed, since MediaPipe reads it in place, and without a time, so that the
    bytes are reproducible.
    """
    schema, model = load_schema(), unpacked(data)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(metadata(name, mean, std), np.uint8)
    model.buffers.append(buffer)
    entry.name, entry.buffer = METADATA, len(model.buffers) - 1
    model.metadata = [*(model.metadata or ()), entry]
    file = io.BytesIO(packed(model))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{label}\n" for label in labels))
    return file.getvalue()


def metadata(name: str, mean: float, std: float) -> bytes:
    builder = flatbuffers.Builder(512)
    properties = _table(builder, 2, numbers={0: RGB})  # ImageProperties: color_space
    content = _table(builder, 3, {1: properties}, {0: IMAGE_PROPERTIES})  # Content: content_properties
    values = {slot: builder.CreateNumpyVector(np.array([value], np.float32)) for slot, value in ((0, mean), (1, std))}
    options = _table(builder, 2, values)  # NormalizationOptions: mean, std
    unit = _table(builder, 2, {1: options}, {0: NORMALIZATION})  # ProcessUnit: options
    image = {0: builder.CreateString("image"), 3: content, 4: _vector(builder, [unit])}
    read = _table(builder, 7, image)  # TensorMetadata: name, content, process_units
    file = {0: builder.CreateString(LABELS)}
    labels = _table(builder, 5, file, {2: TENSOR_AXIS_LABELS})  # AssociatedFile: name, type
    scores = {0: builder.CreateString("scores"), 6: _vector(builder, [labels])}
    given = _table(builder, 7, scores)  # TensorMetadata: name, associated_files
    ends = {2: _vector(builder, [read]), 3: _vector(builder, [given])}
    graph = _table(builder, 10, ends)  # SubGraphMetadata: input_tensor_metadata, output_tensor_metadata
    whole = {0: builder.CreateString(name), 3: _vector(builder, [graph]), 7: builder.CreateString(PARSER)}
    model = _table(builder, 8, whole)  # ModelMetadata: name, subgraph_metadata, min_parser_version
    builder.Finish(model, file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def _table(
    builder: flatbuffers.Builder, slots: int, offsets: Mapping[int, int] = {}, numbers: Mapping[int, int] = {}
) -> int:
    """Write a table with `slots` slots, from offsets of earlier objects and one-byte numbers. Returns its own offset."""
    builder.StartObject(slots)
    for slot, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in numbers.items():
        builder.PrependUint8Slot(slot, number, 0)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


PIXELS = "pixels_uint8"
SCORES = "scores_uint8"

SCORE_SCALE = 1 / 256
"""Scale of a quantized softmax, fixed by TFLite for int8 and uint8; the zero point is -128 or 0."""


def with_scores(data: bytes) -> bytes:
    """Put uint8 pixels before an int8 TFLite file of logits, and a softmax with uint8 scores after it. The features output is removed.

    pixel -> QUANTIZE -> the file's own graph -> SOFTMAX -> QUANTIZE -> score. The first code is pixel - 128, the last is code + 128, both
    exact. The answer is the int8 softmax of the file's logits, with scale 1/256 and zero point 0.
    Raises ExportError if the file's input or output is not one int8 tensor.
    """
    schema, model = load_schema(), unpacked(data)
    graph = model.subgraphs[0]
    if len(graph.outputs) == 2 and graph.tensors[graph.outputs[1]].name == FEATURES.encode():
        graph.outputs = graph.outputs[:1]
        for signature in model.signatureDefs or ():
            del signature.outputs[1:]
    ends = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
    if len(ends) != 2 or any(tensor.type != schema.TensorType.INT8 for tensor in ends):
        raise ExportError("scores need an int8 file with exactly one input and one output; this file has others.")
    codes, logits = ends

    def tensor(name: str, like: Any, type_: int, scale: float, zero_point: int) -> int:
        added = schema.TensorT()
        added.name, added.type, added.buffer = name.encode(), type_, 0  # buffer 0 is empty by convention
        added.shape, added.shapeSignature = like.shape, like.shapeSignature
        added.quantization = schema.QuantizationParametersT()
        added.quantization.scale = np.array([scale], np.float32)
        added.quantization.zeroPoint = np.array([zero_point], np.int64)
        graph.tensors.append(added)
        return len(graph.tensors) - 1

    def operator(code: int, read: int, made: int) -> Any:
        known = schema.OperatorCodeT()
        known.builtinCode, known.version = code, 2
        known.deprecatedBuiltinCode = min(code, 127)  # the older field holds codes up to 127
        model.operatorCodes.append(known)
        added = schema.OperatorT()
        added.opcodeIndex = len(model.operatorCodes) - 1
        added.inputs, added.outputs = np.array([read], np.int32), np.array([made], np.int32)
        return added

    zero_point = int(codes.quantization.zeroPoint[0]) + 128
    old_input, old_output = int(graph.inputs[0]), int(graph.outputs[0])
    pixels = tensor(PIXELS, codes, schema.TensorType.UINT8, float(codes.quantization.scale[0]), zero_point)
    scores_int8 = tensor("scores_int8", logits, schema.TensorType.INT8, SCORE_SCALE, -128)
    scores = tensor(SCORES, logits, schema.TensorType.UINT8, SCORE_SCALE, 0)
    softmax = operator(schema.BuiltinOperator.SOFTMAX, old_output, scores_int8)
    softmax.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
    softmax.builtinOptions = schema.SoftmaxOptionsT()
    softmax.builtinOptions.beta = 1.0
    quantize = schema.BuiltinOperator.QUANTIZE
    first, last = operator(quantize, pixels, old_input), operator(quantize, scores_int8, scores)
    graph.operators = [first, *graph.operators, softmax, last]
    graph.inputs, graph.outputs = np.array([pixels], np.int32), np.array([scores], np.int32)
    for signature in model.signatureDefs or ():
        (signature.inputs[0].tensorIndex, signature.outputs[0].tensorIndex) = (pixels, scores)
        signature.outputs[0].name = b"scores"
    return packed(model)


MODEL = "model.tflite"
LABELMAP = "labelmap.txt"
SIDE = 224


def programs_of(run: Run) -> list[str]:
    return [program for program in PROGRAMS if (run.file(program) / MODEL).exists()]


def check_program(run: Run, program: str) -> None:
    """Raise ExportError if a model expects other images than the program provides, or Frigate would change its labels."""
    region = run.recipe.data.region
    if region != WHOLE:
        cuts = "Frigate crops its images itself" if program == FRIGATE else "a file for MediaPipe cannot hold a region"
        raise ExportError(
            f"run {run.path} sees the region {region_text(region)} of each image; {cuts}. "
            "Train without --region, on images that are already cropped, such as those that edgecnn capture --region keeps."
        )
    shape = run.info.input
    received = f"run {run.path} reads {shape.width}x{shape.height} images with {plural(shape.channels, 'channel')}"
    if program == FRIGATE and (shape.height, shape.width, shape.channels) != (SIDE, SIDE, 3):
        raise ExportError(
            f"{received}; Frigate provides {SIDE}x{SIDE} RGB. Train one for it: edgecnn train --data frigate:PATH, or on other data "
            "--size 224 with --set network.channels=3 and --set data.fit=stretch"
        )
    if shape.channels != 3:
        raise ExportError(f"{received}; MediaPipe provides RGB. Train with --set network.channels=3.")
    labels = run.info.data.labels
    stripped = [label.strip() for label in labels]
    if program == FRIGATE and (len(set(stripped)) < len(labels) or not all(stripped)):
        raise ExportError(
            f"the labels of {run.path} are {', '.join(map(repr, labels[:8]))}. Frigate strips spaces from both ends, which makes two of "
            "them equal or one empty. Rename those folders and train again."
        )


def program_files(run: Run, program: str) -> dict[str, bytes]:
    """Make a program's files from a run's int8 TFLite file: bytes by name. Raises RunError if that file is missing.

    MODEL reads uint8 RGB pixels and outputs a uint8 softmax with scale 1/256 and zero point 0. Frigate's LABELMAP has one label per line.
    """
    check_program(run, program)
    data = run.read(export_path(run, "tflite", "int8").name, "export", "--format tflite --int8")

    labels, model = run.info.data.labels, with_scores(data)
    if program == FRIGATE:
        return {MODEL: model, LABELMAP: "".join(f"{label.strip()}\n" for label in labels).encode()}
    scale, zero_point = run.recipe.input_scale, run.recipe.input_zero_point
    return {MODEL: with_metadata(model, name=run.name, labels=labels, mean=128 + zero_point, std=1 / scale)}


def export_program(
    run: Run,
    program: str,
    *,
    out: Path | None = None,
    force: bool = False,
    note: Callable[[str], None] = lambda text: None,
    progress: "Progress | None" = None,
) -> list[Path]:
    """Write a program's files, each atomically. If the run has no int8 TFLite file to make them from, that is exported first.

    They go to `out`, if given, and always to the run, because verification reads them there.
    """
    folder = out or run.file(program)
    for name in (MODEL, LABELMAP) if program == FRIGATE else (MODEL,):
        refuse_existing(folder / name, force)
    check_program(run, program)
    if not export_path(run, "tflite", "int8").exists():
        note(f"converting {run.name} to tflite int8")
        export(run, "tflite", "int8", progress=progress)
    note(f"making the files of {run.name} for {program}")
    files = program_files(run, program)
    if run.recipe.data.fit != "stretch":
        note(f"{program} stretches every image; this run was trained with fit = {run.recipe.data.fit}. See verify.")
    for place in dict.fromkeys((run.file(program), folder)):
        for name, data in files.items():
            write_atomic(place / name, data)
    return [folder / name for name in files]


NONE = "none"
"""Frigate's class for an object that belongs to none of the others. This answer gives the object no sub label and no attribute."""

CLIPS = ("clips", "frigate/clips")
"""Where the clips are below a folder with Frigate's media. Below Home Assistant's, Frigate has its own folder."""

DATASET = "dataset"


def open_frigate(path: Path, progress: Progress | None = None, lenient: bool = False) -> LabelledImages:
    """The dataset of a Frigate custom classifier, at 224x224 RGB. PATH is Frigate's media folder or clips/NAME.

    `none` is a class like the others, left out if it has no images. Images without a class yet (clips/NAME/train) are not read.
    Raises DatasetError if there is no dataset, or several and none is named; also like `open_folder`.
    """
    folder = find_dataset(path)
    name = escaped_name((folder.parent if folder.name == DATASET else folder).resolve().name) or "frigate"
    listed = open_folder(folder, progress, lenient, may_be_empty=(NONE,))
    return replace(listed, name=name, title=f"Frigate's {name}", shape=(SIDE, SIDE, 3), place=None)


def find_dataset(path: Path) -> Path:
    """Return the dataset folder for a path of Frigate's. Raises DatasetError if it has no dataset, or several, which the message lists."""
    if not path.is_dir():
        raise DatasetError(
            f"frigate:{path} is not a folder. Expected Frigate's media folder, clips/NAME, or clips/NAME/{DATASET}."
        )
    if path.name == DATASET:
        return path
    if (path / DATASET).is_dir():
        return path / DATASET
    clips = next((path / below for below in CLIPS if (path / below).is_dir()), path)
    datasets = [folder / DATASET for folder in _folders(clips) if (folder / DATASET).is_dir()]
    if len(datasets) > 1:
        names = ", ".join(escaped_name(dataset.parent.name) for dataset in datasets)
        raise DatasetError(
            f"{clips} holds the datasets of {len(datasets)} classifiers: {names}. Name one, such as "
            f"frigate:{datasets[0].parent}"
        )
    if datasets:
        return datasets[0]
    if clips == path and _folders(path):
        return path
    raise DatasetError(
        f"{clips} holds no Frigate dataset: expected NAME/{DATASET}/CLASS/*.png in it. Create the classifier on Frigate's page "
        "Classification, and assign classes to images there."
    )


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DatasetError(f"cannot list the folder {path}: {error.strerror or error}.") from None
