"""The bundle file: its canonical zip, the reader, which refuses a bundle that is not provably complete and undamaged, and the writer.

The same content gives the same bytes on every Python, which `zipfile` does not guarantee. An ONNX file that keeps values in other files is
refused, since a bundle's hashes do not cover them; the package onnx is not needed for that.
"""

import contextlib
import dataclasses
import functools
import io
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgecnn.bundle.manifest import FORMATS, MANIFEST, MAX_MANIFEST_BYTES, Manifest, ModelEntry, check_labels, safe_name
from edgecnn.errors import BundleError
from edgecnn.files import open_regular, refuse_existing, sha256, write_atomic

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCAL_MAGIC, CENTRAL_MAGIC, END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"

VERSION = 20
UNIX_VERSION = 3 << 8 | VERSION
DATE, TIME = 1 << 5 | 1, 0
"""1 January 1980, midnight: the earliest time in a zip."""

MODE = 0o100644 << 16

MAX_BYTES = 128 * 1024 * 1024
"""Largest bundle to write or read: a small board must hold it in memory."""

MAX_FILES = 1000


def pack(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Return the canonical zip: stored entries, the manifest first, the others sorted by name, with a fixed date and mode."""
    return b"".join(pieces(manifest, files))


def pieces(manifest: Manifest, files: Mapping[str, bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield the canonical zip piece by piece; BundleError if a name is not a plain relative path, or there is too much content."""
    entries = {MANIFEST: manifest.to_json(), **{name: files[name] for name in sorted(files)}}
    unsafe = next((name for name in files if not safe_name(name) or name == MANIFEST), None)
    if unsafe is not None:
        raise BundleError(f"{unsafe!r} is not a valid name for a bundle entry")
    size = sum(map(len, entries.values()))
    if size > MAX_BYTES or len(entries) > MAX_FILES:
        raise BundleError(
            f"the bundle has {size:,} bytes in {len(entries):,} files; the limits are {MAX_BYTES:,} and {MAX_FILES:,}"
        )
    central, offset = b"", 0
    for name, content in entries.items():
        encoded = name.encode("ascii")
        common = (VERSION, 0, 0, TIME, DATE, zlib.crc32(content), len(content), len(content), len(encoded), 0)
        central += CENTRAL_HEADER.pack(CENTRAL_MAGIC, UNIX_VERSION, *common, 0, 0, 0, MODE, offset) + encoded
        yield LOCAL_HEADER.pack(LOCAL_MAGIC, *common) + encoded
        yield content
        offset += LOCAL_HEADER.size + len(encoded) + len(content)
    yield central
    yield END.pack(END_MAGIC, 0, 0, len(entries), len(entries), len(central), offset, 0)


LOCATION = b"location"
"""The key for the path of another file: ONNX Runtime refuses external data without it."""

RUNTIME_FORMAT = b"ORTM"
"""The identifier, at byte 4, of ONNX Runtime's own format, which it would also open."""

INNER = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""The messages of onnx.proto that lead to tensors: their field numbers, and the message in each field."""

EXTERNAL_DATA, DATA_LOCATION = 13, 14
"""Fields of a tensor: the entries that name another file, and whether the values are in it."""


def has_external_data(model: bytes) -> bool:
    """Return whether an ONNX file has values in another file, or is too damaged to rule that out."""
    if model[4:8] == RUNTIME_FORMAT:
        return True
    if LOCATION not in model:
        return False
    try:
        return _any_external(memoryview(model))
    except (IndexError, ValueError):
        return True


def _any_external(model: memoryview) -> bool:
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        for number, value in _fields(message):
            if kind == "tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
                return True
            inner = INNER[kind].get(number)
            if inner is not None:
                if not isinstance(value, memoryview):
                    raise ValueError("a number where a message belongs")
                waiting.append((inner, value))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield each field's number and value (0 for fixed-width numbers); IndexError or ValueError if the message is not protobuf."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        tag &= 0xFFFFFFFF  # as protobuf reads it
        value: int | memoryview = 0
        match tag & 7:
            case 0:
                value, position = _varint(message, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(message, position)
                value, position = message[position : position + length], position + length
            case 5:
                position += 4
            case _:
                raise ValueError("a group")
        if position > len(message):
            raise ValueError("cut off")
        yield tag >> 3, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise ValueError("a number of more than 64 bits")


MODEL_SUFFIXES = (".tflite", ".onnx", ".keras", ".h5", ".pb", ".pt")

MAX_GOLDEN = 1000

MAX_KNOWN = 10_000
"""Maximum number of known images in a bundle: the features of each are compared with every image that is classified."""

MAX_KNOWN_BYTES = 16 << 20
"""Maximum size of their features in bytes: the conversion to float takes eight times that much memory."""

MAX_RELATIVE_TOLERANCE = 0.5
"""Maximum tolerance of float outputs, as a fraction of the largest golden output or of 1."""


class Entries(Mapping[str, bytes]):
    """Entries of a zip by name, copied on each access, so that a small board need not hold all of them twice."""

    def __init__(self, data: bytes, spans: dict[str, slice]) -> None:
        self._data = memoryview(data)
        self._spans = spans

    def __getitem__(self, name: str) -> bytes:
        return bytes(self._data[self._spans[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def views(self) -> dict[str, memoryview]:
        return {name: self._data[span] for name, span in self._spans.items()}


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle: `files` holds every entry except the manifest, `data` the file's bytes."""

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]
    data: bytes = field(repr=False)

    @functools.cached_property
    def sha256(self) -> str:
        """The file's SHA-256, computed on first access: `classify` does not need it, and computing it takes half as long as reading."""
        return sha256(self.data)

    def entry(self, precision: str) -> ModelEntry | None:
        """Return the model of a precision, in the first of FORMATS that it has; None without one."""
        models = [model for model in self.manifest.models if model.precision == precision]
        return min(models, key=lambda model: FORMATS.index(model.format), default=None)

    def golden_inputs(self) -> np.ndarray:
        """Return the golden images: uint8, shape (n, height, width, channels), read-only."""
        contract = self.manifest.input
        return self._array(self.manifest.golden_inputs, ("|u1",), contract.height, contract.width, contract.channels)

    def golden_outputs(self, model: ModelEntry) -> np.ndarray:
        """Return the outputs that a model must give for the golden images: int8, uint8 or float32, shape (n, num_classes), read-only."""
        return self._array(model.golden, output_types(model), len(self.manifest.labels))

    def golden_features(self, model: ModelEntry) -> np.ndarray | None:
        """Return the features that a model must give for the golden images, shape (n, length); None if the bundle compares none."""
        stranger = self.manifest.stranger
        if stranger is None or not model.golden_features:
            return None
        return self._array(model.golden_features, output_types(model), stranger.length)

    def known_features(self) -> np.ndarray:
        """Return the known images' features: int8, shape (images, length), read-only. Only if the manifest has `stranger`."""
        stranger = self.manifest.stranger
        assert stranger is not None
        return self._array(stranger.known, ("|i1",), stranger.length)

    def _array(self, name: str, types: tuple[str, ...], *shape: int) -> np.ndarray:
        return read_array(name, self.files[name], types, shape)


