"""The memory for decoding an image is known before decoding, and must fit the machine."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, features

from edgecnn import images
from edgecnn.errors import ImageTooLargeError

MIB = 1 << 20
PHOTO = (4000, 3000)
"""A photo of 12 million pixels, as phones take."""


def encoded(mode, format_, size=PHOTO, orientation=1, **options):
    exif = Image.Exif()
    exif[images.EXIF_ORIENTATION] = orientation
    image = Image.fromarray(np.zeros(size[::-1], np.uint16)) if mode == "I;16" else Image.new(mode, size)
    buffer = io.BytesIO()
    image.save(buffer, format_, **options, **({"exif": exif} if orientation > 1 else {}))
    return buffer.getvalue()


@pytest.fixture
def board(monkeypatch):
    """Make this machine appear to have this much memory available, in MiB."""
    monkeypatch.delenv(images.MEMORY_LIMIT, raising=False)
    return lambda mib: monkeypatch.setattr(images, "available_bytes", lambda: None if mib is None else mib * MIB)


PHOTOS = {
    "JPEG": ("RGB", "jpeg", {}),
    "progressive JPEG": ("RGB", "jpeg", {"progressive": True, "subsampling": "4:4:4"}),
    "turned JPEG": ("RGB", "jpeg", {"orientation": 6}),
    "PNG": ("RGB", "png", {}),
    "PNG with transparency": ("RGBA", "png", {}),
    "turned PNG": ("RGBA", "png", {"orientation": 8}),
    "16-bit PNG": ("I;16", "png", {}),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("turned JPEG", "PNG with transparency") else pytest.mark.slow)
        for kind in PHOTOS
    ],
)
def test_a_photo_of_12_megapixels_is_classified_on_a_board_of_512_mb(board, kind):
    """A Raspberry Pi Zero 2 W has about 290 MiB available, and 230 once edgecnn and the file are in memory."""
    board(230)
    mode, format_, options = PHOTOS[kind]
    assert images.load(encoded(mode, format_, **options), 96, 96, 3).shape == (96, 96, 3)


BOMBS = {
    "WebP": ("RGB", "webp", (10_000, 9_000)),
    "one-bit PNG": ("1", "png", (10_000, 10_000)),
    "PNG": ("RGB", "png", (6_000, 4_000)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_takes_more_memory_than_the_board_has(board, kind):
    mode, format_, size = BOMBS[kind]
    if format_ == "webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    if format_ == "webp":  # encoding 90 megapixels would take long, so the header of a small image claims them
        data = bytearray(encoded(mode, format_, (16, 16), lossless=True))
        start = data.index(b"VP8L") + 9
        data[start : start + 4] = ((size[0] - 1) | (size[1] - 1) << 14).to_bytes(4, "little")
        data = bytes(data)
    else:
        data = encoded(mode, format_, size)
    assert len(data) < 200_000
    board(290)
    with pytest.raises(ImageTooLargeError, match=r" 145 .*50%"):
        images.load(data, 96, 96, 3)
    assert images.probe(data) == (size[1], size[0], 1 if mode == "1" else 3), "the header alone needs no memory"


def test_the_message_says_how_to_allow_it(board, monkeypatch):
    data = encoded("RGB", "png", (3000, 2000))
    board(50)
    with pytest.raises(ImageTooLargeError) as error:
        images.decode(data)
    setting = str(error.value).rpartition(" ")[2]
    name, _, value = setting.partition("=")
    assert name == "EDGECNN_IMAGE_MIB" and 40 <= int(value) <= 60
    monkeypatch.setenv(name, value)
    assert images.decode(data).size == (3000, 2000)
    monkeypatch.setenv(name, str(int(value) - 1))
    with pytest.raises(ImageTooLargeError, match=r"\$EDGECNN_IMAGE_MIB"):
        images.decode(data)


def test_half_of_the_available_memory_may_be_taken_to_the_last_byte(board, monkeypatch):
    board(100)
    images.require_memory(50 * MIB)
    with pytest.raises(
        ImageTooLargeError, match=r"take about 51 MiB; the limit is 50 MiB \(50% of .*EDGECNN_IMAGE_MIB=51$"
    ):
        images.require_memory(50 * MIB + 1)
    for text, allowed in (("7", 7), ("0", 0), ("", 50), ("-1", 50), ("2.5", 50)):
        monkeypatch.setenv(images.MEMORY_LIMIT, text)
        images.require_memory(allowed * MIB)
        with pytest.raises(ImageTooLargeError):
            images.require_memory(allowed * MIB + 1)


def test_a_machine_that_reports_no_available_memory(board):
    board(None)
    assert images.decode(encoded("L", "png", (2000, 2000)), 1).size == (2000, 2000)


def test_small_images_do_not_check_the_memory(monkeypatch):
    """Frames are decoded thirty times per second."""
    monkeypatch.setattr(images, "available_bytes", lambda: pytest.fail("it was looked at"))
    images.load(encoded("RGB", "jpeg", (1280, 960)), 32, 32, 3)
    images.load(encoded("RGBA", "png", (640, 480)), 32, 32, 3)


PEAK = """
import io, json, sys
from PIL import Image
from edgecnn import images

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

