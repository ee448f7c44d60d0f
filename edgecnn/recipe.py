"""Recipes: everything that decides a model, as data.

A recipe is a TOML file whose tables are the frozen dataclasses below; a field's metadata holds its limits.
Defaults are overridden by the recipe, and the recipe by the command line.
"""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecnn.errors import RecipeError, nearest
from edgecnn.images import FITS

INPUT_RANGES = {"centred": (1 / 128, 0), "raw": (1.0, -128)}
"""The network's real input per pixel, as (scale, zero_point) of the code pixel - 128: (pixel - 128) / 128, or the pixel."""


def limits(default: Any, **metadata: Any) -> Any:
    """Return a dataclass field with a default and the limits that `check` enforces: low, high (inclusive), choices."""
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the images come from and how they are divided.

    `source` is a dataset's name, a folder, a zip file, or such a path below $EDGECNN_DATA. `title` is what cards and
    reports call the data. The fractions are of the training images; `test_fraction` counts only where the
    source has no test split of its own.
    """

    source: str = "cifar10"
    title: str = ""
    validation_fraction: float = limits(0.1, low=0.01, high=0.5)
    test_fraction: float = limits(0.2, low=0.01, high=0.5)
    fit: str = limits("crop", choices=FITS)


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """Which network, for which input: its name, or FILE.py:FUNCTION for one of your own.

    Zero takes the data's own height, width or channels, and the scale of `input_range`. With an `input_scale` the network's
    real input is input_scale * (pixel - 128 - input_zero_point).
    """

    name: str = "article"
    height: int = limits(0, low=0, high=1024)
    width: int = limits(0, low=0, high=1024)
    channels: int = limits(0, choices=(0, 1, 3))
    input_range: str = limits("centred", choices=tuple(INPUT_RANGES))
    input_scale: float = limits(0.0, low=0.0, high=1e6)
    input_zero_point: int = limits(0, low=-128, high=127)
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InitRecipe:
    """A trained network to start from, for few images: its body is taken over, its head is drawn anew.

    `source` is a run folder; none where it is empty, and the other keys then change nothing. The head alone is trained for
    `frozen_epochs`, at the float phase's learning rate; then the float phase trains all, at `body_rate` times that rate.
    """

    source: str = ""
    frozen_epochs: int = limits(10, low=0, high=10_000)
    body_rate: float = limits(0.1, low=1e-4, high=1.0)


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """The float phase.

    `flip` auto mirrors half of the images where the dataset says that classes survive it, as yes does anyway; alternating mirrors
    one half in every other epoch and the other half in the rest. The keys below change nothing unless set:

    warm_up: share of a one-cycle schedule that rises.
    cutout: side, in pixels, of a square of mid-grey at a random place of each image.
    teacher: run folder of a trained network to learn from as well: `teacher_weight` is its share of the loss, the rest is the
        labels', and `teacher_temperature` divides both networks' logits.
    teacher_views: epochs whose images the teacher is asked about; after them the same images come again, in the same order, with the
        answers that it gave. They take 4 bytes an image, class and such epoch. At 0 every epoch has images of its own.
    """

    epochs: int = limits(10, low=1, high=10_000)
    batch_size: int = limits(128, low=1, high=65_536)
    optimizer: str = limits("adam", choices=("adam", "sgd"))
    learning_rate: float = limits(0.003, low=1e-8, high=100.0)
    schedule: str = limits("one-cycle", choices=("one-cycle", "cosine", "constant"))
    weight_decay: float = limits(0.01, low=0.0, high=1.0)
    label_smoothing: float = limits(0.05, low=0.0, high=0.5)
    flip: str = limits("auto", choices=("auto", "yes", "no", "alternating"))
    shift: int = limits(1, low=0, high=64)
    precision: str = limits("float32", choices=("float32", "bfloat16"))
    warm_up: float = limits(0.2, low=0.0, high=0.9)
    cutout: int = limits(0, low=0, high=512)
    teacher: str = ""
    teacher_temperature: float = limits(2.0, low=0.1, high=100.0)
    teacher_weight: float = limits(0.5, low=0.0, high=1.0)
    teacher_views: int = limits(0, low=0, high=10_000)


@dataclass(frozen=True, kw_only=True)
class QatRecipe:
    """The quantization-aware phase. No epochs means that ranges are calibrated and no weight is trained.

    `method` is how the int8 models are made: "qat", "ptq" (quantized after training, without this phase) or "auto", the better of the
    two on validation images. `granularity` is what a convolution's weights have one scale for: each output channel, or the whole
    tensor. `rounding` is how the calibrated model's weights become codes: "nearest", or "auto", where they are rounded once more, so that
    their layers' outputs stay (GPTQ), which is kept if it is better on validation images. `patience` ends the phase after so many
    epochs without a better one; 0 never does. `learning_rate` is the peak of a cosine; 0 chooses it from how sharply the loss bends at
    the calibrated model, 0.001 at most.
    """

    epochs: int = limits(2, low=0, high=10_000)
    batch_size: int = limits(128, low=1, high=65_536)
    learning_rate: float = limits(0.0, low=0.0, high=10.0)
    calibration_batches: int = limits(60, low=1, high=10_000)
    distillation_temperature: float = limits(2.0, low=0.1, high=100.0)
    method: str = limits("auto", choices=("auto", "qat", "ptq"))
    granularity: str = limits("channel", choices=("channel", "tensor"))
    rounding: str = limits("auto", choices=("auto", "nearest"))
    patience: int = limits(0, low=0, high=10_000)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe. `name` names the run folder and the bundle."""

    name: str = ""
    seed: int = limits(1, low=0, high=2**31 - 1)
    data: DataRecipe = field(default_factory=DataRecipe)
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    init: InitRecipe = field(default_factory=InitRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    qat: QatRecipe = field(default_factory=QatRecipe)

    @property
    def input_scale(self) -> float:
        """Scale of the model's input code."""
        return self.network.input_scale or INPUT_RANGES[self.network.input_range][0]

    @property
    def input_zero_point(self) -> int:
        """Zero point of the model's input code."""
        network = self.network
        return network.input_zero_point if network.input_scale else INPUT_RANGES[network.input_range][1]


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as nested tables, unchecked; `build_recipe` checks.

    Raises:
        RecipeError: if the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from None


def build_recipe(tables: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Make a checked Recipe from nested tables.

    Args:
        tables: as read from TOML; missing keys take their defaults.
        where: what messages call the origin, such as the file's path.

    Raises:
        RecipeError: for an unknown key (naming the nearest), a wrong type or a value out of range.
    """
    return _build(Recipe, tables, where, "")


def _build(kind: type, tables: Mapping[str, Any], where: str, prefix: str) -> Any:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    types_of = typing.get_type_hints(kind)
    values = {}
    for key, value in tables.items():
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {prefix}{key}. {nearest(key, fields)}")
        expected = types_of[key]
        if dataclasses.is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}: {prefix}{key} must be a table, received {value!r}")
            values[key] = _build(typing.cast(type, expected), value, where, f"{prefix}{key}.")
        else:
            values[key] = _check(value, expected, fields[key].metadata, f"{where}: {prefix}{key}")
    return kind(**values)


def _check(value: Any, expected: Any, metadata: Mapping[str, Any], what: str) -> Any:
    if typing.get_origin(expected) is not None:
        if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
            raise RecipeError(f"{what} must be a table of strings, received {value!r}")
        return types.MappingProxyType(dict(value))
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise RecipeError(f"{what} must be {_NAMES[expected]}, received {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{what} must be finite, received {value!r}")
    choices = metadata.get("choices")
    if choices is not None and value not in choices:
        raise RecipeError(f"{what} must be one of {', '.join(map(str, choices))}; received {value!r}")
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None and not low <= value <= high:
        raise RecipeError(f"{what} must be between {low:g} and {high:g}, received {value!r}")
    return value


_NAMES = {str: "a string", int: "a whole number", float: "a number"}


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Turn `train.epochs=20` settings into nested tables; a value that is not TOML is taken as a string.

    Raises:
        RecipeError: for a setting without `=` or with an empty key.
    """
    items = []
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not all(part.strip() for part in key.split(".")):
            raise RecipeError(f"--set takes KEY=VALUE, such as train.epochs=20; received {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        items.append((key.strip(), value))
    return nest(items)


def nest(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn (dotted key, value) pairs into nested tables; a later pair wins.

    Raises:
        RecipeError: if a key is both a value and a table.
    """
    tables: dict[str, Any] = {}
    for key, value in items:
        *parents, last = key.split(".")
        table = tables
        for part in parents:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise RecipeError(f"{key}: {part} was already set to a value")
        table[last] = value
    return tables


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` laid over it, table by table."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def to_tables(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe as nested plain tables, every key present."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
        return dict(value) if isinstance(value, Mapping) else value

    return plain(recipe)


def to_toml(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML that `build_recipe` reads back to an equal recipe."""
    return _toml(to_tables(recipe), "")


def _toml(tables: Mapping[str, Any], prefix: str) -> str:
    lines = [f"{key} = {_toml_value(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    text = "".join(f"{line}\n" for line in lines)
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            text += f"\n[{prefix}{key}]\n" + _toml(value, f"{prefix}{key}.")
    return text


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        escaped = "".join(
            {"\\": "\\\\", '"': '\\"'}.get(char, char if char >= " " and char != "\x7f" else f"\\u{ord(char):04x}")
            for char in value
        )
        return f'"{escaped}"'
    return repr(value)
