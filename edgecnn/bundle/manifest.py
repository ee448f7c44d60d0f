"""The manifest of a bundle: read, written and validated only here."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from edgecnn.errors import BundleError
from edgecnn.files import canonical_json
from edgecnn.labels import STRANGER, unsafe, why_not_a_label
from edgecnn.region import EXPECTED, FITS, RESAMPLINGS, WHOLE, Region, is_region
from edgecnn.tables import Struct, build, key, shown, to_json

SCHEMA = "edgecnn.bundle/1"
MANIFEST = "manifest.json"
FORMATS = ("tflite", "onnx")
PRECISIONS = ("int8", "float32", "float16", "int16x8")
"""All precisions except the first have float32 input and output."""


HEX_DIGITS = frozenset("0123456789abcdef")
NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
MAX_SIDE = 4096

MAX_MANIFEST_BYTES = 512 * 1024
"""1,000 class names of 40 characters take a tenth of it. Checked before the JSON is parsed, which takes up to 30 times the memory."""

MAX_DEPTH = 20
"""Maximum depth of `provenance`, since canonical JSON indents each line by its level."""

MAX_LSB = 8
"""Maximum tolerance of a model with integer output. Kernels have been seen to differ by three codes."""


class InputContract(Struct):
    """The model's input, and how an image is fitted to it. A pixel's real value is scale * (pixel - 128 - zero_point)."""

    height: int = key(low=1, high=MAX_SIDE)
    width: int = key(low=1, high=MAX_SIDE)
    channels: int = key(choices=(1, 3))
    fit: str = key(choices=FITS)
    scale: float = key(low=1e-9, high=1e9)
    zero_point: int = key(low=-128, high=127)
    region: Region = key(WHOLE, valid=is_region, expected=EXPECTED, left_out=True)
    resampling: str = key("box", choices=RESAMPLINGS, left_out=True)


class ModelEntry(Struct):
    """One model file. It reproduces the golden outputs, and features if any, to within `tolerance`, in output codes (LSB) or logits."""

    file: str
    format: str = key(choices=FORMATS)
    precision: str = key(choices=PRECISIONS)
    golden: str
    golden_features: str = key("", left_out=True)
    tolerance: float = key(low=0)
    tolerance_unit: str = key(choices=("LSB", "logit"))
    tolerance_reason: str
    golden_engine: str


def _rises(values: tuple[float, ...]) -> bool:
    return len(values) >= 2 and all(one <= other for one, other in itertools.pairwise(values))


ASCENDING = "two or more numbers, none smaller than the one before"


class StrangerLimit(Struct):
    """How `edgecnn.runtime.decision` recognises an image that shows none of the classes, chosen on validation images.

    `known` is a file with the features of training images, int8 (images, length). `scores` and `similarities` are ascending values from
    validation images. An image less familiar than `limit` is a stranger. For an image like the validation images, the probability of that
    is at most `rate`.
    """

    known: str
    length: int = key(low=1, high=65_536)
    neighbours: int = key(low=1, high=100)
    scores: tuple[float, ...] = key(valid=_rises, expected=ASCENDING)
    similarities: tuple[float, ...] = key(valid=_rises, expected=ASCENDING)
    limit: float = key(low=-1e6, high=0.0)
    rate: float = key(low=0.0, high=0.5)
    decide: bool = key(False, left_out=True)


class GoldenImage(Struct):
    """An encoded image, and the SHA-256 of its expected bytes after decoding (upright, in the input's channels) and after resizing."""

    file: str
    decoded_sha256: str
    resized_sha256: str


class Manifest(Struct):
    """A bundle's description of itself. Logits are divided by `temperature` before softmax; serial 0 means no serial number.

    `defaults` maps a format to its model file. `files` maps every other entry to its SHA-256; writing the bundle fills it.
    """

    schema: str = SCHEMA
    name: str
    title: str
    labels: tuple[str, ...]
    input: InputContract
    models: tuple[ModelEntry, ...]
    defaults: dict[str, str]
    golden_inputs: str = "golden/inputs.npy"
    golden_images: tuple[GoldenImage, ...] = key((), left_out=True)
    temperature: float = key(1.0, low=1e-3, high=1e3, left_out=True)
    threshold: float = key(0.0, low=0, high=1, left_out=True)
    serial: int = key(0, low=0, high=2**53, left_out=True)
    stranger: StrangerLimit | None = key(None, left_out=True)
    provenance: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the manifest as canonical JSON; BundleError if `provenance` cannot be written as JSON."""
        try:
            data = canonical_json(to_json(self)).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BundleError(f"the manifest cannot be written as JSON: {error}") from None
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{MANIFEST} would have {len(data):,} bytes; the limit is {MAX_MANIFEST_BYTES:,}. Labels and provenance fill it: use fewer "
                "or shorter names of classes."
            )
        return data

    @staticmethod
    def from_json(data: bytes) -> "Manifest":
        """Parse and check the output of `to_json`; BundleError for anything else."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} has {len(data):,} bytes; the limit is {MAX_MANIFEST_BYTES:,}")
        try:
            table = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON: {error}") from None
        if type(table) is dict and table.get("schema", SCHEMA) != SCHEMA:
            raise BundleError(
                f"the bundle's schema is {shown(table['schema'])}, this edgecnn reads {SCHEMA!r}. "
                "Install the version of edgecnn that made it, or run edgecnn bundle again."
            )
        manifest = build(Manifest, table, BundleError, MANIFEST, exact=True)
        _check_values(manifest)
        return manifest

    def model(self, file: str) -> ModelEntry:
        """Return the entry of a model file; BundleError if the bundle has no such model."""
        for entry in self.models:
            if entry.file == file:
                return entry
        raise BundleError(f"the bundle has no model {file!r}; it has {', '.join(entry.file for entry in self.models)}")


