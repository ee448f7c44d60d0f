"""Frames as pictures: turned upright, as files, and how sharp and how different they are."""

import io

import numpy as np
from PIL import Image

from edgecnn import images

JPEG_QUALITY = 95
"""Of frames that a camera gave as pixels; others are kept as they came."""

TURNS = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
"""Clockwise degrees, and Pillow's name for them, which counts the other way."""

SUFFIX_OF = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG", ".png"), (b"BM", ".bmp"), (b"RIFF", ".webp"))


def turn(image: bytes | np.ndarray, rotation: int) -> Image.Image | np.ndarray:
    """Turn a frame clockwise.

    Args:
        image: an encoded image's bytes, or uint8 (height, width, 3).
        rotation: 0, 90, 180 or 270 degrees.

    Raises:
        ImageError: if the bytes cannot be decoded.
    """
    if isinstance(image, bytes):
        picture = images.decode(image)
        return picture.transpose(TURNS[rotation]) if rotation else picture
    return np.ascontiguousarray(np.rot90(image, -rotation // 90))


def encode(image: bytes | np.ndarray, rotation: int = 0) -> tuple[bytes, str]:
    """Return a frame as a file's bytes, upright, and the file's suffix.

    Encoded frames stay as they are; pixels, and frames that have to be turned, become JPEG of JPEG_QUALITY without chroma subsampling.

    Raises:
        ImageError: if bytes that have to be turned cannot be decoded.
    """
    if isinstance(image, bytes) and not rotation:
        return image, next((suffix for start, suffix in SUFFIX_OF if image.startswith(start)), ".jpg")
    upright = turn(image, rotation)
    picture = upright if isinstance(upright, Image.Image) else Image.fromarray(upright)
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), ".jpg"
