"""The manifest of a bundle: read, written and validated here alone."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgecnn.errors import BundleError
from edgecnn.files import canonical_json
from edgecnn.images import FITS
from edgecnn.labels import unsafe, why_not_a_label

SCHEMA = "edgecnn.bundle/1"
MANIFEST = "manifest.json"
FORMATS = ("tflite", "onnx")
PRECISIONS = ("int8", "float32", "float16", "int16x8")
"""Models of all but the first have float32 input and output."""

UNITS = ("LSB", "logit")
GOLDEN_INPUTS = "golden/inputs.npy"
OPTIONAL: dict[str, Any] = {"temperature": 1.0, "threshold": 0.0, "golden_images": []}
"""Keys of the manifest that are written only where they are not these."""

HEX_DIGITS = frozenset("0123456789abcdef")
NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
MAX_SIDE = 4096
"""Largest height and width of an input, in pixels."""

MAX_MANIFEST_BYTES = 512 * 1024
"""Largest manifest that is read: 1,000 classes with names of 40 characters take a tenth of it. It is checked before JSON is parsed, which
takes up to 30 times the memory of the text."""

MAX_DEPTH = 20
"""Most levels of `provenance`: canonical JSON indents each line by its level."""

SCALES = (1e-9, 1e9)
TEMPERATURES = (1e-3, 1e3)
"""Limits of the input's scale and of the temperature: float32 holds what they are multiplied with and divided by."""

