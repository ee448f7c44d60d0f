"""What cameras do to images: each corruption as a function, with five strengths for photos and for small images.

Corruptions from Hendrycks and Dietterich 2019 (arXiv:1903.12261) use the definitions and strengths of ImageNet-C for photos and of
CIFAR-10-C for small images. The others are edgecnn's own.
"""

import io
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from edgecnn.pixels import as_image


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Clip values in pixel units to 0 to 255 and truncate them, like the reference."""
    return np.clip(values, 0, 255).astype(np.uint8)


def as_pixels(image: Image.Image) -> np.ndarray:
    """Return a Pillow image of mode "L" or "RGB" as uint8 (height, width, 1 or 3)."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]


def moved(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Blur an image along a line, like a moving camera: half a Gaussian, with one copy of the image per pixel of the path.

    The path is 2 * radius + 1 pixels long, at an angle between -90 and 90 degrees. Beyond the border, the last row or column repeats.
    """
    height, width, _ = image.shape
    length = 2 * radius + 1
    weights = np.exp(-(np.arange(length) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    result = np.zeros(image.shape, np.float32)
    padded = np.pad(image, ((length, length), (length, length), (0, 0)), mode="edge")
    for step, weight in enumerate(weights):
        down, right = math.ceil(step * sine - 0.5), math.ceil(step * cosine - 0.5)
        if abs(down) >= height or abs(right) >= width:
            break
        top, left = length + down, length + right
        result += np.float32(weight) * padded[top : top + height, left : left + width]
    return result


SRGB = np.arange(256) / 255
LIGHT = np.where(SRGB <= 0.04045, SRGB / 12.92, ((SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)
"""The linear light of each sRGB pixel, 0 to 1 (IEC 61966-2-1)."""


def from_light(light: np.ndarray) -> np.ndarray:
    """Convert linear light, clipped to 0 to 1, to sRGB pixels, uint8."""
    light = np.clip(light, 0, 1).astype(np.float32)
    values = np.maximum(np.float32(1.055) * light ** np.float32(1 / 2.4) - np.float32(0.055), np.float32(0))
    dark = light <= 0.0031308
    values[dark] = light[dark] * np.float32(12.92)
    return np.rint(values * 255).astype(np.uint8)


STRENGTHS = (1, 2, 3, 4, 5)

SizeClass = Literal["photo", "small"]  # which strengths apply

READ_NOISE = 2.0  # electrons of read noise per pixel (standard deviation), for `low_light`

LOW_LIGHT = 0.5  # fraction of its light that a low-light photo has after the camera's gain: one stop is missing


def jpeg(image: np.ndarray, quality: int, random: Any) -> np.ndarray:
    """Compress as JPEG, with `quality` on Pillow's scale."""
    buffer = io.BytesIO()
    as_image(image).save(buffer, "JPEG", quality=quality)
    return as_pixels(Image.open(buffer))


def motion(image: np.ndarray, way: tuple[int, float], random: Any) -> np.ndarray:
    """Blur along a line at an angle between -45 and 45 degrees; `way` is the radius and the standard deviation, in pixels."""
    return to_pixels(moved(image, *way, random.uniform(-45, 45)))


def brightness(image: np.ndarray, more: float, random: Any) -> np.ndarray:
    """Raise the value in hue-saturation-value by a share of white."""
    value = image.max(axis=2, keepdims=True).astype(np.float64)
    raised = np.minimum(value + more * 255, 255)
    return to_pixels(np.where(value > 0, image * (raised / np.maximum(value, 1)), raised) + 1e-9)


def underexposure(image: np.ndarray, stops: float, random: Any) -> np.ndarray:
    """Reduce the light: each stop halves it."""
    return from_light(LIGHT[image] * np.float32(0.5**stops))


def low_light(image: np.ndarray, electrons: float, random: Any) -> np.ndarray:
    """Photograph in little light: few electrons for white, read noise, and a gain that leaves LOW_LIGHT of the light."""
    light = LIGHT[image] * np.float32(LOW_LIGHT)
    counted = random.poisson(light * electrons) + random.normal(size=image.shape, scale=READ_NOISE)
    return from_light(counted / electrons)


def swapped(image: np.ndarray, strength: None, random: Any) -> np.ndarray:
    """Swap red and blue, like a program that misreads a frame in OpenCV's channel order."""
    return image[:, :, ::-1]


def scale(image: np.ndarray, factor: float, random: Any) -> np.ndarray:
    """Zoom in or out by a factor. A smaller image is surrounded by its mirror image."""
    height, width, _ = image.shape
    picture = as_image(image)
    across, down = width / factor, height / factor
    if random.random() < 0.5:
        left, top = (width - across) / 2, (height - down) / 2
        box = (left, top, left + across, top + down)
        return as_pixels(picture.resize((width, height), Image.Resampling.BILINEAR, box=box))
    small = as_pixels(picture.resize((max(1, round(across)), max(1, round(down))), Image.Resampling.BILINEAR))
    rows, columns = (height - small.shape[0] + 1) // 2, (width - small.shape[1] + 1) // 2
    return np.pad(small, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric")[:height, :width]


def occlusion(image: np.ndarray, share: float, random: Any) -> np.ndarray:
    """Cover a share of the image with a rectangle of the same aspect ratio, in one random colour, at a random position."""
    height, width, channels = image.shape
    rows, columns = round(height * math.sqrt(share)), round(width * math.sqrt(share))
    down, across = random.random(), random.random()
    top, left = round(down * (height - rows)), round(across * (width - columns))
    result = image.copy()
    result[top : top + rows, left : left + columns] = (random.random(channels) * 256).astype(np.uint8)
    return result


class Corruption(NamedTuple):
    """A corruption and its strengths.

    `apply` maps an image, uint8 (height, width, 1 or 3), a value from `photo` or `small`, which list the strengths from 1, and a numpy
    generator to an image. The same generator gives every strength the same position, angle or direction. `reference` is the name in
    ImageNet-C and imagecorruptions, "" for edgecnn's own. Grey images skip corruptions that change only `colour`.
    """

    apply: Callable[[np.ndarray, Any, Any], np.ndarray]
    unit: str
    photo: tuple[Any, ...]
    small: tuple[Any, ...]
    reference: str = ""
    colour: bool = False

    def values(self, size_class: SizeClass) -> tuple[Any, ...]:
        """Return the values of the strengths."""
        return self.photo if size_class == "photo" else self.small


FACTORS, SHARES = (1.15, 1.3, 1.5, 1.75, 2), (0.05, 0.1, 0.2, 0.3, 0.4)

CORRUPTIONS: Mapping[str, Corruption] = {
    "jpeg": Corruption(jpeg, "quality", (25, 18, 15, 10, 7), (80, 65, 58, 50, 40), "jpeg_compression"),
    "motion": Corruption(
        motion, "radius and deviation, pixels", ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), "motion_blur",
    ),
    "brightness": Corruption(
        brightness, "share of white", (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3), "brightness"
    ),
    "underexposure": Corruption(underexposure, "stops", (1, 2, 3, 4, 5), (0.5, 1, 1.5, 2, 3)),
    "low-light": Corruption(low_light, "electrons for white", (100, 50, 25, 12, 6), (800, 400, 200, 100, 50)),
    "swapped": Corruption(swapped, "one strength by its nature", (None,), (None,), colour=True),
    "scale": Corruption(scale, "factor", FACTORS, FACTORS),
    "occlusion": Corruption(occlusion, "share of the area", SHARES, SHARES),
}  # fmt: skip
"""The corruptions by name, in table order: of sixteen, those that differ most in what they find (docs/decisions.md)."""


def corrupt(image: np.ndarray, name: str, strength: int, random: Any, size_class: SizeClass = "photo") -> np.ndarray:
    """Return an image, uint8 (height, width, 1 or 3), corrupted at a strength from 1 to 5; "swapped" has only strength 1."""
    corruption = CORRUPTIONS[name]
    return corruption.apply(image, corruption.values(size_class)[strength - 1], random)


def generator(seed: int, name: str, source: str) -> np.random.Generator:
    """Return the generator for one corruption of one image. It is independent of other corruptions and images."""
    return np.random.default_rng([seed, *name.encode(), 0, *source.encode("utf-8", "surrogateescape")])


def conditions(channels: int, names: tuple[str, ...] = tuple(CORRUPTIONS)) -> list[tuple[str, int]]:
    """Return each corruption with each of its strengths, in the order of CORRUPTIONS. Grey images skip those that change only colours."""
    return [
        (name, strength)
        for name, corruption in CORRUPTIONS.items()
        if name in names and not (corruption.colour and channels == 1)
        for strength in range(1, len(corruption.photo) + 1)
    ]


def value_text(value: Any) -> str:
    """Format a strength's value for people; "" for None."""
    if value is None:
        return ""
    return " and ".join(f"{item:g}" for item in value) if isinstance(value, tuple) else f"{value:g}"