data = images.read_file(sys.argv[1])
least = (224, 224)
with Image.open(io.BytesIO(data)) as image:  # imports the decoder
    full = image.size
    image.draft(None, (448, 448))
    estimate = images.decoding_bytes(image, full, 3, data, images.orientation(image) > 1)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts again
before = status("VmRSS")
images.load(data, *least, 3)
print(json.dumps([estimate, status("VmHWM") - before]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in ("progressive JPEG", "turned PNG") else pytest.mark.slow)
        for kind in (*PHOTOS, "grey PNG", "WebP")
    ],
)
def test_the_estimate_is_close_to_the_memory_used(tmp_path, root, kind):
    """It uses at most a tenth and 16 MB more (bands and the decoder's own), and at least a third: no photo is refused needlessly."""
    mode, format_, options = {**PHOTOS, "grey PNG": ("L", "png", {}), "WebP": ("RGB", "webp", {"method": 0})}[kind]
    if format_ == "webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    path = tmp_path / "photo"
    path.write_bytes(encoded(mode, format_, **options))
    result = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, cwd=root, check=True)
    estimate, taken = json.loads(result.stdout)
    assert taken <= 1.1 * estimate + 16e6 and estimate <= 3 * taken + 16e6, (estimate / 1e6, taken / 1e6)


def test_a_png_is_not_decoded_before_the_check(board, monkeypatch):
    """Pillow decodes a PNG to find EXIF data after its pixels."""
    data = encoded("RGB", "png", (3000, 2000))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda image: pytest.fail("it was decoded"))
    assert images.probe(data) == (2000, 3000, 3)
    board(20)
    with pytest.raises(ImageTooLargeError):
        images.decode(data)


