"""Options that several commands of the workstation have, and how their texts are read."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.options import option

if TYPE_CHECKING:
    from edgecnn.calibrate.input_range import Given

DATA = "Data and network"
TRAINING = "Training"
GATE = "Gate"
INPUT = "Input range"

LARGEST = 2.0  # of the means and deviations for pixels from 0 to 1; those for 0 to 255 are larger


RecipeArgument = Annotated[
    Path | None, typer.Argument(metavar="RECIPE", help="A recipe file (TOML).", show_default="the built-in recipe")
]
RunArgument = Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder.", show_default="runs/latest")]
Data = Annotated[
    str | None,
    option("A dataset's name, a folder or zip of images, or frigate:PATH, Frigate's folder.", "cifar10", DATA),
]
Network = Annotated[
    str | None,
    option(
        "A network's name, or FILE.py:FUNCTION for your own: a function (height, width, channels, num_classes) that returns "
        "a tf_keras model. The file is executed, so name only files that you trust.",
        "chosen by the images: see edgecnn networks --data",
        DATA,
    ),
]
RegionText = Annotated[
    str | None,
    option(
        "Train on this part of each image, which the model then sees of each frame too: left, top, width and height as fractions "
        "of the upright image, such as 0.5,0,0.5,1 for its right half.",
        "the whole image",
        DATA,
        "--region",
        metavar="X,Y,W,H",
    ),
]
Size = Annotated[
    str | None,
    option(
        "The network's input in pixels, width x height, such as 160x120. One number is the side of a square.",
        "160 where the network starts from ImageNet, else the images' own size up to 224, or 96 where they differ",
        DATA,
        metavar="WxH",
    ),
]
Init = Annotated[
    Path | None,
    option(
        "Start from this run's trained network, with a new head. Its network and input apply unless you name others. You may also "
        "name a recipe or a bundle: edgecnn then looks for its run in runs/. random starts from random weights.",
        "the network's own weights of ImageNet, if it has any",
        DATA,
        metavar="RUN",
    ),
]
BY_COUNT = "by the number of images"
Epochs = Annotated[int | None, option("Epochs of the float phase.", BY_COUNT, TRAINING, min=1)]
QatEpochs = Annotated[int | None, option("Epochs of the quantization-aware phase.", BY_COUNT, TRAINING, min=0)]
BatchSize = Annotated[int | None, option("Images in a batch.", f"32, 64 or 128, {BY_COUNT}", TRAINING, min=1)]
LearningRate = Annotated[
    float | None, option("Peak learning rate of the float phase.", "0.003, or 0.0005 from trained weights", TRAINING)
]
Seed = Annotated[int | None, option("Seed of weights and batches.", "1", TRAINING)]
Robust = Annotated[
    bool,
    option(
        "Mix corruptions into a third of the training images, against what cameras do: noise, blur, light, colour. edgecnn stress "
        "measures what it gains.",
        "off",
        TRAINING,
        "--robust",
    ),
]
Setting = Annotated[
    list[str] | None,
    option(
        "Any recipe key, such as train.shift=4. May be repeated. edgecnn train --keys lists the keys.",
        "none",
        TRAINING,
        "--set",
        metavar="KEY=VALUE",
    ),
]
Force = Annotated[bool, option("Replace existing output.", "off", None, "--force")]

MaxDrop = Annotated[
    float, option("Largest accepted drop in accuracy, in percentage points.", panel=GATE, min=0.0, max=100.0)
]
Confident = Annotated[
    bool,
    option(
        "Hold the upper end of the drop's 95 % interval to --max-drop too, and refuse models at chance level.",
        "off",
        GATE,
        "--confident",
    ),
]
SMALLEST = "Smallest accepted share of images with the same answer, 0 to 1."
MinAgreement = Annotated[float | None, option(SMALLEST, "no limit", GATE, min=0.0, max=1.0)]
AcceptConversion = Annotated[
    bool,
    option(
        "Pass int8 files even if they differ from the fake-quantized model by more than the limit. The report and the card say so.",
        "off",
        GATE,
        "--accept-conversion",
    ),
]
TargetError = Annotated[
    float | None,
    option(
        "Choose the smallest threshold that keeps the error rate of answered images at or below this fraction, with 95 % "
        "confidence, on validation images. Below the threshold the model abstains.",
        "no threshold",
        "Scores",
        min=0.0001,
        max=0.9999,
    ),
]

InputRange = Annotated[
    str | None,
    option(
        "How the model reads pixels: -1 to 1 (centred), 0 to 1 (unit), 0 to 255 (raw) or as torchvision's models (imagenet). "
        "auto picks the one that does best on validation images, and on training images too if those are few, and prints which.",
        "auto",
        INPUT,
        metavar="auto|centred|unit|raw|imagenet",
    ),
]
AS_RANGE = "as --input-range"
OTHER = "For any other range: the model reads S * (pixel - 128 - Z)."
InputScale = Annotated[float | None, option(OTHER, AS_RANGE, INPUT, min=1e-6, max=1e6, metavar="S")]
InputZeroPoint = Annotated[int | None, option("Z of --input-scale.", "0", INPUT, min=-128, max=127, metavar="Z")]
InputMean = Annotated[
    str | None,
    option(
        "Mean of each channel, for pixels from 0 to 1: the model reads (pixel / 255 - mean) / std, as with torchvision's Normalize.",
        AS_RANGE,
        INPUT,
        metavar="R,G,B",
    ),
]
InputStd = Annotated[str | None, option("Deviation of each channel, for --input-mean.", "none", INPUT, metavar="R,G,B")]
Labels = Annotated[
    Path | None,
    option(
        "Names of the model's outputs in their order, one a line; each class folder has to be among them.",
        "the class folders in alphabetical order",
        metavar="FILE",
    ),
]


def stated_range(
    name: str | None, scale: float | None, zero_point: int | None, mean: str | None, std: str | None
) -> "Given":
    """Return what the five options say: a name, "auto" if none was given, a scale and a zero point, or a mean and a deviation."""
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
    """Return the names of a --labels file; none without one. Raises typer.BadParameter if it cannot be read, or has a name twice."""
    if path is None:
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}", param_hint="--labels") from None
    if len(set(names)) != len(names):
        raise typer.BadParameter(f"{path} has a name more than once.", param_hint="--labels")
    return names
