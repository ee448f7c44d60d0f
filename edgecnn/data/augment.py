"""Random changes to training images that keep their class, and corruptions that prepare for what cameras do.

The corruptions are AugMix with one chain, plus noise and blur as operations.

None of the operations is a corruption that `edgecnn stress` measures; docs/stress.md lists the related ones.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from edgecnn.pixels import PAD, as_image

AREA = (0.4, 1.0)
"""Fraction of a photo that is kept before it is enlarged again."""

ASPECT = 1.25
"""Largest stretch of one side relative to the other."""

TURN = 15.0
"""Largest rotation of a photo, in degrees."""

BRIGHTNESS, CONTRAST, SATURATION = 0.25, 0.25, 0.25
"""Largest change of each, as a fraction."""


def augment(
    images: np.ndarray, random: np.random.Generator, *, flip: bool | np.ndarray, shift: int, cutout: int = 0
) -> np.ndarray:
    """Mirror images, uint8 (n, height, width, channels), shift by up to `shift` pixels, cover a square of side `cutout`; return new ones.

    `flip` mirrors a random half of them, or those selected by a bool array (n,). Uncovered borders are mid-grey.
    """
    count, height, width, channels = images.shape
    padded = np.full((count, height + 2 * shift, width + 2 * shift, channels), PAD, np.uint8)
    padded[:, shift : shift + height, shift : shift + width] = images
    if flip is not False:
        mirrored = random.random(count) < 0.5 if flip is True else flip
        padded[mirrored] = padded[mirrored, :, ::-1]
    if shift:
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
        rows, columns = random.integers(0, 2 * shift + 1, (2, count))
        padded = np.moveaxis(windows[np.arange(count), rows, columns], 1, 3).copy()
    return cover(padded, random, cutout)


def cover(images: np.ndarray, random: np.random.Generator, side: int) -> np.ndarray:
    """Fill a square of `side` pixels, perhaps partly outside, with mid-grey, in place. Source: DeVries, Taylor 2017, arXiv:1708.04552."""
    if side:
        corners = random.integers(0, images.shape[1:3], (len(images), 2)) - side // 2
        for index, (top, left) in enumerate(corners.tolist()):
            images[index, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = PAD
    return images


def augment_photos(
    images: np.ndarray, size: tuple[int, int], random: np.random.Generator, *, flip: bool | np.ndarray, cutout: int = 0
) -> np.ndarray:
    """Change photos as a camera would: cropped, stretched, turned and mirrored, in one resampling to `size`, then in another light.

    Areas outside the photo are mid-grey. Source of the crops: Szegedy et al. 2015 (arXiv:1409.4842).
    """
    count, rows, columns, channels = images.shape
    height, width = size
    mirrored = flip if isinstance(flip, np.ndarray) else (random.random(count) < 0.5) & np.full(count, flip)
    draws = random.random((count, 8)).tolist()
    result = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        place = crop_and_turn((rows, columns), size, draws[index][:5], bool(mirrored[index]))
        moved = as_image(images[index]).transform(
            (width, height), Image.Transform.AFFINE, place, Image.Resampling.BILINEAR, fillcolor=(PAD,) * channels
        )
        result[index] = np.asarray(moved).reshape(height, width, channels)
    return cover(change_light(result, np.array(draws)[:, 5:]), random, cutout)


def crop_and_turn(photo: tuple[int, int], size: tuple[int, int], draws: list[float], mirror: bool) -> tuple[float, ...]:
    """Return Pillow's six affine coefficients, from five draws in [0, 1): area, aspect, column, row, angle."""
    area = AREA[0] + (AREA[1] - AREA[0]) * draws[0]
    aspect = ASPECT ** (2 * draws[1] - 1)
    wide, tall = min(math.sqrt(area * aspect), 1.0), min(math.sqrt(area / aspect), 1.0)
    angle = math.radians(TURN * (2 * draws[4] - 1))
    (rows, columns), (height, width) = photo, size
    centre = (columns * (wide / 2 + (1 - wide) * draws[2]), rows * (tall / 2 + (1 - tall) * draws[3]))
    across, down = columns / width * (-wide if mirror else wide), rows / height * tall
    cosine, sine = math.cos(angle), math.sin(angle)
    a, b, d, e = across * cosine, -down * sine, across * sine, down * cosine
    return a, b, centre[0] - a * width / 2 - b * height / 2, d, e, centre[1] - d * width / 2 - e * height / 2


