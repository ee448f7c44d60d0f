"""Figures of pictures, known from pictures drawn by hand, and their names."""

import io

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.stream import pictures
from edgecnn.device.stream.events import Seldom
from edgecnn.device.stream.settings import Pace, read_size
from edgecnn.tables import fields_of


def test_the_sharpness_of_one_bright_point():
    """Its Laplacian is 4 x 100 there, -100 at four neighbours and 0 elsewhere, without the outermost pixels."""
    frame = np.zeros((40, 320, 3), np.uint8)
    frame[20, 90] = 100
    assert pictures.sharpness(frame) == pytest.approx((400**2 + 4 * 100**2) / (38 * 318), rel=1e-5)
    wide = np.zeros((90, 1280, 3), np.uint8)
    assert pictures.grey(wide, 320).shape == (22, 320) and pictures.grey(wide, 64, 8).shape == (8, 64)


def test_the_change_is_a_mean_over_the_picture_in_grey_levels():
    dark, striped = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    striped[:, :8] = 80
    looks = pictures.thumbnail(dark), pictures.thumbnail(striped)
    assert pictures.change(*looks) == pictures.change(*looks[::-1]) == 20


def test_a_preview_is_upright_and_at_most_1280_pixels_wide_and_high():
    def size(height, width, rotation):
        return Image.open(io.BytesIO(pictures.as_jpeg(np.zeros((height, width, 3), np.uint8), rotation))).size

    assert [size(500, 2000, 0), size(500, 2000, 90), size(30, 1280, 0), size(30, 40, 0)] == [
        (1280, 320), (320, 1280), (1280, 30), (40, 30),
    ]  # fmt: skip
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :32] = 255
    assert Image.open(io.BytesIO(pictures.as_jpeg(pictures.encode(frame)[0]))).size == (96, 64), "a file is upright"
    turned = np.asarray(Image.open(io.BytesIO(pictures.as_jpeg(frame, 90))))
    assert turned[8, -8].min() > 240 and turned[8, 8].max() < 15 and turned[-8, -8].max() < 15, "clockwise"


def test_a_name_holds_the_time_in_utc_rounded_down():
    assert pictures.stamp(1764043200.25, 3) == "20251125T040000.250Z"
    assert pictures.stamp(1764043259.9999, 3) == "20251125T040059.999Z"
    assert pictures.stamp(1764043200.03125, 6) == "20251125T040000.031250Z"


def test_a_class_folder_has_a_name_of_at_most_100_bytes():
    for fits, too_long in (("a" * 100, "a" * 101), ("é" * 50, "é" * 50 + "a")):
        assert (pictures.why_no_folder(fits), pictures.folder_name(fits)) == ("", fits)
        assert pictures.why_no_folder(too_long) and len(pictures.folder_name(too_long).encode()) in (99, 100)


def test_rare_events_stand_for_those_held_back():
    now = [50.0]
    seldom = Seldom(10.0, lambda: now[0])
    counts = []
    for now[0], times in ((50.0, 3), (51.0, 2), (59.9, 1), (60.0, 4), (60.1, 5), (69.9, 0), (80.0, 1)):
        counts.append(seldom.count(times))
    assert counts == [3, 0, 0, 7, 0, 0, 6]


def test_sizes_and_ages_as_typed():
    assert [read_size(text) for text in ("640x480", "16384X1", "1x16384")] == [(640, 480), (16384, 1), (1, 16384)]
    for wrong in ("0x480", "640x0", "16385x1", "1x16385", "640", "640x480x3"):
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            read_size(wrong)
    age = fields_of(Pace)["max_age_s"]
    assert age.metadata["read"](250) == 0.25 and age.metadata["read"](age.metadata["typed"]) == Pace().max_age_s
