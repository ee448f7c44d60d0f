"""Options that several commands of the workstation have, and how their texts are read."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

DATA = "Data and network"
TRAINING = "Training"
GATE = "Gate"
INPUT = "Input range"

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
        "name a recipe or a bundle: edgecnn then looks for its run in runs/. none starts from random weights.",
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
        metavar="auto|centred|unit|raw",
        help="How the model reads pixels: -1 to 1 (centred), 0 to 1 (unit) or 0 to 255 (raw). auto picks the one that does best "
        "on validation images, and on training images too if those are few, and prints which.",
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


def stated_range(
    name: str | None, scale: float | None, zero_point: int | None, known: Collection[str]
) -> str | tuple[float, int]:
    """Return what the three options say: a name, "auto" where none was given, or a scale and a zero point.

    Raises:
        typer.BadParameter: a usage error, for an unknown name or options that exclude each other.
    """
    if name is not None and name not in ("auto", *known):
        raise typer.BadParameter(f"received {name!r}, expected auto, {', '.join(known)}.", param_hint="--input-range")
    if name is not None and (scale is not None or zero_point is not None):
        raise typer.BadParameter("--input-range and --input-scale exclude each other: give one.")
    if zero_point is not None and scale is None:
        raise typer.BadParameter("--input-zero-point goes with --input-scale: give both.")
    return name or "auto" if scale is None else (scale, zero_point or 0)
