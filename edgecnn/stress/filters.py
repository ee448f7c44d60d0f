"""Building blocks of the corruptions: pixels, light and borders."""

import math

import numpy as np
from PIL import Image


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
"""The linear light of each sRGB pixel, 0 to 1."""


def to_light(image: np.ndarray) -> np.ndarray:
    """Return the linear light, 0 to 1, of sRGB pixels (IEC 61966-2-1), float32."""
    return LIGHT[image]


def from_light(light: np.ndarray) -> np.ndarray:
    """Convert linear light, clipped to 0 to 1, to sRGB pixels, uint8."""
    light = np.clip(light, 0, 1).astype(np.float32)
    values = np.maximum(np.float32(1.055) * light ** np.float32(1 / 2.4) - np.float32(0.055), np.float32(0))
    dark = light <= 0.0031308
    values[dark] = light[dark] * np.float32(12.92)
    return np.rint(values * 255).astype(np.uint8)


def framed(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Extend an image with its mirror image, by `rows` above and below and `columns` left and right."""
    return np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric")
