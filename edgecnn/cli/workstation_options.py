"""Options that several workstation commands share; a command with groups of settings uses `edgecnn.cli.options.with_flags`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from edgecnn.cli import options
from edgecnn.recipe import Recipe
from edgecnn.region import FITS, RESAMPLINGS, read_region, read_size
from edgecnn.tables import Group, leaves, option

if TYPE_CHECKING:
    from edgecnn.calibrate.input_range import Stated
    from edgecnn.report.table import Section
    from edgecnn.runs import Run
    from edgecnn.verify.against import Rule

GATE = "Gate"
BACKBONE = "An ONNX file to start from"
AS_RANGE = "as --input-range"

MEANINGS = {key: str(entry.metadata.get("meaning")) for key, entry in leaves(Recipe)}

LARGEST_MEAN = 2.0  # for means and deviations of pixels from 0 to 1; those for 0 to 255 are larger


RecipeArgument = Annotated[
    Path | None, typer.Argument(metavar="RECIPE", help="A recipe file (TOML).", show_default="the built-in recipe")
]
RunArgument = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder.", show_default="runs/latest")]
Jobs = Annotated[
    int,
    options.option(..., "Folds to train at the same time, each in its own process.", True, "Training", min=1, max=64),
]
Full = Annotated[bool, options.option(..., "Print all figures, not only those that decide.", "off", None, "--full")]


def opened_run(path: Path | None) -> "Run":
    from edgecnn.runs import open_run

    run = open_run(path)
    options.note(f"run {run.path}")
    return run


def print_section(section: "Section") -> None:
    from edgecnn.labels import text_table

    if section.table:
        print(text_table(*section.table, options.terminal_width()))
    for line in section.lines:
        print(line)


def read_sides(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT or the side of a square; ValueError for anything else."""
    try:
        return read_size(text if "x" in text.lower() else f"{text}x{text}")
    except ValueError:
        raise ValueError(f"received {text!r}, expected WIDTHxHEIGHT or one number, such as 160x120 or 128") from None


def read_seen(text: str) -> list[float]:
    """Read a region in a recipe's form; ValueError for anything else."""
    return list(read_region(text))


def read_backbone(text: str) -> str:
    if not text.endswith(".onnx"):
        raise ValueError(f"received {text}, expected an ONNX file: docs/your-model.md shows how PyTorch writes one")
    return text


def read_channels(text: str) -> tuple[float, ...]:
    """Read one number, or one per channel, for pixels from 0 to 1; ValueError for anything else."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
        raise ValueError(f"received {text!r}, expected R,G,B, such as 0.485,0.456,0.406")
    if max(map(abs, values)) > LARGEST_MEAN:
        raise ValueError(f"received {text}, expected numbers for pixels from 0 to 1. Divide those for 0 to 255 by 255")
    return values


def read_deviations(text: str) -> tuple[float, ...]:
    values = read_channels(text)
    if min(values) <= 0:
        raise ValueError(f"received {text}, expected numbers above 0")
    return values


def read_names(path: str) -> tuple[str, ...]:
    """Read a file with one name per line; ValueError if it cannot be read or repeats a name."""
    try:
        names = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if len(set(names)) != len(names):
        raise ValueError(f"{path} contains a name more than once")
    return names


def overriding(key: str, default: Any = None, **more: Any) -> Any:
    """Return the option that overrides a recipe key: the key's meaning says what it does, and what the default is if left open."""
    about, _, usual = MEANINGS[key].rstrip(".").partition("; by default ")
    return option(default, f"{about}.", keys=(key,), **({"shown": usual} if usual else {}) | more)


