"""TFLite Model Metadata: what MediaPipe's ImageClassifier needs to know about a file.

Written by hand, because MediaPipe's own writer (mediapipe 1.2.3) fails to import. Delete this when a writer installs alongside TensorFlow.

Source: metadata_schema.fbs of TFLite Support. Comments give its slot numbers.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence

import flatbuffers
import numpy as np

from edgecnn.export.flatbuffer import load_schema, packed, unpacked

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
