"""Image to tensor: every kind of file that people have, good and bad."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from edgecnn import images
from edgecnn import pixels as modes
from edgecnn.errors import ImageError, ImageTooLargeError
from edgecnn.pixels import FITS, PAD, RESAMPLINGS, ROTATIONS, crop_box, mean_of_rows, resize, to_codes, to_real

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, format_="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def quarters():
    """Return a 16 by 8 image whose corners are red, green (top), blue and white (bottom)."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8], pixels[:4, 8:], pixels[4:, :8], pixels[4:, 8:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def corners(image):
    """Return the colours near the corners: top left, top right, bottom left, bottom right; each channel 0 or 255."""
    pixels = np.asarray(image)
    near = [pixels[y, x] for y in (1, -2) for x in (1, -2)]
    return [tuple(int(value > 127) * 255 for value in pixel) for pixel in near]


DAMAGED_EXIF = {
    "points outside": b"II*\0\xff\xff\xff\xff" + bytes(20),
    "no header": b"no TIFF at all",
    "cut": b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0",
    "orientation 9": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0" + bytes(4),
    "orientation is a text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0ab\0\0" + bytes(4),
}


class TestDecode:
    @pytest.mark.parametrize("format_", ["png", "bmp", "jpeg", "webp", "tiff", "gif", "avif"])
    def test_formats(self, format_):
        if format_ in ("webp", "avif") and not features.check(format_):
            pytest.skip(f"this Pillow cannot read {format_}")
        decoded = images.decode(encoded(quarters(), format_))
        assert (decoded.mode, decoded.size) == ("RGB", (16, 8))
        assert corners(decoded) == [RED, GREEN, BLUE, WHITE]

    @pytest.mark.parametrize("format_", ["gif", "tiff", "avif"])
    def test_the_first_of_several_images_is_read(self, format_):
        if format_ == "avif" and not features.check("avif"):
            pytest.skip("this Pillow cannot read AVIF")
        first, second = quarters(), Image.new("RGB", (16, 8), BLUE)
        several = encoded(first, format_, save_all=True, append_images=[second])
        assert corners(images.decode(several)) == corners(first) != corners(second)

    @pytest.mark.parametrize("format_", ["tiff", "avif"])
    @pytest.mark.parametrize("compression", [None, "tiff_lzw"])
    def test_a_rotated_image_is_upright_in_the_header_too(self, format_, compression):
        if format_ == "avif" and not features.check("avif"):
            pytest.skip("this Pillow cannot read AVIF")
        exif = Image.Exif()
        exif[images.EXIF_ORIENTATION] = 6
        data = encoded(quarters(), format_, exif=exif, **({"compression": compression} if format_ == "tiff" else {}))
        decoded = images.decode(data)
        assert decoded.size == (8, 16) and images.probe(data) == (16, 8, 3)
        assert corners(decoded) == [BLUE, RED, WHITE, GREEN]

    def test_transparency_of_a_gif_is_laid_over_white(self):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(1, (4, 0, 8, 8))
        decoded = images.decode(encoded(image, "gif", transparency=0))
        assert decoded.getpixel((1, 1)) == WHITE and decoded.getpixel((6, 6)) == BLUE

    def test_a_format_that_pillow_lacks_comes_with_advice(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)  # like Pillow before 11.3
        images._reader.cache_clear()
        with pytest.raises(ImageError, match=r"this Pillow cannot read AVIF\. .*pip install --upgrade Pillow"):
            images.decode(b"\0\0\0\x1cftypavif" + bytes(40))
        images._reader.cache_clear()

    def test_the_result_equals_pillows(self):
        """The plugin is called directly, for speed: same pixels as Image.open."""
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
        for format_, options in (("jpeg", {"quality": 80}), ("jpeg", {"progressive": True}), ("png", {}), ("bmp", {})):
            data = encoded(noise, format_, **options)
            assert np.array_equal(images.decode(data), Image.open(io.BytesIO(data)).convert("RGB"))

    # Where the stored corners (red, green, blue, white) stand once the image is upright: EXIF 2.32, tag 274.
    @pytest.mark.parametrize(
        ("orientation", "expected"),
        [
            (1, [RED, GREEN, BLUE, WHITE]),
            (2, [GREEN, RED, WHITE, BLUE]),
            (3, [WHITE, BLUE, GREEN, RED]),
            (4, [BLUE, WHITE, RED, GREEN]),
            (5, [RED, BLUE, GREEN, WHITE]),
            (6, [BLUE, RED, WHITE, GREEN]),
            (7, [WHITE, GREEN, BLUE, RED]),
            (8, [GREEN, WHITE, RED, BLUE]),
        ],
    )
    @pytest.mark.parametrize("format_", ["jpeg", "png"])
    def test_exif_orientation(self, format_, orientation, expected):
        exif = Image.Exif()
        exif[images.EXIF_ORIENTATION] = orientation
        options = {"quality": 95, "subsampling": 0} if format_ == "jpeg" else {}
        data = encoded(quarters(), format_, exif=exif.tobytes(), **options)
        decoded = images.decode(data)
        assert decoded.size == ((16, 8) if orientation < 5 else (8, 16))
        assert corners(decoded) == expected
        assert images.probe(data) == (decoded.height, decoded.width, 3)
        if format_ == "png":  # as Pillow would also find it after the pixels
            start, pixels = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
            end = data.rindex(b"IEND") - 4
            late = data[:start] + data[pixels:end] + data[start:pixels] + data[end:]
            assert corners(images.decode(late)) == expected and images.probe(late) == images.probe(data)

    def test_damaged_exif_is_no_reason_to_refuse_a_picture(self, tmp_path, root):
        """Nothing is printed, and the program's warning filters and Pillow's limit stay unchanged."""
        for name, damage in DAMAGED_EXIF.items():
            (tmp_path / f"{name}.jpg").write_bytes(encoded(quarters(), "jpeg", exif=b"Exif\0\0" + damage))
        code = (
            "import sys, warnings, numpy; from PIL import Image; before = Image.MAX_IMAGE_PIXELS, warnings.filters[:]\n"
            "from pathlib import Path; from edgecnn import images\n"
            "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
            "    data = images.read_file(path)\n"
            "    print(path.stem, images.decode(data).size, images.probe(data))\n"
            "print(before == (Image.MAX_IMAGE_PIXELS, warnings.filters))"
        )
        command = [sys.executable, "-W", "ignore", "-c", code, tmp_path]
        result = subprocess.run(command, capture_output=True, text=True, cwd=root)
        lines = [f"{name} (16, 8) (8, 16, 3)" for name in sorted(DAMAGED_EXIF)]
        assert (result.stdout.splitlines(), result.stderr) == ([*lines, "True"], "")

    def test_grey(self):
        ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
        data = encoded(Image.fromarray(ramp))
        assert np.array_equal(images.decode(data, 1), ramp)
        assert np.array_equal(images.decode(data, 3), np.dstack([ramp] * 3))
        assert images.probe(data) == (16, 16, 1)
        colour = images.decode(encoded(quarters()), 1)
        assert colour.mode == "L" and [np.asarray(colour)[1, 1], np.asarray(colour)[-1, -1]] == [76, 255]

    def test_one_bit(self):
        bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
        assert np.array_equal(images.decode(encoded(bits), 1), [[0, 255], [255, 0]])

    def test_16_bit_keeps_the_upper_half(self):
        deep = np.array([[0, 255, 256], [32767, 32768, 65535]], np.uint16)
        data = encoded(Image.fromarray(deep))
        assert np.array_equal(images.decode(data, 1), deep >> 8)
        assert np.array_equal(np.asarray(images.decode(data, 3))[:, :, 0], deep >> 8)
        assert images.probe(data)[2] == 1

    def test_rgba_is_laid_over_white(self):
        pixels = np.zeros((2, 2, 4), np.uint8)
        pixels[0, 0], pixels[0, 1], pixels[1, 0], pixels[1, 1] = (
            (255, 0, 0, 255),
            (9, 9, 9, 0),
            (0, 0, 0, 128),
            (0, 0, 255, 255),
        )
        decoded = np.asarray(images.decode(encoded(Image.fromarray(pixels))))
        assert decoded[0, 0].tolist() == [255, 0, 0] and decoded[1, 1].tolist() == [0, 0, 255]
        assert decoded[0, 1].tolist() == [255, 255, 255], "a transparent pixel is white, whatever its colour"
        assert decoded[1, 0].tolist() == [127, 127, 127]

    def test_grey_with_alpha(self):
        pixels = np.array([[[0, 255], [0, 0]]], np.uint8)
        data = encoded(Image.fromarray(pixels, "LA"))
        assert np.array_equal(images.decode(data, 1), [[0, 255]])
        assert np.asarray(images.decode(data, 3)).tolist() == [[[0, 0, 0], [255, 255, 255]]]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "I", "F", "P", "RGB", "RGBA", "CMYK"])
    def test_a_picture_without_colour_has_one_channel(self, mode):
        """According to its header, from which training chooses the network's input."""
        format_ = "tiff" if mode in ("I", "F", "CMYK") else "png"
        image = Image.fromarray(np.zeros((8, 8), np.uint16)) if mode == "I;16" else Image.new(mode, (8, 8))
        assert images.probe(encoded(image, format_))[2] == (3 if mode in ("P", "RGB", "RGBA", "CMYK") else 1)

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_32_bits_per_sample_are_refused(self, dtype):
        """Read as 16 bits, levels from 0 to 255 would be black."""
        image = Image.fromarray(np.arange(256, dtype=dtype).reshape(16, 16))
        for convert in (lambda: images.decode(encoded(image, "tiff")), lambda: images.to_mode(image, 1)):
            with pytest.raises(ImageError, match=r"has 32 bits, and it is unknown which value is white"):
                convert()

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_bands_leave_no_trace(self, mode, channels, monkeypatch):
        """Large images are converted band by band, with the same pixels."""
        noise = np.random.default_rng(0).integers(0, 256, (41, 29, 4), np.uint8)
        if mode == "I;16":
            image = Image.fromarray(noise[:, :, :2].copy().view(np.uint16)[:, :, 0])
        else:
            image = Image.fromarray(noise, "RGBA").convert(mode)
        if mode == "P":
            image.info["transparency"] = 7
        whole = np.asarray(images.to_mode(image, channels))
        monkeypatch.setattr("edgecnn.pixels.BAND_PIXELS", 100)
        assert np.array_equal(images.to_mode(image, channels), whole)
        assert np.array_equal(modes.as_array(Image.fromarray(whole)), whole)

    def test_palette(self):
        palette = quarters().convert("P", palette=Image.Palette.ADAPTIVE)
        assert corners(images.decode(encoded(palette))) == [RED, GREEN, BLUE, WHITE]

    def test_palette_with_a_transparent_colour(self):
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.putpixel((1, 0), 1)
        decoded = np.asarray(images.decode(encoded(image, transparency=1)))
        assert decoded.tolist() == [[[255, 0, 0], [255, 255, 255]]]

    def test_cmyk(self):
        cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
        red, green, blue = np.asarray(images.decode(encoded(cmyk, "jpeg", quality=95)))[8, 8]
        assert red > 240 and green < 15 and blue < 15


