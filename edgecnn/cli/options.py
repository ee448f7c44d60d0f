"""Options that several commands of the device have, and how their texts are read."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from edgecnn.region import Region

T = TypeVar("T")
U = TypeVar("U")

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


def option(help: str, default: str | bool = True, panel: str | None = None, *names: str, **more: Any) -> Any:
    """Return one of Typer's options, with the default's text in the help (True for its value) and the heading that it stands under."""
    return typer.Option(*names, help=help, show_default=default, rich_help_panel=panel, **more)


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
    from edgecnn import region

    return None if text is None else checked("--region", region.read_region, text)


def checked(option: str, read: Callable[[T], U], value: T) -> U:
    """Return what `read` makes of an option's value.

    Raises:
        typer.BadParameter: a usage error, if it raises ValueError.
    """
    try:
        return read(value)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint=option) from None


def option(
    text: str, default: str, metavar: str | None = None, *, name: str = "", panel: str | None = None, **limits: Any
) -> Any:
    """Return an option by its help text and what the help calls its default; `name` is needed for a flag, or another name."""
    names: tuple[Any, ...] = (name,) if name else ()
    shown: dict[str, Any] = {"help": text, "show_default": default, "metavar": metavar, "rich_help_panel": panel}
    return typer.Option(*names, **shown | limits)
