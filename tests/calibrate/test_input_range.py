"""A model's input range: which real values pixels become, what a quantized input declares, and when another range is far better."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the workstation side needs the train extra")

from edgecnn.calibrate.input_range import (
    IMAGENET,
    RANGES,
    InputRange,
    Labelled,
    PixelRange,
    declared,
    find_range,
    line,
    per_channel,
    reordered,
    spelled,
    stated_range,
)
from edgecnn.errors import EngineError
from edgecnn.runtime.engines import Tensor


def test_a_mean_and_a_deviation_per_channel_become_a_scale_and_a_zero_point():
    given = per_channel((0.5, 0.25, 0.125), (0.2, 0.4, 0.8))
    scale, zero_point = (np.array(value) for value in given.numbers)
    for pixel in (0, 51, 255):
        expected = (pixel / 255 - np.array(given.mean)) / np.array(given.std)
        assert scale * (pixel - 128 - zero_point) == pytest.approx(expected)
    assert spelled(given) == "0 to 1, less the mean 0.5, 0.25, 0.125, over the deviation 0.2, 0.4, 0.8"
    usual = [spelled(stated_range(name)) for name in ("unit", "raw", "centred")]
    assert usual == ["0 to 1", "0 to 255", "-1 to 0.9922"]
    whole = InputRange(**vars(stated_range("raw")), text="as given", warning=None)
    assert line("m.onnx", whole) == "m.onnx reads pixels as 0 to 255 (raw), as given"


def test_a_range_is_known_by_its_name_or_its_numbers_and_others_are_given():
    assert stated_range("imagenet") == IMAGENET and stated_range("auto") is None
    assert stated_range((1.0, -128)).name == "raw"
    other = stated_range((0.5, 3))
    assert (other.name, other.scale, other.zero_point) == ("given", 0.5, 3)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "name"),
    [
        (np.uint8, 1 / 255, 0, "unit"),
        (np.int8, 1 / 255, -128, "unit"),
        (np.uint8, 1.0, 0, "raw"),
        (np.int8, 1 / 128, 0, "centred"),
        (np.uint8, 1 / 127.5, 127, "centred"),
        (np.uint8, 1.04 / 255, 0, "unit"),  # within 5 % of the width
        (np.uint8, 1.07 / 255, 0, None),
        (np.uint8, 0.0187, 114, None),
        (np.int8, 0.0, 0, None),
        (np.float32, 1 / 255, 0, None),
    ],
)
def test_a_quantized_input_declares_a_usual_range_only_if_it_spans_it(dtype, scale, zero_point, name):
    assert declared(Tensor("in", (1, 8, 8, 3), np.dtype(dtype), scale, zero_point)) == name
    assert declared(None) is None


IMAGES = Labelled(images=np.zeros((40, 2, 3, 1), np.uint8), classes=np.arange(40) % 3, name="40 photos")


def model(**right):
    """Return a model that classifies the first images correctly, as many as given by the range's name."""
    names = {stated_range(name).numbers: name for name in RANGES if name != "imagenet"}

    def call(pixels, scale, zero_point):
        answers = (IMAGES.classes + (np.arange(40) >= right.get(names.get((scale, zero_point), "other"), 0))) % 3
        return 5 * np.eye(3, dtype=np.float32)[answers]

    return call


def test_the_range_with_the_most_right_answers_is_chosen_and_each_ones_share_is_named():
    found = find_range(model(unit=10, raw=34, centred=20), None, IMAGES)
    assert (found.name, found.scale, found.zero_point, found.warning) == ("raw", 1.0, -128, None)
    assert "40 photos" in found.text
    for text in ("unit 25.0% right", "raw 85.0% right", "centred 50.0% right"):
        assert text in found.text


def test_only_a_model_of_colour_images_is_tried_with_the_mean_and_deviation_of_imagenet():
    colour = replace(IMAGES, images=np.zeros((40, 2, 3, 3), np.uint8))
    answers = model(unit=15, raw=22, centred=15, other=38)
    assert find_range(answers, None, colour).name == "imagenet"
    assert find_range(answers, None, IMAGES).name == "raw"


