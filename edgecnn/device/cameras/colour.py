"""Convert a driver's pixels to RGB.

YUYV is Y'CbCr 4:2:2: two pixels in four bytes (Y0 Cb Y1 Cr); chroma is repeated, not interpolated. Limited range is Y' 16..235 and chroma
16..240; full range is 0..255. V4L2's default for YUYV is BT.601 with limited range; a driver may report another.
"""

import functools

import numpy as np

from edgecnn.device.cameras import v4l2_abi as abi

LUMA_WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593), "240M": (0.212, 0.087)}
"""Kr and Kb of each Y'CbCr encoding. Source: ITU-R BT.601, BT.709, BT.2020; SMPTE 240M."""

ENCODINGS = {
    abi.YCBCR_ENC_601: "601",
    abi.YCBCR_ENC_XV601: "601",
    abi.YCBCR_ENC_709: "709",
    abi.YCBCR_ENC_XV709: "709",
    abi.YCBCR_ENC_BT2020: "2020",
    abi.YCBCR_ENC_SMPTE240M: "240M",
}
DEFAULT_ENCODINGS = {
    abi.COLORSPACE_REC709: "709",
    abi.COLORSPACE_DCI_P3: "709",
    abi.COLORSPACE_BT2020: "2020",
    abi.COLORSPACE_SMPTE240M: "240M",
}
"""The meaning of encoding 0 in each colour space; BT.601 in the others. Source: V4L2_MAP_YCBCR_ENC_DEFAULT in linux/videodev2.h."""

FRACTION_BITS = 5  # fixed point of the conversion: the largest sum, 279 + 238 levels at BT.2020, stays within int16


def encoding_of(pixels: abi.PixFormat) -> tuple[str, bool]:
    """Return (key of LUMA_WEIGHTS, whether full range) for the Y'CbCr format that a driver reports."""
    encoding = ENCODINGS.get(pixels.ycbcr_enc) or DEFAULT_ENCODINGS.get(pixels.colorspace, "601")
    full = pixels.quantization == abi.QUANTIZATION_FULL_RANGE or (
        pixels.quantization != abi.QUANTIZATION_LIM_RANGE and pixels.colorspace == abi.COLORSPACE_JPEG
    )
    return encoding, full


@functools.cache
def yuv_tables(encoding: str, full: bool) -> tuple[np.ndarray, ...]:
    """Return the conversion as int16 tables of 256 entries: Y', Cr to red, Cb to green, Cr to green, Cb to blue."""
    red, blue = LUMA_WEIGHTS[encoding]
    green = 1 - red - blue
    levels = np.arange(256.0)
    luma = levels if full else (levels - 16) * 255 / 219
    chroma = (levels - 128) * (1 if full else 255 / 224)
    parts = (
        luma + 0.5,  # makes the final shift round to nearest
        chroma * 2 * (1 - red),
        -chroma * 2 * (1 - blue) * blue / green,
        -chroma * 2 * (1 - red) * red / green,
        chroma * 2 * (1 - blue),
    )
    return tuple(np.rint(part * (1 << FRACTION_BITS)).astype(np.int16) for part in parts)


def rows(data: np.ndarray, height: int, row_bytes: int, stride: int) -> np.ndarray:
    """Return a view, shape (height, row_bytes), of a buffer whose rows begin `stride` bytes apart."""
    return np.lib.stride_tricks.as_strided(data, (height, row_bytes), (stride, 1))


def yuyv_to_rgb(packed: np.ndarray, encoding: str = "601", full: bool = False) -> np.ndarray:
    """Convert YUYV, uint8 (height, 2 * width), width even, to uint8 RGB (height, width, 3), within one level of the exact value."""
    luma_table, cr_red, cb_green, cr_green, cb_blue = yuv_tables(encoding, full)
    height, pairs = packed.shape[0], packed.shape[1] // 4
    even, odd = luma_table.take(packed[:, 0::4]), luma_table.take(packed[:, 2::4])
    cb, cr = packed[:, 1::4], packed[:, 3::4]
    result = np.empty((height, pairs, 6), np.uint8)
    levels = np.empty((height, pairs), np.int16)
    for channel, chroma in enumerate((cr_red.take(cr), cb_green.take(cb) + cr_green.take(cr), cb_blue.take(cb))):
        for position, luma in ((channel, even), (channel + 3, odd)):
            np.add(luma, chroma, out=levels)
            np.right_shift(levels, FRACTION_BITS, out=levels)
            result[:, :, position] = np.clip(levels, 0, 255, out=levels)
    return result.reshape(height, 2 * pairs, 3)


def bgr_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return a copy of (height, width, 3) with the first and last channel swapped; copying three planes is faster than one reversal."""
    result = np.empty(pixels.shape, np.uint8)
    for channel in range(3):
        result[:, :, channel] = pixels[:, :, 2 - channel]
    return result


@functools.cache
def stretch_table() -> np.ndarray:
    """Return the full-range level for each limited-range level (16..235)."""
    return np.rint(np.clip((np.arange(256.0) - 16) * 255 / 219, 0, 255)).astype(np.uint8)


def to_rgb(data: np.ndarray, pixels: abi.PixFormat) -> np.ndarray:
    """Convert a driver's one-dimensional uint8 buffer (YUYV, RGB3 or BGR3) to uint8 RGB (height, width, 3), which may be a view."""
    if pixels.pixelformat == abi.YUYV:
        width = pixels.width + pixels.width % 2
        packed = rows(data, pixels.height, 2 * width, pixels.bytesperline)
        return yuyv_to_rgb(packed, *encoding_of(pixels))[:, : pixels.width]
    view = rows(data, pixels.height, 3 * pixels.width, pixels.bytesperline).reshape(pixels.height, pixels.width, 3)
    if pixels.quantization == abi.QUANTIZATION_LIM_RANGE:
        view = stretch_table()[view]
    return bgr_to_rgb(view) if pixels.pixelformat == abi.BGR3 else np.ascontiguousarray(view)
