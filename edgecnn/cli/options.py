"""Options that several commands of the device have, and how their texts are read."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgecnn.region import Region

CAMERA = "Camera and stream"
"""The heading of these options in a command's help."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default="off")]
Model = Annotated[
    Path | None,
    typer.Option(
        help="The bundle to use.",
        show_default="that of the last run here, else the release in use on this board, else the installed one, else the one that ships",
    ),
]
Root = Annotated[Path, typer.Option(metavar="DIR", help="Where the releases are.")]
EngineName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="litert, tflite_runtime or onnxruntime.",
        show_default="the first installed one that can run a model of the bundle",
        rich_help_panel="Engine",
    ),
]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What computes: cpu; cuda (ONNX Runtime); builtin or reference (LiteRT's kernels without XNNPACK).",
        show_default="cpu",
        rich_help_panel="Engine",
    ),
]
RegionText = Annotated[
    str | None,
    typer.Option(
        "--region",
        metavar="X,Y,W,H",
        help="See only this part of each image: left, top, width and height as fractions of the upright image, such as "
        "0.5,0,0.5,1 for its right half. 0,0,1,1 is the whole image.",
        show_default="the bundle's, else the whole image",
    ),
]
Size = Annotated[str, typer.Option(metavar="WxH", help="Frame size to request.", rich_help_panel=CAMERA)]
Fps = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1000.0,
        metavar="N",
        help="Frame rate to request, in frames per second.",
        show_default="the camera's own",
        rich_help_panel=CAMERA,
    ),
]
Rotate = Annotated[
    int,
    typer.Option(metavar="DEG", help="Rotate frames clockwise by 0, 90, 180 or 270 degrees.", rich_help_panel=CAMERA),
]
WarmUp = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Frames to discard after the source opens.",
        show_default="5 for a camera, 0 for a file",
        rich_help_panel=CAMERA,
    ),
]
RetryFor = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="S",
        help="Give up after S seconds without the camera, at the start too; inf to try forever.",
        show_default="0 at the start, then inf",
        rich_help_panel=CAMERA,
    ),
]
CameraPasswordFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A file with the password of a network camera, or with the user and the password on two lines.",
        show_default="EDGECNN_CAMERA_USER and EDGECNN_CAMERA_PASSWORD of the environment",
        rich_help_panel=CAMERA,
    ),
]


def option_name(parameter: str) -> str:
    """Return how a parameter is typed: --max-age for max_age."""
    return f"--{parameter.replace('_', '-')}"


def check_choice(option: str, value: object, choices: Collection[object]) -> None:
    """Refuse a value that is not None and not one of the choices.

    Raises:
        typer.BadParameter: a usage error, which names them.
    """
    if value is not None and value not in choices:
        raise typer.BadParameter(f"received {value!r}, expected {', '.join(map(str, choices))}.", param_hint=option)


def read_region(text: str | None) -> "Region | None":
    """Read --region, None without it.

    Raises:
        typer.BadParameter: a usage error, for anything that is not a region within the image.
    """
    if text is None:
        return None
    from edgecnn.region import EXPECTED, is_region

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not is_region(values):
        raise typer.BadParameter(
            f"received {text!r}, expected X,Y,W,H: {EXPECTED}, such as 0.25,0.1,0.5,0.6.", param_hint="--region"
        )
    x, y, width, height = values
    return x, y, width, height


def read_camera_secret(file: Path | None) -> dict[str, str | None]:
    """Return the user and the password of a network camera, from --camera-password-file or the environment, by name.

    Raises:
        typer.BadParameter: a usage error, for a file that cannot be used.
    """
    from edgecnn.device.secrets import CAMERA as VARIABLES
    from edgecnn.device.secrets import read_secret

    try:
        user, password = read_secret(VARIABLES, file)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--camera-password-file") from None
    return {"user": user, "password": password}


def read_size(text: str, square: bool = False) -> tuple[int, int]:
    """Read WIDTHxHEIGHT; with `square` also one number, the side of a square.

    Raises:
        typer.BadParameter: a usage error, for anything else.
    """
    width, x, height = text.lower().partition("x")
    if square and not x:
        height = width
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= 16384 for part in (width, height)):
        expected = "WIDTHxHEIGHT or one number, such as 160x120 or 128" if square else "WIDTHxHEIGHT, such as 640x480"
        raise typer.BadParameter(f"received {text!r}, expected {expected}.", param_hint="--size")
    return int(width), int(height)