class Data(Group):
    """What to train, and on which images; `keys` are the recipe keys that a setting overrides."""

    heading: ClassVar = "Data and network"
    data: str | None = overriding("data.source", shown="cifar10")
    region: list[float] | None = option(
        None,
        "Train on this part of each image; the model then sees only this part of each frame too. Left, top, width and height as fractions "
        "of the upright image, such as 0.5,0,0.5,1 for its right half.",
        shown="the whole image",
        metavar="X,Y,W,H",
        typed=None,
        read=read_seen,
        keys=("data.region",),
    )
    group_by: str | None = option(
        None,
        "Regular expression: photos with the same match, or the same first group of it, share a split and a fold. It sees a photo's path "
        "below its class folder, without the ending. none ignores folders.",
        shown="the list of splits, else folders below the class folders",
        metavar="REGEX",
        keys=("data.group_by",),
    )
    network: str | None = option(
        None,
        "A network's name, or FILE.py:FUNCTION for your own: a function (height, width, channels, num_classes) that returns "
        "a tf_keras model. The file is executed, so name only files that you trust.",
        shown="chosen for the images: see edgecnn networks --data",
        keys=("network.name",),
    )
    backbone: str | None = option(
        None,
        "Start from this ONNX file's network and weights, with a new last layer: see docs/your-model.md. Its input size is the file's.",
        shown="none",
        metavar="FILE.onnx",
        typed=None,
        read=read_backbone,
        heading=BACKBONE,
        keys=("network.name",),
    )
    input_range: str | None = option(
        None,
        "How the backbone reads pixels, as for edgecnn import. auto prints and uses the range with which a fitted last layer does best.",
        shown="auto",
        metavar="auto|centred|unit|raw|imagenet",
        choices=("auto", "centred", "unit", "raw", "imagenet"),
        heading=BACKBONE,
        keys=("network.options.input_range",),
    )
    input_mean: str | None = option(
        None,
        "Mean of each channel, for pixels from 0 to 1: the backbone reads (pixel / 255 - mean) / std.",
        shown=AS_RANGE,
        metavar="R,G,B",
        typed=None,
        read=lambda text: text if read_channels(text) else "",
        heading=BACKBONE,
        keys=("network.options.mean",),
    )
    input_std: str | None = option(
        None,
        "Deviation of each channel, for --input-mean.",
        shown="none",
        metavar="R,G,B",
        typed=None,
        read=lambda text: text if read_deviations(text) else "",
        heading=BACKBONE,
        keys=("network.options.std",),
    )
    size: tuple[int, int] | None = option(
        None,
        "The network's input in pixels, width x height, such as 160x120. One number is the side of a square.",
        shown="chosen with the network; otherwise 160 from ImageNet, or the images' own size up to 224, or 96 if they differ",
        metavar="WxH",
        typed=None,
        read=read_sides,
        keys=("network.width", "network.height"),
    )
    init: str | None = option(
        None,
        "Start from this run's trained network, with a new head. Its network and input apply unless you name others. You may also "
        "name a recipe or a bundle: edgecnn then looks for its run in runs/. random starts from random weights.",
        shown="the network's ImageNet weights, if it has any",
        metavar="RUN",
        keys=("init.source",),
    )


class Budget(Group):
    """Limits for choosing the network; `keys` as in Data."""

    heading: ClassVar = "Data and network"
    max_kb: float | None = overriding("network.max_kb", shown="no limit", low=1)
    max_macs: float | None = overriding("network.max_macs", shown="no limit", low=1_000)
    max_ms: float | None = overriding("network.max_ms", shown="no limit", low=0.001)


class Training(Group):
    """How to train; `keys` as in Data."""

    heading: ClassVar = "Training"
    epochs: int | None = overriding("train.epochs", low=1)
    qat_epochs: int | None = overriding("qat.epochs", low=0)
    batch_size: int | None = overriding("train.batch_size", low=1)
    learning_rate: float | None = overriding("train.learning_rate")
    seed: int | None = overriding("seed", shown="1")
    robust: bool = overriding("train.robust", False)
    folds: int | None = overriding("train.folds", shown="none", low=2, high=20)
    class_weights: str | None = overriding(
        "train.class_weights", shown="auto", metavar="auto|none", heading=Data.heading
    )
    quick: bool = option(
        False,
        "Fit only the last layer of a network from ImageNet, on all images. Takes a minute for a thousand photos. Folds measure it: each "
        "image is answered by a layer that was fitted without it.",
        keys=("train.head_only",),
    )
    settings: list[str] | None = option(
        None,
        "Any recipe key, such as train.shift=4. May be repeated. edgecnn train --keys lists the keys.",
        shown="none",
        flag="set",
        metavar="KEY=VALUE",
    )


class Limits(Group):
    """The gate's limits, as in `edgecnn.verify.parity_report.Gate`."""

    heading: ClassVar = GATE
    max_drop: float = option(1.0, "Largest accepted drop in accuracy, in percentage points.", low=0, high=100)
    confident: bool = option(
        False,
        "Require the upper end of the drop's 95 % interval to meet --max-drop too, and refuse models at chance level.",
    )
    min_agreement: float | None = option(
        None, "Smallest accepted share of images with the same answer, 0 to 1.", shown="no limit", low=0, high=1
    )
    accept_conversion: bool = option(
        False,
        "Pass int8 files even if they differ from the fake-quantized model by more than the limit. The report and the card say so.",
    )


