"""Explain the answers for images and frames: compute the map of `edgecnn.runtime.occlusion` and draw it."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgecnn.labels import printable
from edgecnn.runtime.classifier import Classifier, Picture, decoded, fitted
from edgecnn.runtime.occlusion import Occlusion, occlusion

FOR, AGAINST = np.array([217, 115, 13], np.float32), np.array([27, 108, 168], np.float32)
"""Colours of pixels that count for and against the answer: orange and blue, which colour-blind people can tell apart."""

STRENGTH = 0.85  # fraction of colour in the strongest pixel; the rest is the grey image

PANEL, GAP = 256, 8  # in pixels: the minimum length of a panel's longer side, and the gap between the two panels

TEXT, LINE = 14, 19  # in pixels: the caption's font size and line height

NINTHS = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))


def explain(image: Picture, classifier: Classifier, fit: str | None = None, rotation: int = 0) -> Occlusion:
    """Fit an image to the model's input as `Classifier.classify` does, and explain its answer; ImageError if it cannot be explained."""
    contract = classifier.model.contract
    pixels = fitted(decoded(image, contract, rotation), contract, fit, rotation)
    return occlusion(classifier.model, pixels, classifier.labels, float(classifier.temperature))


def picture(pixels: np.ndarray, map_: np.ndarray, answer: str, score: float) -> bytes:
    """Draw the model's input, the map over a grey copy of it, and below them the answer and a legend. Return a PNG file.

    `pixels` is uint8 (height, width, channels), `map_` float32 (height, width): positive values are drawn in FOR, negative ones in AGAINST.
    """
    height, width, channels = pixels.shape
    image = Image.fromarray(pixels if channels > 1 else pixels[:, :, 0]).convert("RGB")
    scale = -(-PANEL // max(height, width))
    size = (width * scale, height * scale)
    image = image.resize(size, Image.Resampling.NEAREST)
    grey = np.asarray(image.convert("L"), np.float32)[:, :, np.newaxis]
    relative = Image.fromarray(map_ / (np.abs(map_).max() or 1))
    large = np.asarray(relative.resize(size, Image.Resampling.BILINEAR))[:, :, np.newaxis]
    share = STRENGTH * np.abs(large)
    over = grey * (1 - share) + np.where(large > 0, FOR, AGAINST) * share
    sheet = Image.new("RGB", (max(2 * size[0] + GAP, PANEL), size[1] + 2 * LINE + GAP), "white")
    sheet.paste(image, (0, 0))
    sheet.paste(Image.fromarray(over.round().astype(np.uint8)), (size[0] + GAP, 0))
    write_caption(sheet, size[1] + GAP // 2, printable(answer), f"  {score:.2%}")
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


def write_caption(sheet: Image.Image, top: int, answer: str, score: str) -> None:
    """Write the answer, shortened if it is too long, with its score, and a legend of the colours below."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    room = sheet.width - font.getlength(score)
    shown = answer
    while font.getlength(shown) > room:
        answer = answer[:-1]
        shown = f"{answer}…"
    draw.text((0, top), shown + score, "black", font)
    left, top = 0.0, top + LINE
    for colour, text in ((FOR, "for this answer"), (AGAINST, "against it")):
        draw.rectangle((left, top + 3, left + TEXT - 3, top + TEXT), tuple(colour.astype(int).tolist()))
        draw.text((left + TEXT + 2, top), text, "black", font)
        left += TEXT + 2 + font.getlength(text) + 2 * GAP


def in_words(box: tuple[float, float, float, float]) -> str:
    """Return the ninth of the image that contains the middle of a box: left, top, right and bottom as fractions."""
    left, top, right, bottom = box
    row, column = (min(2, int(3 * (low + high) / 2)) for low, high in ((top, bottom), (left, right)))
    return NINTHS[row][column]


def frame_pictures(classifier: Classifier, fit: str | None = None) -> Callable[[bytes | np.ndarray, int], bytes]:
    """Return a function that turns a frame and its rotation into a PNG file of its explanation."""

    def write(image: bytes | np.ndarray, rotation: int) -> bytes:
        found = explain(image, classifier, fit, rotation)
        return picture(found.pixels, found.map, found.answer, found.score)

    return write
