"""Random changes to training images that keep their class."""

import numpy as np

from edgecnn.pixels import PAD


def augment(
    images: np.ndarray, random: np.random.Generator, *, flip: bool | np.ndarray, shift: int, cutout: int = 0
) -> np.ndarray:
    """Mirror images, shift each by up to `shift` pixels and cover a square of each; the uncovered border is mid-grey.

    Args:
        images: uint8 array, shape (n, height, width, channels); not changed.
        random: the generator that chooses.
        flip: whether to mirror half of them, chosen at random, left and right; or bool array (n,), the ones to mirror.
        shift: largest shift in pixels, in either direction and axis.
        cutout: side of the square in pixels, 0 for none. Its centre is anywhere in the image, so that a part may fall outside.
            Source: DeVries and Taylor 2017, "Cutout" (arXiv:1708.04552).

    Returns:
        uint8 array, same shape.
    """
    count, height, width, channels = images.shape
    padded = np.full((count, height + 2 * shift, width + 2 * shift, channels), PAD, np.uint8)
    padded[:, shift : shift + height, shift : shift + width] = images
    if flip is not False:
        mirrored = random.random(count) < 0.5 if flip is True else flip
        padded[mirrored] = padded[mirrored, :, ::-1]
    if shift:
        rows, columns = random.integers(0, 2 * shift + 1, (2, count))
        result = np.empty_like(images)
        for index in range(count):
            row, column = rows[index], columns[index]
            result[index] = padded[index, row : row + height, column : column + width]
    else:
        result = padded
    if cutout:
        corners = random.integers(0, (height, width), (count, 2)) - cutout // 2
        for index, (top, left) in enumerate(corners.tolist()):
            result[index, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = PAD
    return result