class TestScans:
    def test_a_small_file_of_very_many_scans_is_refused(self):
        """Each scan passes over the whole image. Markers in a metadata preview or after the end do not count."""
        data = encoded("RGB", "jpeg", (64, 64), progressive=True)
        last = data.rindex(b"\xff\xda")
        own = data.count(b"\xff\xda")
        few, limit, above, many = (
            data[:-2] + data[last:-2] * count + data[-2:] for count in (50, 100 - own, 101 - own, 150)
        )
        assert images.decode(limit).size == (64, 64)
        with pytest.raises(ImageTooLargeError, match="the JPEG has 101 scans"):
            images.decode(above)
        preview = b"\xff\xe1" + (202).to_bytes(2, "big") + b"\xff\xda" * 100
        assert images.decode(few[:2] + preview + few[2:] + b"\xff\xda" * 100).size == (64, 64)
        with pytest.raises(ImageTooLargeError, match="the JPEG has 160 scans; the limit is 100"):
            images.decode(many)

    def test_scans_of_a_large_image_are_limited_by_the_work_of_all(self, monkeypatch):
        """Ten scans of 60 million pixels are allowed, an eleventh is not; one scan that has all colours is not limited."""
        monkeypatch.setattr(images, "MAX_WORK", 10 * 640 * 480)
        ten, baseline = (encoded("RGB", "jpeg", (640, 480), progressive=kind) for kind in (True, False))
        assert ten.count(b"\xff\xda") == 10 and images.decode(ten).size == images.decode(baseline * 12).size == (
            640,
            480,
        )
        preview = b"\xff\xe1" + (202).to_bytes(2, "big") + b"\xff\xda" * 100
        assert images.decode(ten[:2] + preview + ten[2:] + ten).size == (640, 480), "a preview and a second picture"
        eleven = ten[:-2] + ten[ten.rindex(b"\xff\xda") : -2] + ten[-2:]
        monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", lambda image: pytest.fail("it was decoded"))
        with pytest.raises(ImageTooLargeError, match="the JPEG has 11 scans; the limit is 10 for 307,200 pixels"):
            images.decode(eleven, least=(32, 32))

    def test_a_progressive_photo_of_a_phone_is_decoded_and_a_hundred_scans_of_its_size_are_not(self):
        photo = encoded("L", "jpeg", (4080, 3060), progressive=True)
        hundred = photo[:-2] + photo[photo.rindex(b"\xff\xda") : -2] * 94 + photo[-2:]
        assert photo.count(b"\xff\xda") == 6 and images.decode(photo, 1, (96, 96)).size[0] < 4080
        with pytest.raises(ImageTooLargeError, match="the JPEG has 100 scans; the limit is 48"):
            images.decode(hundred, 1, (96, 96))

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_baseline(self, mode):
        assert images.in_one_scan(encoded(mode, "jpeg", (64, 64), orientation=6))
        assert not images.in_one_scan(encoded(mode, "jpeg", (64, 64), progressive=True))

    def test_one_scan_per_colour_takes_as_much_as_a_progressive_image(self):
        data = bytearray(encoded("RGB", "jpeg", (64, 64)))
        data[data.index(b"\xff\xda") + 4] = 1
        assert not images.in_one_scan(bytes(data))

    def test_a_file_that_cannot_be_parsed_counts_as_the_worst_case(self):
        data = encoded("RGB", "jpeg", (64, 64))
        for damaged in (b"", data[:30], data[:2] + b"\0" + data[2:], b"\xff\xd8" + b"\xff\xc0\0\0" * 4):
            assert not images.in_one_scan(damaged)


class TestAvailable:
    @pytest.fixture
    def machine(self, tmp_path):
        def make(files):
            for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    4000 kB\n", **files}.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
            return images.available_bytes(str(tmp_path))

        return make

    def test_memory_on_linux_and_a_system_that_reports_nothing(self, machine, tmp_path):
        assert images.available_bytes(str(tmp_path)) is None
        assert machine({}) == 4000 * 1024
        assert images.available_bytes() is None or images.available_bytes() > 0

    def test_a_service_with_a_limit(self, machine):
        group = {"proc/self/cgroup": "0::/system.slice/edgecnn.service\n"}
        limit = "sys/fs/cgroup/system.slice/edgecnn.service/memory.max"
        assert machine({**group, limit: "max\n"}) == 4000 * 1024
        assert machine({**group, limit: "1000000\n"}) == 1_000_000
        assert machine({**group, limit: "max\n", "sys/fs/cgroup/system.slice/memory.max": "2000\n"}) == 2000

    def test_a_container_with_a_limit(self, machine):
        assert machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "3000\n"}) == 3000
        old = {"proc/self/cgroup": "4:cpu:/\n3:memory:/docker/12ab\n"}
        assert machine({**old, "sys/fs/cgroup/memory/memory.limit_in_bytes": "1234\n"}) == 1234
