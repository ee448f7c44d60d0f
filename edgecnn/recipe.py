"""Recipes: everything that decides a model, as TOML whose tables are these dataclasses. A field's metadata holds its meaning and its
limits.
"""

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecnn.errors import RecipeError
from edgecnn.region import EXPECTED, FITS, RESAMPLINGS, WHOLE, Region, is_region, region_text
from edgecnn.tables import NAMES, Struct, build, end_text, key, leaves, to_json, value_type


def nest(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Turn (dotted key, value) pairs into nested tables; a later pair wins. Raises RecipeError if a key is both a value and a table."""
    tables: dict[str, Any] = {}
    for name, value in items:
        *parents, last = name.split(".")
        table = tables
        for part in parents:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise RecipeError(f"{name}: {part} was already set to a value")
        table[last] = value
    return tables


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over` merged into it, table by table."""
    merged = dict(base)
    for name, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = merge(merged[name], value)
        else:
            merged[name] = value
    return merged


INPUT_RANGES = {"centred": (1 / 128, 0), "unit": (1 / 255, -128), "raw": (1.0, -128)}
"""The network's real input per pixel, as (scale, zero_point) of the code pixel - 128: (pixel - 128) / 128, pixel / 255, or the pixel."""


HEAD_FOLDS = 5  # folds of train.head_only if the recipe sets none

IF_BETTER, ALWAYS, NEVER = "if-better", "always", "never"

RANDOM = "random"  # the `init.source` of random weights

SOURCE_KINDS: Mapping[str, Mapping[str, Any]] = {
    # Frigate stretches images to 224x224 RGB before it classifies them, for every network
    "frigate": {"data": {"fit": "stretch"}, "network": {"height": 224, "width": 224, "channels": 3}},
}
"""Kinds that `data.source` may name before a path, as in "frigate:PATH", and a recipe's defaults for such a source."""


def left_open(meaning: str, **limits: Any) -> Any:
    """Return the field of a key that a recipe may leave open, as None. The type of a key that `edgecnn.train.settle` fills excludes None.

    `limits` are as in `edgecnn.tables.key`; the meaning ends with the value of an open key.
    """
    return key(None, meaning, left_out=True, **limits)


def is_pattern(text: str | None) -> bool:
    try:
        return text is None or (bool(re.compile(text)) and text != "")
    except re.error:
        return False


class DataRecipe(Struct):
    """Where the images come from and how they are divided."""

    source: str = key(
        "cifar10",
        "A dataset's name, a folder or zip of images, or frigate:PATH, also relative to $EDGECNN_DATA.",
    )
    unseen: str | None = left_open(
        "Images that did not train an imported model, for its test; by default a part of the source."
    )
    title: str | None = left_open("Name of the data in cards and reports; by default the dataset's own title.")
    validation_fraction: float = key(
        0.1, "Fraction of the training images for validation, if the data have no such split.", low=0.01, high=0.5
    )
    test_fraction: float = key(
        0.2, "Fraction of the training images for test, if the data have no such split.", low=0.01, high=0.5
    )
    group_by: str | None = left_open(
        "Regular expression: photos with the same match in path and name share a split; none ignores folders.",
        valid=is_pattern,
        expected="a regular expression, or none",
    )
    fit: str = key(
        "crop", "How to fit an image of another aspect ratio: centre crop, grey bars, or stretched.", choices=FITS
    )
    region: Region = key(
        WHOLE,
        "The part of each image that the model sees: [x, y, width, height] as fractions of the upright image.",
        valid=is_region,
        expected=EXPECTED,
    )
    resampling: str = key(
        "box",
        "The filter that shrinks images: the mean of the covered pixels, or bilinear, as in PyTorch.",
        choices=RESAMPLINGS,
        left_out=True,
    )


class NetworkRecipe(Struct):
    """The network and its input."""

    name: str = left_open(
        "A network's name, FILE.py:FUNCTION for your own, or FILE.onnx; by default chosen for the images."
    )
    height: int = left_open(
        "Rows of the input; by default chosen for the images, 160 from ImageNet, their own up to 224, or 96.",
        low=1,
        high=1024,
    )
    width: int = left_open("Columns of the input; by default as for height.", low=1, high=1024)
    channels: int = left_open("1 for grey, 3 for RGB; by default as in the images.", choices=(1, 3))
    input_range: str = key(
        "centred",
        "What the network reads for a pixel: (pixel - 128) / 128, or the pixel itself.",
        choices=tuple(INPUT_RANGES),
    )
    input_scale: float | None = left_open(
        "With Z = input_zero_point, the network reads input_scale * (pixel - 128 - Z); default: input_range.",
        low=1e-6,
        high=1e6,
    )
    input_zero_point: int = key(0, "See input_scale; ignored unless that is set.", low=-128, high=127)
    max_kb: float | None = left_open(
        "Largest int8 file of a network that may be chosen, in kB of 1,000 bytes.", low=1.0, high=1e6
    )
    max_macs: float | None = left_open(
        "Maximum multiply-accumulates per answer of a network that may be chosen.", low=1e3, high=1e12
    )
    max_ms: float | None = left_open(
        "Longest time per answer of a network that may be chosen, in ms, on this machine.", low=0.001, high=1e6
    )
    options: Mapping[str, str] = field(
        default_factory=dict,
        metadata={
            "meaning": "Options of your own network: its function's arguments, or the SHA-256 and the mean of FILE.onnx."
        },
    )

    @property
    def file(self) -> str:
        """The file of FILE.py:FUNCTION, or FILE.onnx; "" for a network of edgecnn."""
        name = self.name or ""
        return name if name.endswith(".onnx") else name.rpartition(":")[0]


class InitRecipe(Struct):
    """A trained network to start from, for small datasets: its body is kept, and a new head is fitted to the images."""

    source: str | None = left_open(
        "Run folder to start from, or random for random weights; by default ImageNet's if there are any."
    )


class TrainRecipe(Struct):
    """The float phase."""

    epochs: int = left_open("Epochs of the float phase; by default set by the number of images.", low=1, high=10_000)
    batch_size: int = left_open(
        "Images per batch; by default 32, 64 or 128, set by the number of images.", low=1, high=65_536
    )
    optimizer: str = key("adam", "Adam with decoupled weight decay, or SGD with momentum.", choices=("adam", "sgd"))
    learning_rate: float = left_open(
        "Peak learning rate; by default 0.003, or 0.0005 or 0.001 from trained weights.",
        low=1e-12,
        high=100.0,
    )
    schedule: str = left_open(
        "Rise then fall, fall, constant, or constant with averaged weights; by default chosen for the images.",
        choices=("one-cycle", "cosine", "constant", "averaged"),
    )
    weight_decay: float = key(
        0.01, "Weight decay: each step shrinks a weight by this times the learning rate.", low=0.0, high=1.0
    )
    label_smoothing: float = left_open(
        "Fraction of each label spread over all classes; by default 0.05, or 0.1 from ImageNet.",
        low=0.0,
        high=0.5,
    )
    flip: str = left_open(
        "Mirror half of the images: always, never, or each half alternately; by default if the data allow it.",
        choices=("yes", "no", "alternating"),
    )
    augment: str = left_open(
        "Changes to images: shifts, or a photo's crops, turns and light; by default chosen for the images.",
        choices=("shift", "photo"),
    )
    shift: int = key(1, "Largest random shift of an image, in pixels.", low=0, high=64)
    folds: int | None = left_open(
        "Cross-validate: models that are each tested on the part they did not see; one more learns from all.",
        low=2,
        high=20,
    )
    class_weights: str = key(
        "auto",
        "auto: rare classes of photos count more if the largest is at least three times the smallest.",
        choices=("auto", "none"),
    )
    head_only: bool = key(
        False,
        "Fit only the last layer of a network from ImageNet, on all images, measured with folds: --quick.",
    )
    tuning: str | None = left_open(
        "Whether the fine-tuned model ships or the head: by default, on photos, what validation finds better.",
        choices=(IF_BETTER, ALWAYS, NEVER),
    )
    precision: str = key("float32", "Arithmetic of the float phase.", choices=("float32", "bfloat16"))
    cutout: int | None = left_open(
        "Side, in pixels, of a grey square at a random place in each image; by default none.", low=1, high=512
    )
    robust: bool = key(
        False, "Mix corruptions into a third of the training images, for real cameras; see edgecnn stress."
    )

    @property
    def head_may_ship(self) -> bool:
        """Whether the fitted last layer is compared with the fine-tuned model, or ships anyway."""
        return self.tuning in (IF_BETTER, NEVER)


class TeacherRecipe(Struct):
    """A trained network to learn from in the float phase, in addition to the labels."""

    run: str = key(meaning="Run folder of the trained network. Its input may have another size.")
    temperature: float = key(2.0, "Divides the logits of both networks in the loss.", low=0.1, high=100.0)
    weight: float = key(0.5, "The teacher's share of the loss; the rest is the labels'.", low=0.0, high=1.0)
    views: int | None = left_open(
        "Epochs whose images the teacher labels; later epochs repeat them. By default it labels every epoch.",
        low=1,
        high=10_000,
    )


class QatRecipe(Struct):
    """The quantization-aware phase."""

    epochs: int = left_open(
        "Epochs of the quantization-aware phase, 0 to only calibrate; by default set by the number of images.",
        low=0,
        high=10_000,
    )
    batch_size: int = left_open(
        "Images per batch; by default 32, 64 or 128, set by the number of images.", low=1, high=65_536
    )
    learning_rate: float | None = left_open(
        "Peak learning rate of SGD with momentum; by default Adam at 0.00005, which suits every network.",
        low=1e-12,
        high=10.0,
    )
    method: str | None = left_open(
        "Quantization-aware training, or quantization after training; by default whichever validates better.",
        choices=("qat", "ptq"),
    )
    rounding: str | None = left_open(
        "How weights become codes: the nearest; by default GPTQ if that validates better.",
        choices=("nearest", "gptq"),
    )
    keep: int | None = left_open(
        "Last epoch, which is kept, 0 for calibrated ranges; by default the one that validates best is kept.",
        low=0,
        high=10_000,
    )


class StrangerRecipe(Struct):
    """The decision that an image shows none of the classes."""

    rate: float = left_open(
        "Fraction of known images that may be refused as strangers, 0 for none; by default 0.05 on photos.",
        low=0.0,
        high=0.5,
    )
    decide: bool | None = left_open(
        "Whether a device makes the decision without --strangers; by default if the recipe sets the rate."
    )


class Recipe(Struct):
    """A whole recipe."""

    name: str | None = left_open("Names the run folder and the bundle; by default DATA-NETWORK.")
    seed: int = key(1, "Seed of weights and batches.", low=0, high=2**31 - 1)
    data: DataRecipe = field(default_factory=DataRecipe)
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    init: InitRecipe = field(default_factory=InitRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    teacher: TeacherRecipe | None = key(None, left_out=True)
    qat: QatRecipe = field(default_factory=QatRecipe)
    stranger: StrangerRecipe = field(default_factory=StrangerRecipe)

    @property
    def folds(self) -> int | None:
        """The number of folds, if the images are divided into them."""
        return self.train.folds or (HEAD_FOLDS if self.train.head_only else None)

    @property
    def input_scale(self) -> float:
        return self.network.input_scale or INPUT_RANGES[self.network.input_range][0]

    @property
    def input_zero_point(self) -> int:
        network = self.network
        return network.input_zero_point if network.input_scale else INPUT_RANGES[network.input_range][1]


if TYPE_CHECKING:

    class Settled(Recipe):
        """A recipe whose every key has a value, from `edgecnn.train.settle.settle`, which knows the images. What trains takes this one."""

else:
    Settled = Recipe  # for the type checker only: a run's recipe, once stored, is equal to the settled one


TOO_DEEP = "its values are nested too deeply: a recipe holds numbers, texts and lists of numbers."


def load_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as nested tables, unchecked. Raises RecipeError if the file cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(
            f'{path} is not a TOML file: {error}. Expected tables and keys, such as [data] with source = "photos/" below it; JSON and YAML '
            "are not read. For the list of keys: edgecnn train --keys"
        ) from None
    except RecursionError:
        raise RecipeError(f"{path}: {TOO_DEEP}") from None


def build_recipe(tables: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Build a checked Recipe from nested tables; RecipeError, which names `where`, for an unknown key or a wrong value."""
    recipe = build(Recipe, with_source_defaults(tables), RecipeError, where)
    if source_kind(recipe.data.source)[0] == "frigate" and recipe.data.region != WHOLE:
        raise RecipeError(
            f"{where}: data.region is {region_text(recipe.data.region)}, but Frigate has already cut its images, and cuts those that "
            "it classifies. Leave it out."
        )
    return recipe


def with_source_defaults(tables: Mapping[str, Any]) -> dict[str, Any]:
    data = tables.get("data")
    source = data.get("source") if isinstance(data, Mapping) else None
    kind, _ = source_kind(source) if isinstance(source, str) else ("", "")
    return merge(SOURCE_KINDS.get(kind, {}), tables)


def source_kind(source: str) -> tuple[str, str]:
    """Return the kind that a data source names and its path: ("frigate", PATH) for "frigate:PATH", or "" and the whole source."""
    kind, colon, path = source.partition(":")
    return (kind, path) if colon and kind in SOURCE_KINDS else ("", source)


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Turn `train.epochs=20` settings into nested tables; a value that is not TOML is a string, an empty one None; or RecipeError."""
    items = []
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or not all(part.strip() for part in name.split(".")):
            raise RecipeError(f"--set takes KEY=VALUE, such as train.epochs=20; received {setting!r}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip() or None
        except RecursionError:
            raise RecipeError(f"--set {name}: {TOO_DEEP}") from None
        items.append((name.strip(), value))
    return nest(items)


def to_tables(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as nested plain tables, without the keys that it leaves open."""
    return dict(to_json(recipe))


def to_toml(recipe: Recipe) -> str:
    """Return a recipe as TOML that `build_recipe` reads back to an equal recipe."""
    import tomli_w

    return tomli_w.dumps(_without_empty(to_tables(recipe)))


def _without_empty(tables: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: _without_empty(value) if isinstance(value, Mapping) else value for name, value in tables.items()}
    return {name: value for name, value in inner.items() if value != {}}


@dataclass(frozen=True)
class Key:
    """A recipe key, for display: its dotted name, TOML type, default, limits as text ("" for none), and meaning."""

    name: str
    type: str
    default: Any
    limits: str
    meaning: str


def keys() -> list[Key]:
    found = []
    for name, entry in leaves(Recipe):
        kind = NAMES.get(value_type(entry.type), "array of 4 numbers" if entry.type == Region else "table of strings")
        found.append(Key(name, kind, default(entry), _limits_text(entry), entry.metadata["meaning"]))
    return found


def default(entry: dataclasses.Field) -> Any:
    """Return a key's default as a JSON value; None if the key is left open or required."""
    if entry.default_factory is not dataclasses.MISSING:
        return to_json(entry.default_factory())
    return None if entry.default is dataclasses.MISSING else to_json(entry.default)


def _limits_text(entry: dataclasses.Field) -> str:
    if "choices" in entry.metadata:
        return ", ".join(map(str, entry.metadata["choices"]))
    if "expected" in entry.metadata:
        return str(entry.metadata["expected"])
    return range_text(entry.metadata) if "low" in entry.metadata else ""


def range_text(metadata: Mapping[str, Any]) -> str:
    """Return the range of a key as text, from its metadata `low` and `high`: see `edgecnn.tables.key`."""
    ends = metadata["low"], metadata["high"]
    return " to ".join(map(end_text, ends))
