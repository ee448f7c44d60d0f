"""The part of the picture that matters: a region of an image, in fractions, and its pixels."""

import math
from collections.abc import Sequence

Region = tuple[float, float, float, float]
"""(x, y, width, height) of a region of an upright image, as fractions of its width and height; (x, y) is the upper left corner."""

ROTATIONS = (0, 90, 180, 270)
"""Clockwise rotations, in degrees, that make an image upright."""

FITS = ("crop", "letterbox", "stretch")
"""Ways to fit an image to the model's aspect ratio: centre crop, mid-grey bars, or neither."""

RESAMPLINGS = ("box", "bilinear")
"""Filters that shrink an image, by Pillow's names: box is the faster, and most models from elsewhere were trained with bilinear."""

WHOLE: Region = (0.0, 0.0, 1.0, 1.0)

EXPECTED = (
    "four fractions of the image, X, Y, W and H, from 0 to 1, with W and H above 0 and neither X + W nor Y + H above 1"
)

SLACK = 1e-9
"""How far X + W may exceed 1, since sums of fractions are rounded."""


def is_region(values: Sequence[float]) -> bool:
    """Return whether the numbers are a region within the image."""
    if len(values) != 4 or not all(math.isfinite(value) for value in values):
        return False
    x, y, width, height = values
    return min(x, y) >= 0 < min(width, height) and max(x + width, y + height) <= 1 + SLACK


def read_region(text: str) -> Region:
    """Read a region as `region_text` writes it; ValueError for anything that is not a region within the image."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not is_region(values):
        raise ValueError(f"received {text!r}, expected X,Y,W,H: {EXPECTED}, such as 0.25,0.1,0.5,0.6")
    x, y, width, height = values
    return x, y, width, height


def region_text(region: Region) -> str:
    """Return a region in the form of --region: "0.25,0,0.5,1"."""
    return ",".join(f"{value:g}" for value in region)


def pixel_box(size: tuple[int, int], region: Region, rotation: int = 0) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom) of a region in whole pixels; `size` is the image's (width, height) before the rotation."""
    width, height = size if rotation in (0, 180) else size[::-1]
    x, y, across, down = region
    left, right = _span(x, x + across, width)
    top, bottom = _span(y, y + down, height)
    if rotation == 90:
        return top, width - right, bottom, width - left
    if rotation == 180:
        return width - right, height - bottom, width - left, height - top
    if rotation == 270:
        return height - bottom, left, height - top, right
    return left, top, right, bottom


def _span(start: float, end: float, length: int) -> tuple[int, int]:
    first = min(round(start * length), length - 1)
    return first, max(first + 1, min(round(end * length), length))


def whole_size(height: int, width: int, region: Region = WHOLE, rotation: int = 0) -> tuple[int, int]:
    """Return a whole image's (height, width) before its rotation, if its region has (height, width) after it."""
    _, _, across, down = region
    whole = math.ceil(height / down), math.ceil(width / across)
    return whole if rotation in (0, 180) else whole[::-1]


LARGEST_SIZE = 16384


def read_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT; ValueError for anything else."""
    width, _, height = text.lower().partition("x")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= LARGEST_SIZE for part in (width, height)):
        raise ValueError(f"received {text!r}; expected WIDTHxHEIGHT, such as 640x480")
    return int(width), int(height)