def test_a_given_range_gets_a_warning_only_if_another_is_far_better():
    bad = find_range(model(unit=20, raw=34), None, IMAGES, "unit")
    assert bad.name == "unit" and bad.text == "as given", "it is used as given"
    assert all(
        text in bad.warning for text in ("50.0% of 40 photos", "0 to 1, 85.0%", "0 to 255.", "--input-range raw")
    )
    assert find_range(model(unit=31, raw=34), None, IMAGES, "unit").warning is None, "3 of 40"
    own = find_range(model(other=34, raw=30), None, IMAGES, (0.5, 3))
    assert (own.name, own.scale, own.zero_point, own.warning) == ("given", 0.5, 3, None)


def test_an_input_of_codes_reads_the_pixel_or_the_pixel_less_128():
    for dtype, zero_point in ((np.uint8, -128), (np.int8, 0)):
        found = find_range(model(), Tensor("in", (1, 2, 3, 1), np.dtype(dtype), 0.0, 0), IMAGES, "raw")
        assert (found.name, found.scale, found.zero_point) == ("codes", 1.0, zero_point)
    with pytest.raises(EngineError):
        find_range(model(), None, IMAGES, per_channel((0.5, 0.5, 0.4), (0.2, 0.2, 0.2)))
    assert find_range(model(other=34), None, IMAGES, per_channel((0.5,), (0.2,))).mean == (0.5,), "one for all channels"


def test_outputs_in_another_order_are_recognised():
    turned = 5 * np.eye(3, dtype=np.float32)[(IMAGES.classes + 1) % 3]
    assert np.array_equal(reordered(turned, IMAGES.classes).argmax(axis=1), IMAGES.classes)
    found = find_range(lambda *given: turned, None, IMAGES, PixelRange(name="given", scale=0.5, zero_point=3))
    assert "100.0% of 40 photos" in found.warning and "not 0.0%" in found.warning and "--labels" in found.warning


def classifier(order=range(10), blue_first=False, right=0.96):
    """Return a model of ten classes of colours, which is right on this share of images, in any input range, and the images."""
    random = np.random.default_rng(4)
    colours = random.integers(0, 256, (10, 3))
    colours[:, 2] = 255 - colours[:, 0]  # red and blue differ
    classes = np.repeat(np.arange(10), 20)
    images = colours[classes][:, None, None].astype(np.uint8) * np.ones((1, 2, 2, 1), np.uint8)
    wrong = random.permutation(200) >= right * 200

    def call(pixels, *numbers):
        seen = pixels[:, 0, 0, ::-1] if blue_first else pixels[:, 0, 0]
        answers = np.argmin(np.square(seen[:, None].astype(int) - colours).sum(axis=2), axis=1)
        answers = np.where(wrong, (answers + 3) % 10, answers)
        return 5 * np.eye(10, dtype=np.float32)[np.asarray(order)[answers]]

    names = tuple(f"class{number}" for number in range(10))
    return call, Labelled(images=images, classes=classes, name="200 photos", labels=names)


def test_two_swapped_outputs_of_ten_are_named():
    call, images = classifier()
    assert find_range(call, None, images).warning is None
    call, images = classifier(order=[0, 1, 7, 3, 4, 5, 6, 2, 8, 9])
    warning = find_range(call, None, images).warning
    assert (
        "--labels" in warning and "'class2' for 'class7', 'class7' for 'class2')" in warning and "class3" not in warning
    )
    assert "red and blue" not in warning
    call, images = classifier(order=range(9, -1, -1))
    assert "'class3' for 'class6', …)" in find_range(call, None, images).warning


def test_a_model_that_reads_blue_first_is_recognised():
    call, images = classifier(blue_first=True)
    warning = find_range(call, None, images).warning
    assert "BGR" in warning and "96.0%" in warning