def change_light(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Change the saturation, contrast and brightness of uint8 images, from draws (n, 3) in [0, 1): 0.5 changes nothing."""
    factors = (1 + np.array([SATURATION, CONTRAST, BRIGHTNESS]) * (2 * draws - 1)).astype(np.float32)
    saturation, contrast, brightness = factors.T[:, :, np.newaxis, np.newaxis]
    count, channels = len(images), images.shape[3]
    values = images.reshape(count, -1, channels).astype(np.float32)
    mean = values.mean(axis=(1, 2), keepdims=True)
    # all three changes are one sum of a pixel, its grey (the mean of its channels) and the photo's mean
    grey = np.full((channels, channels), 1 / channels, np.float32)
    mixed = (saturation * np.eye(channels, dtype=np.float32) + (1 - saturation) * grey) * contrast * brightness
    values = values @ mixed
    values += mean * (1 - contrast) * brightness
    np.clip(np.rint(values, out=values), 0, 255, out=values)
    return values.astype(np.uint8).reshape(images.shape)


SHARE = 0.35
"""Fraction of the images that are changed. At 0.5, some accuracy on clean images was lost."""

DEPTH = 3
"""Maximum number of operations in a chain; the number is drawn from 1 to this."""

SOFT, COARSE = 0.05, 0.25
"""Largest radius of the box blur, as a fraction of the shorter side; smallest fraction of the sides that `coarsen` leaves."""

GRAIN = 110
"""Largest amplitude of the noise, in pixel values."""

CURVE = 3.0
"""Largest bend of a curve: the exponent is between 1 / CURVE and CURVE."""

VEIL = 0.85
"""Largest opacity of a veil, as a fraction."""

SHEAR = 0.3
"""Largest shear of a side, as a fraction of the other."""

Draws = np.random.Generator


def shear(image: Image.Image, random: Draws) -> Image.Image:
    """Shear along rows or columns about the centre; mid-grey fills the gaps."""
    amount = float(random.uniform(-SHEAR, SHEAR))
    width, height = image.size
    if random.random() < 0.5:
        matrix = (1.0, amount, -amount * height / 2, 0.0, 1.0, 0.0)
    else:
        matrix = (1.0, 0.0, 0.0, amount, 1.0, -amount * width / 2)
    fill = (128,) * len(image.getbands())
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def soften(image: Image.Image, random: Draws) -> Image.Image:
    return image.filter(ImageFilter.BoxBlur(float(random.uniform(0.3, max(0.6, SOFT * min(image.size))))))


def coarsen(image: Image.Image, random: Draws) -> Image.Image:
    share = float(random.uniform(COARSE, 1))
    small = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BICUBIC)


def grain(image: Image.Image, random: Draws) -> Image.Image:
    """Add uniform noise, per channel or shared by all channels."""
    pixels = np.asarray(image)
    amplitude = int(random.uniform(8, GRAIN))
    shape = pixels.shape if random.random() < 0.7 else (*pixels.shape[:2], *(1,) * (pixels.ndim - 2))
    noise = random.integers(-amplitude, amplitude + 1, shape, np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def bent(image: Image.Image, exponents: np.ndarray) -> Image.Image:
    """Raise values, as fractions of white, to powers: one for all channels, or one per channel."""
    powers = np.resize(exponents, len(image.getbands()))[:, np.newaxis]
    return image.point(np.rint(255 * (np.arange(256) / 255) ** powers).astype(int).ravel().tolist())


def fade(image: Image.Image, random: Draws) -> Image.Image:
    """Remove colour, up to all of it; grey images do not change."""
    return Image.blend(image, image.convert("L").convert(image.mode), float(random.uniform(0.3, 1)))


def veil(image: Image.Image, random: Draws) -> Image.Image:
    level = int(random.choice((0, 255, int(random.integers(0, 256)))))
    flat = Image.new(image.mode, image.size, (level,) * len(image.getbands()) if image.mode == "RGB" else level)
    return Image.blend(image, flat, float(random.uniform(0.1, VEIL)))


OPERATIONS: Mapping[str, Callable[[Image.Image, Draws], Image.Image]] = {
    "autocontrast": lambda image, random: ImageOps.autocontrast(image),
    "equalize": lambda image, random: ImageOps.equalize(image),
    "shear": shear,
    "soften": soften,
    "coarsen": coarsen,
    "grain": grain,
    "curve": lambda image, random: bent(image, CURVE ** random.uniform(-1, 1, 1)),
    "tint": lambda image, random: bent(image, CURVE ** random.uniform(-1, 1, len(image.getbands()))),
    "fade": fade,
    "veil": veil,
}


def mix_corruptions(images: np.ndarray, random: Draws) -> np.ndarray:
    """Change SHARE of the uint8 images (n, height, width, 1 or 3) by 1 to DEPTH operations, mixed with the original by a random weight.

    Source: Hendrycks et al. 2020, "AugMix" (arXiv:1912.02781), without its second and third chain and its consistency loss.
    """
    result = images.copy()
    operations = list(OPERATIONS.values())
    for index in np.flatnonzero(random.random(len(images)) < SHARE).tolist():
        after = before = as_image(images[index])
        for chosen in random.integers(0, len(operations), int(random.integers(1, DEPTH + 1))).tolist():
            after = operations[chosen](after, random)
        mixed = Image.blend(after, before, float(random.random()) * 0.5)
        result[index] = np.asarray(mixed).reshape(result[index].shape)
    return result
