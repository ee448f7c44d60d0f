"""Options that several commands of the workstation have, and how their texts are read."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgecnn.calibrate.input_range import Given

DATA = "Data and network"
TRAINING = "Training"
GATE = "Gate"
INPUT = "Input range"

LARGEST = 2.0
"""Of the means and deviations for pixels from 0 to 1; those for 0 to 255 are larger."""

RecipeArgument = Annotated[
    Path | None,
    typer.Argument(metavar="RECIPE", help="A recipe file (TOML).", show_default="the built-in recipe"),
]
RunArgument = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder.", show_default="runs/latest")]
Data = Annotated[
    str | None,
    typer.Option(
        help="A dataset's name, a folder or zip of images, or frigate:PATH, Frigate's folder.",
        show_default="cifar10",
        rich_help_panel=DATA,
    ),
]
Network = Annotated[
    str | None,
    typer.Option(
        help="A network's name, or FILE.py:FUNCTION for your own: a function (height, width, channels, num_classes) that returns "
        "a tf_keras model. The file is executed, so name only files that you trust.",
        show_default="chosen by the images: see edgecnn networks --data",
        rich_help_panel=DATA,
    ),
]
RegionText = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="X,Y,W,H",
        help="Train on this part of each image, which the model then sees of each frame too: left, top, width and height as fractions "
        "of the upright image, such as 0.5,0,0.5,1 for its right half.",
        show_default="the whole image",
        rich_help_panel=DATA,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH",
        help="The network's input in pixels, width x height, such as 160x120. One number is the side of a square.",
        show_default="160 where the network starts from ImageNet, else the images' own size up to 224, or 96 where they differ",
        rich_help_panel=DATA,
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Start from this run's trained network, with a new head. Its network and input apply unless you name others. You may also "
        "name a recipe or a bundle: edgecnn then looks for its run in runs/. random starts from random weights.",
        show_default="the network's own weights of ImageNet, if it has any",
        rich_help_panel=DATA,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Epochs of the float phase.", show_default="by the number of images", rich_help_panel=TRAINING
    ),
]
QatEpochs = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Epochs of the quantization-aware phase.",
        show_default="by the number of images",
        rich_help_panel=TRAINING,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images in a batch.",
        show_default="32, 64 or 128, by the number of images",
        rich_help_panel=TRAINING,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Peak learning rate of the float phase.",
        show_default="0.003, or 0.0005 from trained weights",
        rich_help_panel=TRAINING,
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of weights and batches.", show_default="1", rich_help_panel=TRAINING)
]
Robust = Annotated[
    bool,
    typer.Option(
        "--robust",
        help="Mix corruptions into a third of the training images, against what cameras do: noise, blur, light, colour. edgecnn stress "
        "measures what it gains.",
        show_default="off",
        rich_help_panel=TRAINING,
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any recipe key, such as train.shift=4. May be repeated. edgecnn train --keys lists the keys.",
        show_default="none",
        rich_help_panel=TRAINING,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing output.", show_default="off")]

MaxDrop = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=100.0,
        help="Largest accepted drop in accuracy, in percentage points.",
        rich_help_panel=GATE,
    ),
]
Confident = Annotated[
    bool,
    typer.Option(
        "--confident",
        help="Hold the upper end of the drop's 95 % interval to --max-drop too, and refuse models at chance level.",
        show_default="off",
        rich_help_panel=GATE,
    ),
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Smallest accepted share of images with the same answer, 0 to 1.",
        show_default="no limit",
        rich_help_panel=GATE,
    ),
]
AcceptConversion = Annotated[
    bool,
    typer.Option(
        "--accept-conversion",
        help="Pass int8 files even if they differ from the fake-quantized model by more than the limit. The report and the card say so.",
        show_default="off",
        rich_help_panel=GATE,
    ),
]
TargetError = Annotated[
    float | None,
    typer.Option(
        min=0.0001,
        max=0.9999,
        help="Choose the smallest threshold that keeps the error rate of answered images at or below this fraction, with 95 % "
        "confidence, on validation images. Below the threshold the model abstains.",
        show_default="no threshold",
        rich_help_panel="Scores",
    ),
]

InputRange = Annotated[
    str | None,
    typer.Option(
        metavar="auto|centred|unit|raw|imagenet",
        help="How the model reads pixels: -1 to 1 (centred), 0 to 1 (unit), 0 to 255 (raw) or as torchvision's models (imagenet). "
        "auto picks the one that does best on validation images, and on training images too if those are few, and prints which.",
        show_default="auto",
        rich_help_panel=INPUT,
    ),
]
InputScale = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        max=1e6,
        metavar="S",
        help="For any other range: the model reads S * (pixel - 128 - Z).",
        show_default="as --input-range",
        rich_help_panel=INPUT,
    ),
]
InputZeroPoint = Annotated[
    int | None,
    typer.Option(
        min=-128,
        max=127,
        metavar="Z",
        help="Z of --input-scale.",
        show_default="0",
        rich_help_panel=INPUT,
    ),
]


InputMean = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B",
        help="Mean of each channel, for pixels from 0 to 1: the model reads (pixel / 255 - mean) / std, as with torchvision's Normalize.",
        show_default="as --input-range",
        rich_help_panel=INPUT,
    ),
]
InputStd = Annotated[
    str | None,
    typer.Option(
        metavar="R,G,B", help="Deviation of each channel, for --input-mean.", show_default="none", rich_help_panel=INPUT
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Names of the model's outputs in their order, one a line; each class folder has to be among them.",
        show_default="the class folders in alphabetical order",
    ),
]


def stated_range(
    name: str | None, scale: float | None, zero_point: int | None, mean: str | None, std: str | None
) -> "Given":
    """Return what the five options say: a name, "auto" where none was given, a scale and a zero point, or a mean and a deviation.

    Raises:
        typer.BadParameter: a usage error, for what cannot be read, or options that exclude each other.
    """
    from edgecnn.calibrate.input_range import AUTO, RANGES, per_channel

    if name is not None and name not in (AUTO, *RANGES):
        raise typer.BadParameter(
            f"received {name!r}, expected {AUTO}, {', '.join(RANGES)}.", param_hint="--input-range"
        )
    ways = {"--input-range": name, "--input-scale": scale, "--input-mean": mean}
    if len(given := [option for option, value in ways.items() if value is not None]) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other: give one.")
    if zero_point is not None and scale is None:
        raise typer.BadParameter("--input-zero-point goes with --input-scale: give both.")
    if (mean is None) != (std is None):
        raise typer.BadParameter("--input-mean and --input-std go together: give both.")
    if mean is not None and std is not None:
        means, stds = _channels("--input-mean", mean), _channels("--input-std", std)
        if min(stds) <= 0:
            raise typer.BadParameter(f"received {std}, expected numbers above 0.", param_hint="--input-std")
        if len(means) != len(stds):
            raise typer.BadParameter(f"--input-mean has {len(means)} numbers, --input-std {len(stds)}.")
        return per_channel(means, stds)
    return name or AUTO if scale is None else (scale, zero_point or 0)


def _channels(option: str, text: str) -> tuple[float, ...]:
    """Return the one or three numbers of an option, for pixels from 0 to 1."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(math.isfinite(value) for value in values):
        raise typer.BadParameter(f"received {text!r}, expected R,G,B, such as 0.485,0.456,0.406.", param_hint=option)
    if max(map(abs, values)) > LARGEST:
        raise typer.BadParameter(
            f"received {text}, expected numbers for pixels from 0 to 1. Divide those for 0 to 255 by 255.",
            param_hint=option,
        )
    return values


def stated_labels(path: Path | None) -> tuple[str, ...]:
    """Return the names of a --labels file; none without one.

    Raises:
        typer.BadParameter: a usage error, if it cannot be read, or a name is in it twice.
    """
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}", param_hint="--labels") from None
    if len(set(names)) != len(names):
        raise typer.BadParameter(f"{path} has a name more than once.", param_hint="--labels")
    return names
