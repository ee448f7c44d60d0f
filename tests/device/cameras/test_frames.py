"""Streams of Motion JPEG and PPM, and frames without any device."""

import io
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.source import CameraLost, CameraSettings, MjpegSplitter, PpmSplitter
from edgecnn.errors import CameraError


def encode(seed, **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def with_thumbnail(image):
    """Put a complete JPEG into an APP1 segment, as cameras do with thumbnails."""
    thumbnail = b"Exif\0\0" + encode(99)
    return image[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + image[2:]


IMAGES = [
    encode(0),
    encode(1, progressive=True),
    encode(2, restart_marker_blocks=1),
    with_thumbnail(encode(3)),
    with_thumbnail(encode(4, progressive=True, optimize=True)),
    encode(5, comment=b"an end \xff\xd9 and a start \xff\xd8\xff\xd9 in a comment"),
    encode(6)[:2] + b"\xff\xff\xff" + encode(6)[3:],  # fill bytes before a marker
]


def chunks(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def split(data, cuts=(), splitter=None):
    splitter = splitter or MjpegSplitter()
    return [image for chunk in chunks(data, cuts) for image in splitter.feed(chunk)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, len(IMAGES) - 1), max_size=5),
    st.lists(st.integers(0, 1 << 20), max_size=30),
    st.lists(
        st.sampled_from([b"", b"\0" * 9, b"--frame\r\nContent-Type: image/jpeg\r\n\r\n", b"\xff\xd9", b"\xff"]),
        min_size=6,
        max_size=6,
    ),
)
def test_every_image_comes_out_complete_whatever_the_chunks_and_the_bytes_between(numbers, cuts, between):
    images = [IMAGES[number] for number in numbers]
    data = between[0] + b"".join(image + gap for image, gap in zip(images, between[1:], strict=False))
    splitter = MjpegSplitter()
    assert split(data, cuts, splitter) == images
    assert splitter.damaged == 0


def test_one_byte_at_a_time():
    data = b"".join(IMAGES)
    assert split(data, range(len(data))) == IMAGES


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", range(len(IMAGES)))
def test_an_image_truncated_anywhere_never_merges_with_the_next(number, every):
    """At most the following image is lost with it, and nothing comes out that was not an image or thumbnail in the input."""
    scan = IMAGES[number].rfind(b"\xff\xda") + 20
    for length in [*range(3, scan, every), *range(scan, len(IMAGES[number]) - 1, 29)]:
        for next_number in ((number + length) % len(IMAGES), 3)[: 1 + (length % 4 == 0)]:
            following = [IMAGES[next_number], IMAGES[0], IMAGES[1]]
            splitter = MjpegSplitter()
            found = splitter.feed(IMAGES[number][:length] + b"".join(following))
            assert found[-2:] == following[1:], (length, next_number)
            assert found[:-2] in ([following[0]], [], [encode(99)]), (length, next_number)
            assert splitter.damaged


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 1000), max_size=8))
def test_random_bytes_are_garbage_but_not_an_error(data, cuts):
    splitter = MjpegSplitter(max_frame=200, max_barren=300)
    try:
        for image in split(data, cuts, splitter):
            assert image.startswith(b"\xff\xd8\xff")
    except CameraLost as lost:
        assert lost.reason == "garbage"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(IMAGES) - 1), st.data())
def test_a_flipped_byte_costs_at_most_what_a_wrong_length_skips(number, data):
    image = IMAGES[number]
    at = data.draw(st.integers(0, len(image) - 1))
    flipped = bytearray(image)
    flipped[at] ^= data.draw(st.integers(1, 255))
    last = IMAGES[0]
    found = split(bytes(flipped) + last * 150)  # a wrong length skips at most 65,535 bytes
    assert found[-1] == last


@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_starts_within_each_others_segments_are_split_in_linear_time(end):
    """Each of 40,000 starts has a 64 KiB segment that holds 10,000 others: 300 kB took a minute when each was searched again."""
    splitter, before = MjpegSplitter(), time.process_time()
    assert split((b"\xff\xd8\xff\xe1\xff\xff" + end) * 40_000, range(0, 320_000, 65_536), splitter) == []
    assert time.process_time() - before < 10 and splitter.damaged > 20_000


def test_truncations_are_counted():
    splitter = MjpegSplitter()
    assert split(IMAGES[0][:-30] + IMAGES[0] + IMAGES[1][:400] + IMAGES[0], (), splitter) == [IMAGES[0]] * 2
    assert splitter.damaged == 2