def output_types(model: ModelEntry) -> tuple[str, ...]:
    """Return the types that a model's outputs may have, in numpy's notation."""
    return ("|i1", "|u1") if model.precision == "int8" else ("<f4",)


def read_bundle(path: Path) -> Bundle:
    """Read a bundle; BundleError unless it is byte for byte the file that `write_bundle` would write for its content."""
    try:
        with io.BufferedReader(open_regular(path)) as file:
            with _refused(path):
                _check_beginning(file.peek())
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        made = next(iter(sorted(path.glob("*.edgecnn"))), None)
        instead = (
            f"Its bundle is {made}" if made else f"If it is a verified run, make its bundle: edgecnn bundle {path}"
        )
        raise BundleError(f"{path} is a folder, not a bundle. {instead}.") from None
    except OSError as error:
        reason = error.strerror or error
        raise BundleError(f"cannot read the bundle {path}: {reason}. Name another with --model.") from None
    return parse_bundle(data, path)


def parse_bundle(data: bytes, path: Path) -> Bundle:
    """Prove a bundle's bytes: the canonical zip of their content must be the same bytes, and every hash and array must be valid."""
    with _refused(path):
        if len(data) > MAX_BYTES:
            raise BundleError(f"it has more than {MAX_BYTES:,} bytes")
        _check_beginning(data)
        spans = _stored_entries(data)
        manifest = Manifest.from_json(data[spans.pop(MANIFEST)])
        files = Entries(data, spans)
        views = files.views()
        if not _consists_of(data, pieces(manifest, views)):
            raise BundleError("it is damaged, or was packed by another program")
        bundle = Bundle(path, manifest, files, data)
        _check_files(bundle, views)
    return bundle


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Add the bundle's path and the next step to its error."""
    try:
        yield
    except BundleError as error:
        if path.suffix.lower() in MODEL_SUFFIXES:
            raise BundleError(
                f"{path} is a bare model, not a bundle with labels and proof. To bundle the models of a run: edgecnn bundle RUN. "
                "To make a run from a Keras model: edgecnn import."
            ) from None
        raise BundleError(
            f"cannot use the bundle {path}: {error}. Copy it again, or make it again: edgecnn bundle"
        ) from None


def _check_beginning(data: bytes) -> None:
    """Refuse other files by their first bytes, before the whole file is in memory."""
    start = data[: LOCAL_HEADER.size].ljust(LOCAL_HEADER.size)
    magic, *_, size, name_length, _ = LOCAL_HEADER.unpack(start)
    if magic != LOCAL_MAGIC or name_length != len(MANIFEST) or not data.startswith(MANIFEST.encode(), len(start)):
        raise BundleError("it is not an .edgecnn file, or its beginning is damaged")
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST} has {size:,} bytes; the limit is {MAX_MANIFEST_BYTES:,}")


