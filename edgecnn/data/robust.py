"""Corruptions mixed into training images, to prepare for what cameras do: AugMix with one chain, plus noise and blur as operations.

None of the operations is a corruption that `edgecnn stress` measures; docs/stress.md lists the related ones.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from edgecnn.modes import as_image

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
    """Shrink and enlarge again, with interpolation."""
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
    """Overlay black, white or one random grey level."""
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
