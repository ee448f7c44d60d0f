"""Options that several commands of the device have, and how their texts are read."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path | None,
    typer.Option(help="A bundle.", show_default="the one made last, else the installed one, else the one that ships"),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="litert, tflite_runtime or onnxruntime.",
        show_default="the first installed one that runs a model of the bundle",
    ),
]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads of one inference.")]
Size = Annotated[str, typer.Option(metavar="WxH", help="Size of a camera's frames.")]
Fps = Annotated[
    float,
    typer.Option(min=0.0, max=1000.0, metavar="N", help="Frames a second to ask a camera for.", show_default="its own"),
]
Rotate = Annotated[int, typer.Option(metavar="DEG", help="Turn frames clockwise by 0, 90, 180 or 270 degrees.")]
WarmUp = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="Frames to discard after opening.", show_default="5 of a camera, 0 of a file"
    ),
]
RetryFor = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="S",
        help="Seconds without a camera, at the start too, until that is an error; inf for none.",
        show_default="0 at the start, then inf",
    ),
]


def option_name(parameter: str) -> str:
    """Return how a parameter is typed: --max-age for max_age."""
    return f"--{parameter.replace('_', '-')}"


def check_choice(option: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse a value that is not None and none of the choices.

    Raises:
        typer.BadParameter: a usage error, which names them.
    """
    if value is not None and value not in choices:
        raise typer.BadParameter(f"received {value!r}, expected {', '.join(map(str, choices))}.", param_hint=option)


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
