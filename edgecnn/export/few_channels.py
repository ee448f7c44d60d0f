"""A convolution with one to three input channels, rewritten to compute the same integers faster in ONNX Runtime.

ONNX Runtime gathers a convolution's input pixel by pixel, which is slow for pixels of one to three bytes. So four pixels of a row are
folded into the channels of one, and the kernel holds the weights four times, shifted and padded with zeros. If columns cannot be folded,
the channels are repeated until there are four, and the copies get zero weights.
"""

import numpy as np

FOLD = 4


def fold(kernel: np.ndarray, pads: list[int], width: int, out_width: int) -> tuple[np.ndarray, list[int]] | None:
    """Return kernel and padding of a convolution over rows folded by FOLD, stride 1 and dilation 1; None if the columns do not divide.

    out[FOLD * J + b] = sum over k of in[FOLD * J + b - left + k] * kernel[k] becomes a sum over whole groups of FOLD columns.

    Args:
        kernel: int8, shape (outputs, channels, height, width).
        pads: top, left, bottom, right.

    Returns:
        int8 kernel, shape (FOLD * outputs, FOLD * channels, height, groups), and its padding, in groups left and right.
    """
    outputs, channels, rows, columns = kernel.shape
    top, left, bottom, _ = pads
    before = -(-left // FOLD)
    groups = before + (FOLD - 1 - left + columns - 1) // FOLD + 1
    after = out_width // FOLD - width // FOLD - before + groups - 1
    if width % FOLD or out_width % FOLD or after < 0:
        return None
    folded = np.zeros((FOLD, outputs, FOLD, channels, rows, groups), kernel.dtype)
    for column in range(FOLD):
        for k in range(columns):
            group, within = divmod(column - left + k, FOLD)
            folded[column, :, within, :, :, group + before] = kernel[:, :, :, k]
    return folded.reshape(FOLD * outputs, FOLD * channels, rows, groups), [top, before, bottom, after]