class TestRefused:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff",
            b"\xff\xd8\xff",
            b"hello",
            b"GIF89a" + bytes(50),
            b"BM",
            b"RIFF",
            b"RIFF\0\0\0\0WAVE" + bytes(20),
            bytes(1000),
        ],
    )
    def test_no_image(self, data):
        with pytest.raises(ImageError):
            images.decode(data)
        with pytest.raises(ImageError):
            images.probe(data)

    def test_another_format_is_named(self):
        with pytest.raises(ImageError, match="JPEG, PNG, BMP, WebP, TIFF, GIF, AVIF"):
            images.decode(encoded(quarters(), "ppm"))

    @pytest.mark.parametrize("format_", ["tiff", "gif", "avif"])
    def test_errors_of_other_decoders_become_one_error(self, format_, capfd):
        """With damage anywhere, they decode to something or raise ImageError; nothing is printed."""
        if format_ == "avif" and not features.check("avif"):
            pytest.skip("this Pillow cannot read AVIF")
        whole = encoded(quarters(), format_)
        random = np.random.default_rng(0)
        refused = 0
        for _ in range(300):
            data = bytearray(whole)
            data[random.integers(12, len(data))] ^= random.integers(1, 256)
            try:
                images.decode(bytes(data))
            except ImageError:
                refused += 1
        assert refused > 10
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize("format_", ["png", "bmp", "jpeg", "webp"])
    def test_truncated_anywhere(self, format_):
        """A truncated file never decodes to invented pixels. Only a format's padding at the end may be missing."""
        if format_ == "webp" and not features.check("webp"):
            pytest.skip("this Pillow has no WebP")
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
        data = encoded(noise, format_)
        whole = np.asarray(images.decode(data))
        refused = 0
        for length in range(0, len(data), 13):
            try:
                assert np.array_equal(images.decode(data[:length]), whole)
            except ImageError:
                refused += 1
        assert refused >= len(range(0, len(data), 13)) - 2

    @pytest.mark.parametrize("format_", ["png", "bmp", "jpeg", "webp"])
    def test_damaged_bytes_raise_nothing_but_image_errors(self, format_):
        if format_ == "webp" and not features.check("webp"):
            pytest.skip("this Pillow has no WebP")
        data = encoded(quarters(), format_)
        random = np.random.default_rng(1)
        for _ in range(300):
            damaged = bytearray(data)
            for position in random.integers(0, len(data), 3):
                damaged[position] = random.integers(256)
            for read in (images.decode, images.probe):
                with contextlib.suppress(ImageError):
                    read(bytes(damaged))

    @pytest.mark.parametrize(("width", "height"), [(65_535, 65_535), (1, 65_536)])
    def test_decompression_bomb(self, width, height):
        """A PNG of a few kB that claims 65,535 by 65,535 pixels, or a huge number of rows, each of which needs memory."""

        def chunk(kind, content):
            return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

        header = struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0)
        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(bytes(10**6)))
            + chunk(b"IEND", b"")
        )
        for read in (images.decode, images.probe):
            with pytest.raises(ImageTooLargeError, match=f"{width}x{height}"):
                read(bomb)

    def test_limit_is_inclusive(self, monkeypatch):
        monkeypatch.setattr(images, "MAX_PIXELS", 128)
        assert images.decode(encoded(quarters())).size == (16, 8)
        monkeypatch.setattr(images, "MAX_PIXELS", 127)
        with pytest.raises(ImageTooLargeError):
            images.decode(encoded(quarters()))
        monkeypatch.setattr(images, "MAX_PIXELS", 128)
        for size in ((16, 8), (8, 16)):
            monkeypatch.setattr(images, "MAX_SIDE", 16)
            assert images.probe(encoded(quarters().resize(size))) == (*size[::-1], 3)
            monkeypatch.setattr(images, "MAX_SIDE", 15)
            with pytest.raises(ImageTooLargeError):
                images.probe(encoded(quarters().resize(size)))

    def test_a_file_that_is_too_large_or_missing(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        path.write_bytes(b"12345")
        assert images.read_file(path) == b"12345"
        monkeypatch.setattr(images, "MAX_FILE_BYTES", 5)
        assert images.read_file(path) == b"12345", "the limit is inclusive"
        monkeypatch.setattr(images, "MAX_FILE_BYTES", 4)
        with pytest.raises(ImageTooLargeError, match="more than 4 bytes"):
            images.read_file(path)
        os.mkfifo(tmp_path / "pipe.png")
        for wrong in (tmp_path, tmp_path / "none.png", tmp_path / "pipe.png", "/dev/zero", "a\0b"):
            with pytest.raises(ImageError, match="cannot be read"):
                images.read_file(wrong)


class TestResize:
    def test_the_right_size_passes_through(self):
        pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
        for fit in FITS:
            assert np.array_equal(resize(Image.fromarray(pixels), 8, 16, fit), pixels)

    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [(1, 1), (100, 1), (1, 100), (640, 480), (7, 5)])
    def test_shape(self, fit, channels, size):
        image = Image.new("L" if channels == 1 else "RGB", size, 77 if channels == 1 else (77, 77, 77))
        pixels = resize(image, 12, 20, fit)
        assert (pixels.shape, pixels.dtype) == ((12, 20, channels), np.uint8)
        assert set(np.unique(pixels)) <= ({77} if fit != "letterbox" else {77, PAD})
        assert 77 in pixels

    def test_stretch_uses_the_whole_image(self):
        assert corners(resize(quarters(), 8, 8, "stretch")) == [RED, GREEN, BLUE, WHITE]

    def test_crop_uses_the_centre(self):
        strips = np.zeros((10, 30, 3), np.uint8)
        strips[:, :10], strips[:, 10:20], strips[:, 20:] = RED, GREEN, BLUE
        cropped = resize(Image.fromarray(strips), 10, 10, "crop")
        assert np.array_equal(cropped, strips[:, 10:20])
        standing = resize(Image.fromarray(strips.transpose(1, 0, 2)), 10, 10, "crop")
        assert np.array_equal(standing, strips[:, 10:20].transpose(1, 0, 2))

    @pytest.mark.parametrize(
        ("size", "height", "width", "box"),
        [
            ((640, 480), 32, 32, (80, 0, 560, 480)),
            ((480, 640), 32, 32, (0, 80, 480, 560)),
            ((640, 480), 24, 32, (0, 0, 640, 480)),
            ((101, 100), 10, 10, (0, 0, 100, 100)),
            ((100, 100), 10, 20, (0, 25, 100, 75)),
            ((1000, 1), 10, 10, (499, 0, 500, 1)),
            ((500, 1), 100, 10, (249, 0, 250, 1)),
            ((1, 500), 10, 100, (0, 249, 1, 250)),
            ((100, 99), 2, 3, (0, 16, 100, 83)),
            ((99, 100), 3, 2, (16, 0, 83, 100)),
        ],
    )
    def test_crop_box(self, size, height, width, box):
        assert crop_box(size, height, width) == box

    @settings(deadline=None)
    @given(
        size=st.tuples(st.integers(1, 400), st.integers(1, 400)), height=st.integers(1, 64), width=st.integers(1, 64)
    )
    def test_a_crop_is_the_largest_of_its_aspect_and_in_the_middle(self, size, height, width):
        left, top, right, bottom = crop_box(size, height, width)
        assert abs(left - (size[0] - right)) <= 1 and abs(top - (size[1] - bottom)) <= 1
        assert min(left, top) >= 0
        scale = min(size[0] / width, size[1] / height)
        for side, exact in ((right - left, scale * width), (bottom - top, scale * height)):
            assert abs(side - exact) <= 0.5 or (side == 1 and exact < 1), "the nearest whole number of pixels"

    @settings(deadline=None)
    @given(size=st.tuples(st.integers(1, 60), st.integers(1, 60)), height=st.integers(1, 40), width=st.integers(1, 40))
    def test_letterbox_shows_the_whole_image_in_the_middle(self, size, height, width):
        boxed = resize(Image.new("L", size, 255), height, width, "letterbox")[:, :, 0]
        rows, columns = np.flatnonzero((boxed == 255).any(axis=1)), np.flatnonzero((boxed == 255).any(axis=0))
        scale = min(width / size[0], height / size[1])
        for where, length, exact in ((rows, height, size[1] * scale), (columns, width, size[0] * scale)):
            assert np.array_equal(where, np.arange(where[0], where[-1] + 1))
            assert abs(where[0] - (length - 1 - where[-1])) <= 1, "bars of one size on both sides"
            assert abs(len(where) - exact) <= 0.5 or (len(where) == 1 and exact < 1)
        assert (boxed == 255).sum() == len(rows) * len(columns)

    def test_letterbox_keeps_the_aspect_between_grey_bars(self):
        boxed = resize(Image.new("RGB", (40, 20), RED), 16, 16, "letterbox")
        assert (boxed[:4] == PAD).all() and (boxed[12:] == PAD).all()
        assert (boxed[4:12] == RED).all()
        standing = resize(Image.new("L", (20, 40), 255), 16, 16, "letterbox")
        assert (standing[:, :4] == PAD).all() and (standing[:, 4:12] == 255).all()

    def test_is_antialiased(self):
        """Alternating black and white lines become grey, not black or white."""
        lines = np.zeros((64, 64), np.uint8)
        lines[::2] = 255
        small = resize(Image.fromarray(lines), 8, 8)
        assert ((small > 110) & (small < 145)).all()

    @pytest.mark.parametrize("size", [(640, 480), (641, 479), (500, 375), (66, 300), (1920, 1080), (47, 45), (33, 32)])
    @pytest.mark.parametrize("fit", ["crop", "stretch"])
    def test_is_the_mean_of_the_area(self, size, fit):
        """On a ramp, the mean of an area is the value in its middle. An edge may move by a quarter of a pixel, or by half of one of the
        image's own pixels if those are larger."""
        pixels = ramps(size)
        left, top, right, bottom = crop_box(size, 32, 32) if fit == "crop" else (0, 0, *size)
        small = resize(Image.fromarray(pixels), 32, 32, fit).astype(float)
        for channel, axis, start, stop, length in ((0, 1, left, right, size[0]), (1, 0, top, bottom, size[1])):
            step = (stop - start) / 32
            middle = (start + (np.arange(32) + 0.5) * step - 0.5) * 255 / (length - 1)
            moved = max(step / 4, 0.5) * 255 / (length - 1)
            expected = np.broadcast_to(middle if axis else middle[:, np.newaxis], (32, 32))
            assert np.abs(small[:, :, channel] - expected).max() <= moved + 1.5

    @pytest.mark.parametrize("size", [(150, 150), (320, 240), (641, 479), (1280, 960)])
    def test_bilinear_shrinks_as_pillow_does(self, size):
        coarse = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        expected = np.asarray(image.resize((96, 64), Image.Resampling.BILINEAR)).astype(int)
        apart = [np.abs(resize(image, 64, 96, "stretch", resampling=name) - expected).mean() for name in RESAMPLINGS]
        assert 5 * apart[RESAMPLINGS.index("bilinear")] < apart[RESAMPLINGS.index("box")]

    @pytest.mark.parametrize("channels", [1, 3])
    def test_whole_ratios_are_means_of_rows_then_of_columns(self, channels):
        pixels = np.random.default_rng(0).integers(0, 256, (480, 640, channels), np.uint8)
        mean = pixels[:, 80:560].reshape(32, 15, 32, 15, channels).mean(axis=(1, 3))
        small = resize(pixels, 32, 32)
        assert np.abs(small - mean).max() <= 1.01, "two roundings"
        assert abs((small - mean).mean()) < 0.1

    @pytest.mark.parametrize("count", [1, 2, 7, 256, 257, 600])
    def test_mean_of_rows(self, count):
        pixels = np.random.default_rng(count).integers(0, 256, (599, 5, 3), np.uint8)
        pixels[:, 0] = 255
        means = mean_of_rows(pixels, count)
        blocks = [pixels[start : start + count].astype(int) for start in range(0, 599, count)]
        assert means.tolist() == [((block.sum(axis=0) + len(block) // 2) // len(block)).tolist() for block in blocks]

    @pytest.mark.parametrize("fit", FITS)
    def test_an_array_gives_the_same_result_as_an_image(self, fit):
        pixels = np.random.default_rng(0).integers(0, 256, (97, 143, 3), np.uint8)
        image = resize(Image.fromarray(pixels), 20, 30, fit)
        assert np.array_equal(resize(pixels, 20, 30, fit), image)
        assert np.array_equal(resize(np.asfortranarray(pixels), 20, 30, fit), image)
        assert np.array_equal(resize(pixels[::-1][::-1], 20, 30, fit), image)

    def test_enlarged_images_are_interpolated(self):
        ramp = np.repeat(np.arange(0, 256, 51, dtype=np.uint8)[np.newaxis], 6, axis=0)
        large = resize(Image.fromarray(ramp), 48, 48)[24, :, 0].astype(int)
        assert (np.diff(large) >= 0).all() and np.diff(large).max() <= 8

    @pytest.mark.parametrize("turned", [False, True])
    def test_enlarged_in_one_direction_and_reduced_in_the_other(self, turned):
        """Seven levels along eight times as many pixels come out as a ramp, not as seven steps."""
        ramp = np.repeat(np.arange(0, 256, 42, dtype=np.uint8)[:, np.newaxis], 400, axis=1)
        small = resize(ramp.T if turned else ramp, 56, 56, "stretch")[:, :, 0].astype(int)
        steps = np.diff(small, axis=1 if turned else 0)
        assert steps.min() >= 0 and steps.max() <= 42 / 8 + 1

    @pytest.mark.parametrize("rotation", ROTATIONS)
    def test_rotation_turns_clockwise(self, rotation):
        clockwise = {
            0: [RED, GREEN, BLUE, WHITE],
            90: [BLUE, RED, WHITE, GREEN],
            180: [WHITE, BLUE, GREEN, RED],
            270: [GREEN, WHITE, RED, BLUE],
        }
        small = resize(quarters(), 6, 4, "stretch", rotation)
        assert small.shape == (6, 4, 3) and small.flags.c_contiguous
        assert corners(small) == clockwise[rotation]

    def test_known_bytes(self):
        """The resize is a contract: it gives these bytes on every machine, with every version of Pillow."""
        ramp = (np.arange(13 * 11 * 3) * 7 % 256).astype(np.uint8).reshape(11, 13, 3)
        assert resize(Image.fromarray(ramp), 2, 2, "crop").ravel().tolist() == KNOWN

    def test_load_is_decode_and_resize(self):
        data = encoded(quarters())
        assert np.array_equal(images.load(data, 4, 4, 3, "stretch"), resize(images.decode(data), 4, 4, "stretch"))


def ramps(size):
    """Return an image of `size` (width, height): red rises from left to right, green from top to bottom."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.rint(np.linspace(0, 255, width))
    pixels[:, :, 1] = np.rint(np.linspace(0, 255, height))[:, np.newaxis]
    return pixels


class TestReducedDecoding:
    """A JPEG that is much larger than needed is decoded at a fraction of its size."""

    @pytest.mark.parametrize(
        ("size", "least", "decoded"),
        [
            ((640, 480), (32, 32), (160, 120)),
            ((640, 480), (96, 96), (320, 240)),
            ((640, 480), (224, 224), (640, 480)),
            ((4000, 3000), (32, 32), (500, 375)),
            ((480, 640), (28, 96), (240, 320)),
            ((640, 480), (0, 0), (640, 480)),
        ],
    )
    def test_twice_the_size_remains(self, size, least, decoded):
        assert images.decode(encoded(Image.new("RGB", size), "jpeg"), 3, least).size == decoded

    def test_the_sides_of_a_rotated_image_are_those_of_the_upright_one(self):
        exif = Image.Exif()
        exif[images.EXIF_ORIENTATION] = 6
        data = encoded(Image.new("RGB", (640, 480)), "jpeg", exif=exif.tobytes())
        assert images.decode(data, 3, (96, 28)).size == (240, 320)

    def test_other_formats_keep_their_size(self):
        for format_ in ("png", "bmp"):
            assert images.decode(encoded(Image.new("RGB", (640, 480)), format_), 3, (32, 32)).size == (640, 480)

    @pytest.mark.parametrize("size", [(640, 480), (1001, 751)])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    def test_it_gives_the_same_result_as_the_whole_image(self, size, subsampling):
        data = encoded(Image.fromarray(ramps(size)), "jpeg", quality=95, subsampling=subsampling)
        whole = resize(images.decode(data), 32, 32).astype(int)
        reduced = images.load(data, 32, 32, 3).astype(int)
        assert np.abs(whole - reduced).max() <= 255 / 32 / 4 + 4, "a quarter of a pixel, plus JPEG losses"

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(("size", "least"), [((160, 640), (16, 64)), ((640, 160), (64, 16))])
    @pytest.mark.parametrize("fit", FITS)
    def test_no_detail_is_lost_if_input_or_picture_are_not_square(self, size, least, orientation, fit):
        """A picture of upright `size` that was stored rotated: decoded too small in one direction, its blotches would blur together."""
        coarse = np.random.default_rng(0).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
        upright = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
        inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
            orientation, images.TURNS.get(orientation)
        )
        exif = Image.Exif()
        exif[images.EXIF_ORIENTATION] = orientation
        stored = upright if inverse is None else upright.transpose(inverse)
        data = encoded(stored, "jpeg", quality=95, subsampling=0, exif=exif.tobytes())
        expected = resize(upright, *least, fit).astype(float)
        found = images.load(data, *least, 3, fit)
        assert found.shape == (*least, 3)
        assert np.sqrt(((found - expected) ** 2).mean()) < 0.12 * expected.std() + 3

    def test_truncated_images_are_refused_too(self):
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
        data = encoded(noise, "jpeg")
        for share in (0.1, 0.5, 0.9, 0.99):
            with pytest.raises(ImageError):
                images.load(data[: int(len(data) * share)], 32, 32, 3)


KNOWN = [117, 124, 131, 147, 147, 132, 166, 159, 159, 89, 89, 96]


class TestCodes:
    def test_every_pixel(self):
        pixels = np.arange(256, dtype=np.uint8)
        codes = to_codes(pixels)
        assert codes.dtype == np.int8
        assert codes.tolist() == list(range(-128, 128))
        assert np.array_equal(to_real(pixels, 1 / 128, 0), (pixels.astype(np.float64) - 128) / 128)
        assert np.array_equal(to_real(pixels, 1.0, -128), pixels)
        assert to_real(pixels, 1.0, -128).dtype == np.float32

    @pytest.mark.parametrize("dtype", [np.int8, np.float32, np.uint16])
    def test_only_uint8(self, dtype):
        with pytest.raises(ImageError, match=f"received {np.dtype(dtype).name}"):
            to_codes(np.zeros(3, dtype))
        with pytest.raises(ImageError):
            to_real(np.zeros(3, dtype), 1.0, 0)