def test_joined_midway_it_starts_at_the_next_image():
    assert split(IMAGES[0][300:] + IMAGES[0]) == [IMAGES[0]]


def test_an_image_that_lost_its_successors_start_is_damaged_and_not_merged():
    splitter = MjpegSplitter()
    assert split(IMAGES[0][:-30] + IMAGES[0][2:] + IMAGES[0], (), splitter) == [IMAGES[0]]
    assert splitter.damaged == 1


def test_endless_garbage_is_a_loss():
    splitter = MjpegSplitter(max_barren=10_000)
    with pytest.raises(CameraLost) as caught:
        for _ in range(20):
            splitter.feed(b"x" * 1000)
    assert caught.value.reason == "garbage"


def test_endless_damaged_images_are_a_loss():
    splitter = MjpegSplitter(max_barren=10_000)
    with pytest.raises(CameraLost) as caught:
        for _ in range(40):
            splitter.feed(IMAGES[0][:-30])
    assert caught.value.reason == "garbage"


def test_an_image_without_an_end_is_a_loss_before_memory_is_full():
    splitter = MjpegSplitter(max_frame=10_000)
    splitter.feed(IMAGES[0][:-2])
    with pytest.raises(CameraLost) as caught:
        for _ in range(20):
            splitter.feed(b"\0" * 1000)
    assert caught.value.reason == "garbage"


def test_a_complete_image_resets_the_garbage_count():
    splitter = MjpegSplitter(max_barren=1000)
    for _ in range(5):
        assert splitter.feed(b"x" * 1000 + IMAGES[0]) == [IMAGES[0]]
    with pytest.raises(CameraLost, match=r"no complete image in 1,001 bytes"):
        splitter.feed(b"x" * 1001 + IMAGES[0])


def test_an_image_of_exactly_the_largest_size_is_read():
    begun = IMAGES[0][:-2]
    splitter = MjpegSplitter(max_frame=len(begun))
    assert splitter.feed(begun) + splitter.feed(IMAGES[0][-2:]) == [IMAGES[0]]
    with pytest.raises(CameraLost, match=f"within {len(begun):,} bytes"):
        splitter.feed(begun + b"\0")


def test_images_without_huffman_tables_decode(cards):
    """Many webcams omit the standard tables, like Motion JPEG in AVI."""
    from edgecnn.images import decode

    data = cards.jpeg()
    while (at := data.find(b"\xff\xc4")) > 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert split(data) == [data]
    cards.check(np.asarray(decode(data)))


def ppm(pixels):
    height, width, _ = pixels.shape
    return f"P6\n{width} {height}\n255\n".encode() + pixels.tobytes()


SIZES = [(1, 1), (1, 7), (9, 4), (24, 32)]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(SIZES), max_size=5), st.lists(st.integers(0, 1 << 20), max_size=30))
def test_every_image_comes_out_whatever_the_chunks_and_sizes(sizes, cuts):
    images = [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8) for seed, size in enumerate(sizes)]
    data = b"".join(map(ppm, images))
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    splitter = PpmSplitter()
    found = [image for start, end in itertools.pairwise(edges) for image in splitter.feed(data[start:end])]
    assert len(found) == len(images)
    assert all((one == other).all() for one, other in zip(found, images, strict=True))


def test_bytes_that_are_not_an_image_are_garbage():
    wrong = b"not an image", b"P5\n4 4\n255\n", b"P6\n4 4\n65535\n" + b"0" * 24, b"P6 " + b"9" * 30, b"P6\n0 5\n255\n"
    for data in wrong:
        with pytest.raises(CameraLost) as caught:
            PpmSplitter().feed(data)
        assert caught.value.reason == "garbage"


def test_a_huge_size_is_refused_before_memory_is_allocated(monkeypatch):
    with pytest.raises(CameraLost, match="999999x999999"):
        PpmSplitter().feed(b"P6\n999999 999999\n255\n")
    monkeypatch.setattr("edgecnn.device.cameras.source.MAX_PIXELS", 12)
    (largest,) = PpmSplitter().feed(ppm(np.zeros((3, 4, 3), np.uint8)))
    assert largest.shape == (3, 4, 3)
    with pytest.raises(CameraLost, match="has 13x1 pixels; expected 1 to 12"):
        PpmSplitter().feed(ppm(np.zeros((1, 13, 3), np.uint8)))


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