def _check_values(manifest: Manifest) -> None:
    check_labels(manifest.labels)
    _require(bool(manifest.name), "name must not be empty", manifest.name)
    _require_plain({"name": manifest.name, "title": manifest.title})
    _require(not _deeper(manifest.provenance, MAX_DEPTH), f"provenance must have at most {MAX_DEPTH} levels", "more")
    _require(bool(manifest.models), "models must have at least one model", manifest.models)
    for index, model in enumerate(manifest.models):
        where = f"models[{index}]."
        whole = model.tolerance_unit != "LSB" or model.tolerance in range(MAX_LSB + 1)
        _require(whole, f"{where}tolerance must be a whole number of codes from 0 to {MAX_LSB}", model.tolerance)
        _require_plain({f"{where}{name}": text for name, text in vars(model).items() if type(text) is str})
    files = [model.file for model in manifest.models]
    _require(len(files) == len(set(files)), "models must name each file once", files)
    for format_, file in manifest.defaults.items():
        right = any(model.file == file and model.format == format_ for model in manifest.models)
        _require(right, f"defaults.{shown(format_)} must name a model of that format", file)
    for name, digest in manifest.files.items():
        _require(safe_name(name), "files: names must be plain relative paths", name)
        _require(_is_sha256(digest), f"files.{name} must be a SHA-256", digest)
    encoded = [image.file for image in manifest.golden_images]
    _require(len(encoded) == len(set(encoded)), "golden_images must name each file once", encoded)
    for image in manifest.golden_images:
        for digest in (image.decoded_sha256, image.resized_sha256):
            _require(_is_sha256(digest), f"golden_images: {shown(image.file)} must have two SHA-256", digest)
    goldens = [name for model in manifest.models for name in (model.golden, model.golden_features) if name]
    referred = {manifest.golden_inputs, *files, *encoded, *goldens}
    if manifest.stranger:
        referred.add(manifest.stranger.known)
        _require(
            STRANGER not in manifest.labels,
            f"labels must not contain {STRANGER!r}, which is a decision of this model",
            STRANGER,
        )
    lacking = sorted(name for name in referred if name not in manifest.files)
    _require(not lacking, "files must list every file that the manifest names; missing", lacking)


def check_labels(labels: Sequence[Any]) -> None:
    """Raise BundleError unless these are valid class names: two or more, without repetition."""
    for index, label in enumerate(labels):
        why = why_not_a_label(label) if type(label) is str else "it is not a string"
        if why:
            raise BundleError(f"labels[{index}] cannot be the name of a class: {why}, received {shown(label)}")
    _require(len(labels) == len(set(labels)) >= 2, "expected two or more labels, without repetition", labels)


def _require_plain(texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        _require(text.isprintable() or not any(map(unsafe, text)), f"{name} must hold no control characters", text)


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return levels < 1 or any(_deeper(item, levels - 1) for item in inner if type(item) in (dict, list))


def safe_name(name: str) -> bool:
    """Return whether a bundle entry may have this name: ASCII letters, digits, `.`, `_` and `-`, in parts that do not start with a dot."""
    parts = name.split("/")
    return len(name) <= 200 and all(part and part[0] != "." and NAME_CHARACTERS.issuperset(part) for part in parts)


def _is_sha256(digest: Any) -> bool:
    return type(digest) is str and len(digest) == 64 and HEX_DIGITS.issuperset(digest)


def _require(condition: bool, expected: str, received: Any) -> None:
    if not condition:
        raise BundleError(f"{expected}, received {shown(received)}")