class Replacing(Group):
    """The model that a new one is compared with before it replaces it."""

    heading: ClassVar = "Old against new"
    against: Path | None = option(
        None,
        "The bundle that the new model would replace. Both answer the photos that neither learnt from, and a worse one is refused.",
        shown="none",
        metavar="OLD.edgecnn",
    )
    renamed: list[str] | None = option(
        None, "A class that was renamed. May be repeated.", shown="none", metavar="OLD=NEW"
    )
    strict: bool = option(
        False,
        "Require enough photos to refuse a model that is 3 points worse: rarely fewer than 1,000. --confident requires it too.",
    )


def rule(strict: bool, confident: bool) -> "Rule":
    """Return the rule by which old and new are judged."""
    return "confident" if confident else "strict" if strict else "usual"


def renames(texts: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts or []]
    for old, equals, new in pairs:
        if not (old and equals and new):
            raise typer.BadParameter(f"received {old + equals + new!r}, expected OLD=NEW.", param_hint="--renamed")
    return {old: new for old, _, new in pairs}


class Scores(Group):
    """What to choose for scores on validation images."""

    heading: ClassVar = "Scores"
    target_error: float | None = option(
        None,
        "Choose the smallest threshold that keeps the error rate of answered images at or below this fraction, with 95 % "
        "confidence, on validation images. Below the threshold the model abstains.",
        shown="no threshold",
        low=0.0001,
        high=0.9999,
    )


class Foreign(Group):
    """The input and the answers of a model that edgecnn did not train."""

    heading: ClassVar = "Input range"
    input_range: str | None = option(
        None,
        "How the model reads pixels: -1 to 1 (centred), 0 to 1 (unit), 0 to 255 (raw) or like torchvision's models (imagenet). "
        "auto picks and prints the one that does best on validation images, and on training images too if those are few.",
        shown="auto",
        metavar="auto|centred|unit|raw|imagenet",
    )
    input_scale: float | None = option(
        None,
        "For any other range: the model reads S * (pixel - 128 - Z).",
        shown=AS_RANGE,
        low=1e-6,
        high=1e6,
        metavar="S",
    )
    input_zero_point: int | None = option(None, "Z of --input-scale.", shown="0", low=-128, high=127, metavar="Z")
    input_mean: tuple[float, ...] | None = option(
        None,
        "Mean of each channel, for pixels from 0 to 1: the model reads (pixel / 255 - mean) / std, like torchvision's Normalize.",
        shown=AS_RANGE,
        metavar="R,G,B",
        typed=None,
        read=read_channels,
    )
    input_std: tuple[float, ...] | None = option(
        None,
        "Deviation of each channel, for --input-mean.",
        shown="none",
        metavar="R,G,B",
        typed=None,
        read=read_deviations,
    )
    fit: str = option(
        "crop",
        "How an image of another shape is fitted to the model's input: centre crop, grey bars, or stretched.",
        choices=FITS,
        metavar="|".join(FITS),
    )
    resampling: str = option(
        "bilinear",
        "The filter that shrinks images to the model's input. Use the one of its training: bilinear as in torchvision and Pillow, or "
        "box, the mean of the pixels that are covered.",
        choices=RESAMPLINGS,
        metavar="|".join(RESAMPLINGS),
    )
    labels: tuple[str, ...] = option(
        (),
        "Names of the model's outputs in their order, one per line; each class folder must be among them.",
        shown="the class folders in alphabetical order",
        metavar="FILE",
        heading=None,
        typed=None,
        read=read_names,
    )


def stated(given: Foreign) -> "Stated":
    """Return the labels, and the input range: a name, "auto" if none was given, a scale and a zero point, or a mean and a deviation."""
    from edgecnn.calibrate.input_range import AUTO, RANGES, Stated, per_channel

    name, scale, zero_point, mean, std, fit, resampling, labels = vars(given).values()
    options.check_choice("--input-range", name, (AUTO, *RANGES))
    ways = {"--input-range": name, "--input-scale": scale, "--input-mean": mean}
    if len(several := [way for way, value in ways.items() if value is not None]) > 1:
        raise typer.BadParameter(f"{' and '.join(several)} are mutually exclusive: give one.")
    if zero_point is not None and scale is None:
        raise typer.BadParameter("--input-zero-point and --input-scale go together: give both.")
    if (mean is None) != (std is None):
        raise typer.BadParameter("--input-mean and --input-std go together: give both.")
    if mean and len(mean) != len(std):
        raise typer.BadParameter(f"--input-mean has {len(mean)} numbers, --input-std {len(std)}.")
    alone = name or AUTO if scale is None else (scale, zero_point or 0)
    read = per_channel(mean, std) if mean else alone
    return Stated(input_range=read, labels=labels, fit=fit, resampling=resampling)
