import io
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgecnn.device.cameras.mjpeg import MjpegSplitter
from edgecnn.device.cameras.source import CameraLost


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
