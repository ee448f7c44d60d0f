"""The options that say which input range a model reads that edgecnn did not make."""

from collections.abc import Collection
from typing import Annotated

import typer

InputRange = Annotated[
    str | None,
    typer.Option(
        metavar="auto|centred|unit|raw",
        help="A model from elsewhere reads pixels as -1 to 1, 0 to 1 or 0 to 255. auto takes the range that suits best on "
        "validation images, on training images too where those are few, and names it.",
        show_default="auto",
    ),
]
InputScale = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        max=1e6,
        metavar="S",
        help="For any other range: a model from elsewhere reads S * (pixel - 128 - Z).",
        show_default="as --input-range",
    ),
]
InputZeroPoint = Annotated[
    int | None, typer.Option(min=-128, max=127, metavar="Z", help="With --input-scale: see S.", show_default="0")
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
