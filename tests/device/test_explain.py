"""Explanations as pictures and words, for files and for frames."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.explain import AGAINST, FOR, GAP, LINE, PANEL, explain, frame_pictures, in_words, picture
from edgecnn.pixels import resize
from edgecnn.runtime import Classifier
from edgecnn.runtime.engines import engines_for, is_installed

needs_engine = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)


@pytest.fixture
def classifier(root):
    return Classifier.load(root / "models" / "digits" / "digits.edgecnn")


def sheet_of(pixels, map_, answer="cat", score=0.5):
    """A complete picture, and the rows of its panels."""
    data = picture(pixels, np.float32(map_), answer, score)
    sheet = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    return sheet, sheet.shape[0] - 2 * LINE - GAP


def drawn(pixels, map_):
    sheet, rows = sheet_of(pixels, map_)
    return sheet[:rows]


def test_the_answer_its_score_and_the_legend_are_below():
    pixels, map_ = np.full((8, 8, 1), 128, np.uint8), np.zeros((8, 8))
    sheet, rows = sheet_of(pixels, map_)
    caption = sheet[rows:]
    answer, legend = caption[: LINE + GAP // 2], caption[LINE + GAP // 2 :]
    assert (answer < 100).any() and (answer[:, PANEL:] == 255).all(), "a short name, on the left"
    squares = [np.nonzero(np.abs(legend - colour).max(axis=2) < 2)[1] for colour in (FOR, AGAINST)]
    assert all(len(columns) > 80 for columns in squares)
    assert squares[0].max() < 20 < squares[1].min(), "the colour for the answer comes first"
    assert not np.array_equal(caption, sheet_of(pixels, map_, score=0.51)[0][rows:])
    longest, _ = sheet_of(pixels, map_, answer="M" * 255)
    assert longest.shape == sheet.shape and (longest[rows:, -8:] < 100).any(), "the score is still there"
    assert sheet_of(np.full((64, 8, 1), 128, np.uint8), np.zeros((64, 8)))[0].shape[1] >= PANEL, "room for the legend"


def test_the_image_and_the_map_are_next_to_each_other():
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    map_ = np.zeros((8, 8))
    map_[:4, :4], map_[4:, 4:] = 3.0, -3.0
    sheet = drawn(pixels, map_)
    assert sheet.shape == (PANEL, 2 * PANEL + GAP, 3)
    side = PANEL // 8
    assert np.array_equal(sheet[:, :PANEL], np.repeat(np.repeat(pixels, side, 0), side, 1)), "each pixel is a square"
    assert (sheet[:, PANEL : PANEL + GAP] == 255).all()
    over = sheet[:, PANEL + GAP :]
    for place, colour in (((16, 16), FOR), ((-17, -17), AGAINST)):
        assert np.abs(over[place] - colour).max() < 45, "almost the pure colour"
    assert np.ptp(over[16, -17]) == 0, "where the map is 0, grey"


def test_a_weak_map_is_at_full_strength():
    pixels, map_ = np.full((8, 8, 1), 128, np.uint8), np.eye(8)
    assert np.array_equal(drawn(pixels, map_), drawn(pixels, 1000 * map_))


def test_a_map_without_anything_is_grey_and_a_large_input_keeps_its_size():
    pixels = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    sheet = drawn(pixels, np.zeros((200, 300)))
    assert sheet.shape == (200, 608, 3)
    assert (np.ptp(sheet[:, 308:], axis=2) == 0).all()


def test_a_boxs_position_in_words():
    thirds = (0.1, 0.5, 0.9)
    words = [in_words((x - 0.1, y - 0.1, x + 0.1, y + 0.1)) for y, x in itertools.product(thirds, thirds)]
    assert words == [
        "upper left", "top", "upper right", "left", "centre", "right", "lower left", "bottom", "lower right",
    ]  # fmt: skip
    assert in_words((0, 0, 1, 1)) == "centre" and in_words((1, 1, 1, 1)) == "lower right"


@needs_engine
@pytest.mark.parametrize("fit", [None, "letterbox", "stretch"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_the_explanation_covers_what_the_classifier_read(classifier, tmp_path, fit, rotation):
    frame = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "frame.png")
    for image in (frame, tmp_path / "frame.png", (tmp_path / "frame.png").read_bytes()):
        found = explain(image, classifier, fit, rotation)
        best = classifier.classify(image, fit=fit, rotation=rotation).top[0]
        assert (found.answer, found.index) == (best.label, best.index)
        assert found.score == pytest.approx(best.score)
        grey = np.asarray(Image.fromarray(frame).convert("L"))
        assert np.array_equal(found.pixels, resize(grey, 8, 8, fit or "crop", rotation))


@needs_engine
def test_a_frame_becomes_a_picture(classifier):
    frame = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    data = frame_pictures(classifier, "stretch")(frame, 90)
    found = explain(frame, classifier, "stretch", 90)
    assert data == picture(found.pixels, found.map, found.answer, found.score)
