import time

import numpy as np
import pytest

from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.source import CameraLost, CameraSettings
from edgecnn.errors import CameraError


def make(text, **settings):
    return open_source(f"synthetic:{text}", CameraSettings(**settings))


def test_frames_are_numbered_and_end():
    source = make("64x48?frames=5")
    assert (source.live, source.name) == (False, "synthetic:64x48?frames=5")
    assert source.about == "synthetic frames: bars, 64x48, 5 frames"
    frames = list(iter(lambda: source.read(0), None))
    assert [frame.sequence for frame in frames] == [0, 1, 2, 3, 4]
    assert source.read(0) is None
    assert all(frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8 for frame in frames)
    assert all((frame.image != frames[0].image).any() for frame in frames[1:])


@pytest.mark.parametrize("pattern", ["bars", "noise"])
def test_the_same_text_gives_the_same_frames(pattern):
    one, other = make(f"32x24?pattern={pattern}&seed=3"), make(f"32x24?pattern={pattern}&seed=3")
    assert all((one.read(0).image == other.read(0).image).all() for _ in range(300))


def test_noise_follows_its_seed_and_bars_have_their_colours():
    assert (make("32x24?pattern=noise&seed=1").read(0).image != make("32x24?pattern=noise&seed=2").read(0).image).any()
    bars = make("64x48").read(0).image
    assert bars[0, [4, 44, 52, 60]].tolist() == [[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]]


def test_each_frame_moves_bars_one_column_to_the_left_and_noise_one_row_up():
    bars, noise = make("64x48"), make("32x24?pattern=noise&seed=3")
    first, second = bars.read(0).image, bars.read(0).image
    assert (second == np.roll(first, -1, axis=1)).all()
    first, second = noise.read(0).image, noise.read(0).image
    assert (second[:-1] == first[1:]).all() and (second != first).any()


def test_size_and_rate_come_from_the_settings_if_the_text_has_none():
    assert make("").read(0).image.shape == (480, 640, 3)
    assert make("", width=80, height=60).read(0).image.shape == (60, 80, 3)
    assert make("", fps=1000).live
    assert make("8x6?fps=0", fps=1000).live is False
    assert make("8x6?frames=0").read(0) is not None, "0 is without a limit"
    assert make("1x8192").read(0).image.shape == (8192, 1, 3)
    assert make("8x6?fps=2.5&frames=1").about == "synthetic frames: bars, 8x6 at 2.5 frames/s, 1 frame"


def test_an_images_pixels_are_its_frames(tmp_path, cards):
    path = tmp_path / "a card.jpg"
    path.write_bytes(cards.jpeg())
    source = make(f"?pattern={path}&frames=2")
    first, second = source.read(0).image, source.read(0).image
    assert first.shape == (48, 64, 3)
    cards.check(first)
    first[:] = 0
    cards.check(second)


def test_a_rate_makes_it_live_and_a_slow_reader_misses_frames():
    source = make("8x6?fps=200&frames=1000000")
    assert source.live
    first, second = source.read(1), source.read(1)
    assert second.monotonic > first.monotonic
    time.sleep(0.05)
    assert source.read(1).sequence >= second.sequence + 9


def test_a_frame_that_is_due_too_late_is_a_stall():
    source = make("8x6?fps=0.001")
    source.read(1)
    with pytest.raises(CameraLost, match="due in") as caught:
        source.read(0.01)
    assert caught.value.reason == "stall"


def test_an_invalid_source_reports_what_was_expected():
    for text, message in (
        ("640", "WIDTHxHEIGHT"),
        ("0x5", "out of range"),
        ("8193x5", "out of range"),
        ("8x6?frame=3", "Did you mean 'frames'"),
        ("8x6?frames=-1", "whole number"),
        ("8x6?frames=", "whole number"),
        ("8x6?fps=fast", "a number"),
        ("8x6?pattern=none.jpg", "bars, noise or an image file"),
    ):
        with pytest.raises(CameraError, match=message):
            make(text)


@pytest.mark.usefixtures("leaks_nothing")
def test_twenty_thousand_frames_leave_nothing_behind():
    source = make("32x24?frames=20000")
    count = sum(1 for _ in iter(lambda: source.read(0), None))
    source.close()
    assert count == 20_000