MAX_LSB = 8
"""Largest tolerance of a model that answers in codes. Kernels were seen three codes apart (`runtime.selftest.OTHER_KERNELS`)."""


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """What the models read: `fit` says how an image gets into (height, width, channels), `scale` and `zero_point` what its codes mean.

    The real value of a pixel is scale * (pixel - 128 - zero_point).
    """

    height: int
    width: int
    channels: int
    fit: str
    scale: float
    zero_point: int


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model file and the outputs that it must give for the golden inputs.

    `tolerance` is the largest difference allowed from `golden`, in LSB (output codes) or logits, for the reason given;
    `golden_engine` is the engine that made it.
    """

    file: str
    format: str
    precision: str
    golden: str
    tolerance: float
    tolerance_unit: str
    tolerance_reason: str
    golden_engine: str


@dataclass(frozen=True, kw_only=True)
class GoldenImage:
    """An encoded image, and the SHA-256 of the bytes that it must be decoded to (upright, in the input's channels) and resized to."""

    file: str
    decoded_sha256: str
    resized_sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a bundle says about itself.

    `defaults` maps a format to the model file that its engines take unless told otherwise; `provenance` is a free JSON object (recipe,
    data fingerprint, split hashes, versions); `files` maps every other entry of the bundle to its SHA-256, and is filled
    when the bundle is written.

    Logits are divided by `temperature` before softmax; below the score `threshold` the classifier abstains, unless told
    another. These two and `golden_images` may be left out of the JSON, and are where they say nothing.
    """

    schema: str = SCHEMA
    name: str
    title: str
    labels: tuple[str, ...]
    input: InputContract
    models: tuple[ModelEntry, ...]
    defaults: dict[str, str]
    golden_inputs: str = GOLDEN_INPUTS
    golden_images: tuple[GoldenImage, ...] = ()
    temperature: float = 1.0
    threshold: float = 0.0
    provenance: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the manifest as canonical JSON: the same manifest gives the same bytes.

        Raises:
            BundleError: if `provenance` holds what JSON cannot.
        """
        try:
            lists = {"models": self.models, "golden_images": self.golden_images}
            parts = {"input": vars(self.input), **{key: [vars(item) for item in items] for key, items in lists.items()}}
            table = {**vars(self), **parts}
            return canonical_json({key: value for key, value in table.items() if OPTIONAL.get(key) != value}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise BundleError(f"the manifest cannot be written as JSON: {error}") from None

    @staticmethod
    def from_json(data: bytes) -> "Manifest":
        """Read and check a manifest.

        Args:
            data: as `to_json` returns.

        Raises:
            BundleError: for what is not JSON, an unknown or missing key, a wrong type or a value out of range.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{MANIFEST} has {len(data):,} bytes; at most {MAX_MANIFEST_BYTES:,} are read")
        try:
            table = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST} is not JSON: {error}") from None
        if type(table) is dict and table.get("schema", SCHEMA) != SCHEMA:
            raise BundleError(
                f"the bundle's schema is {_short(table['schema'])}, this edgecnn reads {SCHEMA!r}. "
                "Install the edgecnn that made it, or bundle again."
            )
        values = _checked(OPTIONAL | table if type(table) is dict else table, Manifest, MANIFEST)
        values["labels"] = tuple(values["labels"])
        values["input"] = InputContract(**_checked(values["input"], InputContract, "input"))
        values["models"] = tuple(
            ModelEntry(**_checked(model, ModelEntry, f"models[{index}]"))
            for index, model in enumerate(values["models"])
        )
        values["golden_images"] = tuple(
            GoldenImage(**_checked(image, GoldenImage, f"golden_images[{index}]"))
            for index, image in enumerate(values["golden_images"])
        )
        manifest = Manifest(**values)
        _check_values(manifest)
        return manifest

    def model(self, file: str) -> ModelEntry:
        """Return the entry of a model file.

        Raises:
            BundleError: if the bundle has no such model.
        """
        for entry in self.models:
            if entry.file == file:
                return entry
        raise BundleError(f"the bundle has no model {file!r}; it has {', '.join(entry.file for entry in self.models)}")


_JSON_TYPES = {
    str: "a string",
    int: "a whole number",
    float: "a number with a decimal point",
    dict: "an object",
    list: "an array",
}


def _json_type(annotation: Any) -> type:
    """Return the type that JSON gives for a field of a manifest's dataclass."""
    origin = getattr(annotation, "__origin__", annotation)
    if origin is tuple:
        return list
    return origin if origin in _JSON_TYPES else dict


def _checked(table: Any, kind: type, where: str) -> dict[str, Any]:
    """Return a JSON object's items after checking that they are exactly the fields of `kind`, each of its JSON type."""
    if type(table) is not dict:
        raise BundleError(f"{where} must be an object, received {_short(table)}")
    fields = {entry.name: _json_type(entry.type) for entry in dataclasses.fields(kind)}
    if table.keys() != fields.keys():
        unknown, missing = sorted(table.keys() - fields.keys()), sorted(fields.keys() - table.keys())
        raise BundleError(
            f"{where}: " + (f"unknown key {_short(unknown[0])}" if unknown else f"the key {missing[0]!r} is missing")
        )
    for name, expected in fields.items():
        if type(table[name]) is not expected:
            raise BundleError(f"{where}: {name} must be {_JSON_TYPES[expected]}, received {_short(table[name])}")
    return dict(table)


def _check_values(manifest: Manifest) -> None:
    contract = manifest.input
    for name in ("height", "width"):
        _require(
            1 <= getattr(contract, name) <= MAX_SIDE,
            f"input: {name} must be between 1 and {MAX_SIDE}",
            getattr(contract, name),
        )
    _require(contract.channels in (1, 3), "input: channels must be 1 or 3", contract.channels)
    _require(contract.fit in FITS, f"input: fit must be one of {', '.join(FITS)}", contract.fit)
    _within(contract.scale, SCALES, "input: scale")
    _require(-128 <= contract.zero_point <= 127, "input: zero_point must be between -128 and 127", contract.zero_point)
    check_labels(manifest.labels)
    _within(manifest.temperature, TEMPERATURES, "temperature")
    _within(manifest.threshold, (0.0, 1.0), "threshold")
    _require(bool(manifest.name), "name must not be empty", manifest.name)
    _require_plain({"name": manifest.name, "title": manifest.title})
    _require(not _deeper(manifest.provenance, MAX_DEPTH), f"provenance must have at most {MAX_DEPTH} levels", "more")
    _require(bool(manifest.models), "models must hold a model", manifest.models)
    for index, model in enumerate(manifest.models):
        where = f"models[{index}]: "
        _require(model.format in FORMATS, f"{where}format must be one of {', '.join(FORMATS)}", model.format)
        _require(
            model.precision in PRECISIONS, f"{where}precision must be one of {', '.join(PRECISIONS)}", model.precision
        )
        _require(
            model.tolerance_unit in UNITS,
            f"{where}tolerance_unit must be one of {', '.join(UNITS)}",
            model.tolerance_unit,
        )
        if model.tolerance_unit == "LSB":
            whole = model.tolerance in range(MAX_LSB + 1)
            _require(whole, f"{where}tolerance must be a whole number of codes from 0 to {MAX_LSB}", model.tolerance)
        _require(0 <= model.tolerance < math.inf, f"{where}tolerance must be finite and not negative", model.tolerance)
        _require_plain({f"{where}{name}": text for name, text in vars(model).items() if type(text) is str})
    files = [model.file for model in manifest.models]
    _require(len(files) == len(set(files)), "models must name each file once", files)
    for format_, file in manifest.defaults.items():
        right = any(model.file == file and model.format == format_ for model in manifest.models)
        _require(right, f"defaults: {_short(format_)} must name a model of that format", file)
    for name, digest in manifest.files.items():
        _require(safe_name(name), "files: names must be plain relative paths", name)
        _require(_is_sha256(digest), f"files: {name} must have a SHA-256", digest)
    encoded = [image.file for image in manifest.golden_images]
    _require(len(encoded) == len(set(encoded)), "golden_images must name each file once", encoded)
    for image in manifest.golden_images:
        for digest in (image.decoded_sha256, image.resized_sha256):
            _require(_is_sha256(digest), f"golden_images: {_short(image.file)} must have two SHA-256", digest)
    referred = {manifest.golden_inputs, *files, *encoded, *(model.golden for model in manifest.models)}
    lacking = sorted(name for name in referred if name not in manifest.files)
    _require(not lacking, "files must list every file that the manifest names; lacking", lacking)


def check_labels(labels: Sequence[Any]) -> None:
    """Check that names can be those of a model's classes.

    Raises:
        BundleError: if one is not a string that a class may be called, one stands twice, or there are fewer than two.
    """
    for index, label in enumerate(labels):
        why = why_not_a_label(label) if type(label) is str else "it is not a string"
        if why:
            raise BundleError(f"labels[{index}] cannot be the name of a class: {why}, received {_short(label)}")
    _require(len(labels) == len(set(labels)) >= 2, "labels must be two or more, each once", labels)


def _within(value: float, limits: tuple[float, float], name: str) -> None:
    low, high = limits
    _require(low <= value <= high, f"{name} must be between {low:g} and {high:g}", value)


def _require_plain(texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        _require(text.isprintable() or not any(map(unsafe, text)), f"{name} must hold no control characters", text)


def _deeper(value: Any, levels: int) -> bool:
    """Tell whether a JSON value has more than so many levels of objects and arrays."""
    inner = value.values() if type(value) is dict else value if type(value) is list else ()
    return levels < 1 or any(_deeper(item, levels - 1) for item in inner if type(item) in (dict, list))


def safe_name(name: str) -> bool:
    """Tell whether a name may be an entry of a bundle: ASCII letters, digits, `.`, `_` and `-` in parts that do not begin with a dot."""
    parts = name.split("/")
    return len(name) <= 200 and all(part and part[0] != "." and NAME_CHARACTERS.issuperset(part) for part in parts)


def _is_sha256(digest: Any) -> bool:
    return type(digest) is str and len(digest) == 64 and HEX_DIGITS.issuperset(digest)


def _require(condition: bool, expected: str, received: Any) -> None:
    if not condition:
        raise BundleError(f"{expected}, received {_short(received)}")


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
