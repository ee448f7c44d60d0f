"""Random changes to training images that leave their class alone."""

import numpy as np

from edgecnn.images import PAD


def augment(images: np.ndarray, random: np.random.Generator, *, flip: bool, shift: int) -> np.ndarray:
    """Mirror half of the images and shift each by up to `shift` pixels, borders filled with mid-grey.

    Args:
        images: uint8 array, shape (n, height, width, channels); not changed.
        random: where the choices come from.
        flip: whether to mirror left and right.
        shift: largest shift in pixels, in either direction and axis.

    Returns:
        uint8 array, same shape.
    """
    count, height, width, channels = images.shape
    padded = np.full((count, height + 2 * shift, width + 2 * shift, channels), PAD, np.uint8)
    padded[:, shift : shift + height, shift : shift + width] = images
    if flip:
        mirrored = random.random(count) < 0.5
        padded[mirrored] = padded[mirrored, :, ::-1]
    if not shift:
        return padded
    rows, columns = random.integers(0, 2 * shift + 1, (2, count))
    result = np.empty_like(images)
    for index in range(count):
        row, column = rows[index], columns[index]
        result[index] = padded[index, row : row + height, column : column + width]
    return result