def _consists_of(data: bytes, expected: Iterable[bytes | memoryview]) -> bool:
    offset = 0
    for piece in expected:
        if not data.startswith(bytes(piece), offset):  # two views would be compared byte by byte, which is slow
            return False
        offset += len(piece)
    return offset == len(data)


def _stored_entries(data: bytes) -> dict[str, slice]:
    """Locate a zip's leading stored entries. Only bounds are checked, since `parse_bundle` compares the whole file."""
    files: dict[str, slice] = {}
    position = 0
    while (
        data.startswith(LOCAL_MAGIC, position) and len(data) - position >= LOCAL_HEADER.size and len(files) <= MAX_FILES
    ):
        *_, size, name_length, _ = LOCAL_HEADER.unpack_from(data, position)
        start = position + LOCAL_HEADER.size + name_length
        position = start + size
        if position > len(data):
            raise BundleError("it is truncated")
        files[data[start - name_length : start].decode("latin-1")] = slice(start, position)
    return files


def _check_files(bundle: Bundle, views: Mapping[str, memoryview]) -> None:
    manifest = bundle.manifest
    if manifest.files.keys() != views.keys():
        odd = sorted(manifest.files.keys() ^ views.keys())[0]
        raise BundleError(f"{odd} is {'missing' if odd in manifest.files else 'not listed in the manifest'}")
    for name, content in views.items():
        if sha256(content) != manifest.files[name]:
            raise BundleError(f"{name} does not match its SHA-256 in the manifest")
    count = len(bundle.golden_inputs())
    if not 1 <= count <= MAX_GOLDEN:
        raise BundleError(f"{manifest.golden_inputs} holds {count:,} images, expected 1 to {MAX_GOLDEN:,}")
    if manifest.stranger:
        known = len(bundle.known_features())
        size = known * manifest.stranger.length
        if size > MAX_KNOWN_BYTES:
            raise BundleError(f"{manifest.stranger.known} holds {size:,} bytes; the limit is {MAX_KNOWN_BYTES:,}")
        if not manifest.stranger.neighbours <= known <= MAX_KNOWN:
            raise BundleError(
                f"{manifest.stranger.known} holds {known:,} images, expected {manifest.stranger.neighbours} to {MAX_KNOWN:,}"
            )
    for model in manifest.models:
        if model.format == "onnx" and has_external_data(bundle.files[model.file]):
            raise BundleError(f"{model.file} has values in another file, which the bundle's hashes do not cover")
        outputs, features = bundle.golden_outputs(model), bundle.golden_features(model)
        for name, array in ((model.golden, outputs), (model.golden_features, features)):
            if array is not None and len(array) != count:
                raise BundleError(f"{name} must hold one row per golden image: expected {count}, received {len(array)}")
        floats = outputs.dtype == np.float32
        if floats != (model.tolerance_unit == "logit"):
            raise BundleError(
                f"{model.file}: codes have a tolerance in LSB, floats in logits, not {model.tolerance_unit}"
            )
        if floats and not model.tolerance <= MAX_RELATIVE_TOLERANCE * max(1.0, float(np.abs(outputs).max())) < math.inf:
            raise BundleError(
                f"{model.file}: tolerance must be at most {MAX_RELATIVE_TOLERANCE:.0%} of the largest golden output, "
                f"received {model.tolerance:g}"
            )


NPY_MAGIC = b"\x93NUMPY\x01\x00"


def read_array(name: str, data: bytes, types: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Read an .npy file of one of `types`, shape (n, *shape), as a read-only array; else BundleError. It never unpickles."""
    size = data[len(NPY_MAGIC) : len(NPY_MAGIC) + 2]
    start = len(NPY_MAGIC) + 2 + int.from_bytes(size, "little")
    for kind in types:
        rows, rest = divmod(len(data) - start, np.dtype(kind).itemsize * math.prod(shape))
        described = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {(rows, *shape)}, }}"
        header = NPY_MAGIC + size + described.encode().ljust(start - len(NPY_MAGIC) - 3) + b"\n"
        if not rest and data.startswith(header) and len(header) == start:
            return np.frombuffer(data, kind, offset=start).reshape(rows, *shape)
    raise BundleError(f"{name} is no .npy array of {' or '.join(types)} and shape (n, {', '.join(map(str, shape))})")


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], force: bool = False) -> str:
    """Write a bundle atomically, after checking that it reads back; return its SHA-256. BundleError or OutputError if that fails."""
    refuse_existing(path, force)
    try:
        check_labels(manifest.labels)
    except BundleError as error:
        raise BundleError(f"{error}. Rename its folder and train again.") from None
    hashes = {name: sha256(content) for name, content in files.items()}
    data = pack(dataclasses.replace(manifest, files=hashes), files)
    bundle = parse_bundle(data, path)
    write_atomic(path, data)
    return bundle.sha256
