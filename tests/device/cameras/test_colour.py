import numpy as np
import pytest

from edgecnn.device.cameras import v4l2_abi as abi
from edgecnn.device.cameras.colour import encoding_of, to_rgb, yuyv_to_rgb

STANDARDS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593), "240M": (0.212, 0.087)}
"""Kr and Kb, from ITU-R BT.601, BT.709 and BT.2020, and SMPTE 240M."""


def exact(packed, encoding, full):
    """The formula in float64, rounded once."""
    red, blue = STANDARDS[encoding]
    data = packed.astype(float)
    luma = data[:, 0::2] if full else (data[:, 0::2] - 16) * 255 / 219
    cb, cr = (np.repeat(data[:, start::4] - 128, 2, axis=1) * (1 if full else 255 / 224) for start in (1, 3))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("encoding", STANDARDS)
@pytest.mark.parametrize("full", [False, True])
def test_yuyv_is_within_one_level_of_the_exact_value(encoding, full):
    packed = np.random.default_rng(0).integers(0, 256, (64, 512), np.uint8)
    packed[0, :16] = (
        0,
        0,
        0,
        0,
        255,
        255,
        255,
        255,
        255,
        0,
        255,
        0,
        0,
        255,
        0,
        255,
    )  # the corners, where a sum could overflow
    difference = np.abs(yuyv_to_rgb(packed, encoding, full).astype(int) - exact(packed, encoding, full))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.03


def test_yuyv_of_known_colours_in_bt601_limited_range():
    """Within 2 levels, because the codes themselves are rounded. Source of the codes: ITU-R BT.601, 8 bits, 100 % colours."""
    for pixel, rgb in (
        ((16, 128, 16, 128), (0, 0, 0)),
        ((235, 128, 235, 128), (255, 255, 255)),
        ((81, 90, 81, 240), (255, 0, 0)),
        ((145, 54, 145, 34), (0, 255, 0)),
        ((41, 240, 41, 110), (0, 0, 255)),
    ):
        found = yuyv_to_rgb(np.array([pixel], np.uint8)).astype(int)
        assert found.shape == (1, 2, 3)
        assert np.abs(found - rgb).max() <= 2


def test_a_width_that_is_odd_drops_the_last_half_of_a_pair():
    """Two rows of three greys in full range: luma at every second byte, in the order of the rows."""
    data = [10, 128, 20, 128, 30, 128, 77, 128, 40, 128, 50, 128, 60, 128, 77, 128]
    pixels = abi.PixFormat(3, 2, abi.YUYV, bytesperline=8, quantization=abi.QUANTIZATION_FULL_RANGE)
    rgb = to_rgb(np.array(data, np.uint8), pixels)
    assert rgb[:, :, 1].tolist() == [[10, 20, 30], [40, 50, 60]] and rgb.shape == (2, 3, 3)


def test_the_drivers_values_are_used():
    for reported, expected in (
        ({}, ("601", False)),
        ({"colorspace": 8}, ("601", False)),  # sRGB
        ({"colorspace": abi.COLORSPACE_JPEG}, ("601", True)),
        ({"colorspace": abi.COLORSPACE_JPEG, "quantization": abi.QUANTIZATION_LIM_RANGE}, ("601", False)),
        ({"colorspace": abi.COLORSPACE_REC709}, ("709", False)),
        ({"colorspace": abi.COLORSPACE_REC709, "ycbcr_enc": abi.YCBCR_ENC_601}, ("601", False)),
        ({"colorspace": abi.COLORSPACE_BT2020, "quantization": abi.QUANTIZATION_FULL_RANGE}, ("2020", True)),
        ({"ycbcr_enc": abi.YCBCR_ENC_709}, ("709", False)),
    ):
        assert encoding_of(abi.PixFormat(2, 2, abi.YUYV, **reported)) == expected


def yuyv_of(pixels):
    """Encode an array with pairwise equal pixels as YUYV, BT.601, limited range."""
    r, g, b = (pixels[..., channel].astype(float) for channel in range(3))
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    packed = np.empty((pixels.shape[0], pixels.shape[1], 2), np.uint8)
    packed[..., 0] = np.rint(16 + luma * 219 / 255)
    packed[:, 0::2, 1] = np.rint(128 + (b - luma)[:, 0::2] / 1.772 * 224 / 255)
    packed[:, 1::2, 1] = np.rint(128 + (r - luma)[:, 1::2] / 1.402 * 224 / 255)
    return packed.reshape(pixels.shape[0], -1)


@pytest.mark.parametrize("padding", [0, 20])
@pytest.mark.parametrize("pixelformat", [abi.YUYV, abi.RGB3, abi.BGR3])
def test_the_card_keeps_its_colours_at_any_stride(cards, pixelformat, padding):
    pixels = cards.pixels()
    packed = {
        abi.YUYV: yuyv_of(pixels),
        abi.RGB3: pixels.reshape(48, -1),
        abi.BGR3: pixels[:, :, ::-1].reshape(48, -1),
    }[pixelformat]
    data = np.pad(packed, ((0, 0), (0, padding)), constant_values=77).reshape(-1)
    data = data[: data.size - padding]  # the last row need not be padded
    rgb = to_rgb(data, abi.PixFormat(64, 48, pixelformat, bytesperline=packed.shape[1] + padding))
    assert rgb.shape == (48, 64, 3)
    assert rgb.dtype == np.uint8
    cards.check(rgb)
    if pixelformat != abi.YUYV:
        assert (rgb == pixels).all()


def test_rgb_of_limited_range_is_stretched():
    data = np.array([16, 235, 128, 0, 255, 126], np.uint8)
    pixels = abi.PixFormat(2, 1, abi.RGB3, bytesperline=6, quantization=abi.QUANTIZATION_LIM_RANGE)
    assert to_rgb(data, pixels).tolist() == [[[0, 255, 130], [0, 255, 128]]]
