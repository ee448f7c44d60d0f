"""Explanations of images and frames: the map of `edgecnn.runtime.occlusion`, and the picture that shows it."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from edgecnn.runtime.classifier import Classifier, Picture, decoded, fitted
from edgecnn.runtime.model import Model
from edgecnn.runtime.occlusion import Occlusion, occlusion

FOR, AGAINST = np.array([217, 115, 13], np.float32), np.array([27, 108, 168], np.float32)
"""Colours of what speaks for the answer and of what speaks against it: orange and blue, which the colour-blind tell apart."""

STRENGTH = 0.85
"""Share of the colour in the strongest pixel; the rest is the image in grey."""

PANEL = 256
"""Least length of a panel's longer side, in pixels."""

GAP = 8
"""Pixels between two panels."""

ROWS, COLUMNS = ("upper", "", "lower"), ("left", "", "right")


def explain(
    image: Picture,
    model: Model,
    labels: Sequence[str],
    temperature: float = 1.0,
    fit: str | None = None,
    rotation: int = 0,
) -> Occlusion:
    """Fit an image, or the region of it that the model's contract names, to the model's input as `Classifier.classify` does, and explain.

    Args:
        image, fit, rotation: as in `Classifier.classify`.
        model, labels, temperature: as in `edgecnn.runtime.occlusion.occlusion`.

    Raises:
        ImageError: if the image cannot be decoded, or the model gives no scores for it.
        ValueError: for another fit or rotation.
        EngineError: as `Model.outputs` does.
    """
    pixels = fitted(decoded(image, model.contract, rotation), model.contract, fit, rotation)
    return occlusion(model, pixels, labels, temperature)


def picture(pixels: np.ndarray, maps: Sequence[np.ndarray]) -> bytes:
    """Draw what the model read, and next to it each map over it in grey, as a PNG file.

    FOR is where a map is positive, AGAINST where it is negative, the stronger the larger, up to the map's own largest value. Pixels of
    the input are squares, all of one size.

    Args:
        pixels: uint8, shape (height, width, channels).
        maps: each float32, shape (height, width).
    """
    height, width, channels = pixels.shape
    image = Image.fromarray(pixels if channels > 1 else pixels[:, :, 0]).convert("RGB")
    scale = -(-PANEL // max(height, width))
    size = (width * scale, height * scale)
    panels = [image.resize(size, Image.Resampling.NEAREST)]
    grey = np.asarray(panels[0].convert("L"), np.float32)[:, :, np.newaxis]
    for item in maps:
        strongest = np.abs(item).max() or 1
        large = np.asarray(Image.fromarray(item / strongest).resize(size, Image.Resampling.BILINEAR))[:, :, np.newaxis]
        share = STRENGTH * np.abs(large)
        colour = np.where(large > 0, FOR, AGAINST)
        panels.append(Image.fromarray((grey * (1 - share) + colour * share).round().astype(np.uint8)))
    sheet = Image.new("RGB", (len(panels) * (size[0] + GAP) - GAP, size[1]), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number * (size[0] + GAP), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def in_words(box: tuple[float, float, float, float]) -> str:
    """Return which ninth of an image the middle of a box lies in: "upper left", "top", "centre", "right", …

    Args:
        box: (left, top, right, bottom) as fractions.
    """
    left, top, right, bottom = box
    row, column = (min(2, int(3 * (low + high) / 2)) for low, high in ((top, bottom), (left, right)))
    if column == 1:
        return ("top", "centre", "bottom")[row]
    return f"{ROWS[row]} {COLUMNS[column]}".strip()


def frame_pictures(
    classifier: Classifier, fit: str | None = None
) -> Callable[[bytes | np.ndarray, int], tuple[bytes, str]]:
    """Return what turns a frame and its rotation into its explanation's picture and the file's suffix.

    For `edgecnn.device.stream.keep.UncertainFrames`. It raises what `explain` does.
    """

    def write(image: bytes | np.ndarray, rotation: int) -> tuple[bytes, str]:
        found = explain(image, classifier.model, classifier.labels, float(classifier.temperature), fit, rotation)
        return picture(found.pixels, [found.map]), ".png"

    return write
