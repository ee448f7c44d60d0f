"""Pictures for training: what is kept, what is skipped and why, and that none is overwritten."""

import fcntl
import io
import json
import os
import select
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from PIL import Image, ImageFilter

from edgecnn.device.stream import pictures
from edgecnn.device.stream.capture import BLURRED, DAMAGED, QUIT, SAME, TAKE, Capture, Shot
from edgecnn.device.stream.feed import Feed
from edgecnn.device.stream.settings import Camera, Pictures
from edgecnn.errors import CameraError, OutputError

pty = pytest.importorskip("pty", reason="there are no terminals here")


def picture(seed):
    """Blocks of random levels, 64 by 48: sharp, and different for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def blurred(seed):
    return np.asarray(Image.fromarray(picture(seed)).resize((640, 480)).filter(ImageFilter.GaussianBlur(40)))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def take(fake, tmp_path):
    """Capture all frames of a script; return the events about pictures."""

    def run(*script, label="cat", rotation=0, key=lambda: None, **settings):
        settings = Pictures(**{"interval_s": 1.0, **settings})
        feed = Feed(fake.Opener(fake.Source(*script, None)))
        told = []
        run.capture = Capture(feed, tmp_path / "photos" / label, settings, rotation, key=key)
        run.capture.run(told.append)
        fake.wait_for_the_end()
        return [item for item in told if isinstance(item, Shot)]

    return run


def kept(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_pictures_go_to_where_train_reads_them(take, tmp_path):
    shots = take(picture(1), png(picture(2)))
    take(picture(3), label="dog")
    assert kept(tmp_path / "photos/cat") == sorted(shot.path for shot in shots)
    assert [shot.path.suffix for shot in shots] == [".jpg", ".png"]
    assert [shot.path.stem.rpartition("-")[2] for shot in shots] == ["0", "1"]
    assert shots[1].path.read_bytes() == png(picture(2)), "what a camera has encoded stays as it is"
    from edgecnn.data.folder import open_folder

    assert open_folder(tmp_path / "photos").labels == ("cat", "dog")


def test_skipped_frames(take):
    first, second = picture(1), picture(1).copy()
    second[0, 0] ^= 255
    shots = take(first, blurred(2), second, b"no picture", picture(3), first)
    assert [shot.reason for shot in shots] == [None, BLURRED, SAME, DAMAGED, None, None]
    assert shots[2].change < 2 < shots[4].change and shots[1].sharpness < 10 < shots[0].sharpness
    assert (take.capture.kept, take.capture.skipped) == (3, 3)
    assert [shot.reason for shot in take(first, blurred(2), second, min_sharpness=0, min_change=0)] == [None] * 3


def test_a_picture_is_compared_with_the_last_kept_one_and_a_figure_at_its_limit_is_enough(take):
    grey = [np.full((48, 64, 3), level, np.uint8) for level in (100, 101, 102, 103, 104, 105)]
    shots = take(*grey, min_sharpness=0)
    assert [(shot.reason, shot.change) for shot in shots] == [
        (None, None), (SAME, 1), (None, 2), (SAME, 1), (None, 2), (SAME, 1),
    ]  # fmt: skip
    assert (take.capture.kept, take.capture.skipped) == (3, 3)
    sharp = pictures.sharpness(picture(1))
    assert take(picture(1), min_sharpness=sharp)[0].path
    assert take(picture(1), min_sharpness=sharp * 1.001)[0].reason == BLURRED


def test_only_the_region_of_the_upright_picture_is_kept(take):
    (shot,) = take(picture(1), rotation=90, region=(0, 0.5, 0.25, 0.375), min_sharpness=0)
    upright = picture(1)[::-1].transpose(1, 0, 2)  # clockwise: the bottom row becomes the left column
    kept_part = np.asarray(Image.open(shot.path))
    assert kept_part.shape == (24, 12, 3)
    assert np.abs(kept_part.astype(int) - upright[32:56, :12]).mean() < 5


def test_sharpness_and_change():
    values = [
        pictures.sharpness(np.asarray(Image.fromarray(picture(1)).filter(ImageFilter.GaussianBlur(r))))
        for r in range(4)
    ]
    assert values == sorted(values, reverse=True)
    assert pictures.sharpness(png(picture(1))) == pytest.approx(values[0], rel=0.05)
    assert pictures.sharpness(np.full((1, 1, 3), 9, np.uint8)) == 0
    black, white = (pictures.thumbnail(np.full((9, 9, 3), level, np.uint8)) for level in (0, 255))
    assert pictures.change(black, white) == 255 and pictures.change(black, black) == 0


def test_count(take, tmp_path):
    assert len(take(*[picture(seed) for seed in range(9)], count=2)) == 2
    assert len(kept(tmp_path)) == 2


def test_pictures_are_upright(take):
    (shot,) = take(picture(1), rotation=90)
    assert Image.open(shot.path).size == (48, 64)


def test_keys(take):
    pressed = iter([TAKE, None, None, TAKE, QUIT])
    shots = take(*[picture(seed) for seed in range(9)], key=lambda: next(pressed), interval_s=0.0)
    assert len(shots) == 2


def test_one_picture_per_interval_from_a_camera(fake, tmp_path):
    now = [0.0]

    class Ticking(fake.Source):
        def read(self, timeout):
            taken.wait(1)
            taken.clear()
            return super().read(timeout)

    import threading

    taken = threading.Event()
    taken.set()
    feed = Feed(fake.Opener(Ticking(*[picture(seed) for seed in range(12)], None, live=True)), Camera(warm_up=0))
    plain_take = feed.take

    def take(timeout):
        item = plain_take(timeout)
        if hasattr(item, "frame"):
            now[0] += 0.5
        taken.set()
        return item

    feed.take = take
    shots = []
    Capture(feed, tmp_path / "cat", Pictures(interval_s=2.0), clock=lambda: now[0]).run(shots.append)
    assert len([shot for shot in shots if isinstance(shot, Shot)]) == 3


def test_nothing_is_overwritten(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1764043200.0)
    for seed in range(3):
        feed = Feed(fake.Opener(fake.Source(picture(seed), None)))
        Capture(feed, tmp_path / "cat", Pictures(interval_s=1.0)).run(lambda shot: None)
    assert len(kept(tmp_path)) == 3


def test_a_folder_that_cannot_be_written(take, tmp_path):
    (tmp_path / "photos").write_text("a file")
    with pytest.raises(OutputError):
        take(picture(1))


def test_usage_errors(edgecnn):
    for arguments, text in (
        (["--label", "cat"], "give one stream, or --camera"),
        (["photo.jpg", "--label", "cat"], "is not a camera or a stream"),
        (["synthetic:", "--label", "../cat", "--interval", "1"], "cannot be a class folder: hidden"),
        (["synthetic:", "--label", "val", "--interval", "1"], "names of splits"),
        (["synthetic:", "--label", "cat"], "standard input is not a terminal"),
        (["synthetic:"], "--label"),
    ):
        result = edgecnn("capture", *arguments)
        assert result.code == 2 and text in " ".join(result.err.split()), result.err
    assert edgecnn("capture", "--camera", "--label", "cat", "--interval", "1").code == CameraError.exit_code


def test_the_command(edgecnn, tmp_path):
    source = "synthetic:64x48?frames=40&pattern=noise"
    result = edgecnn("capture", source, "--label", "cat", "--interval", "1", "--count", "2", "--out", "p", "--json")
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert sum(line["path"] is not None for line in lines) == 2
    assert all(set(line) == {"path", "reason", "sharpness", "change"} for line in lines)
    assert len(kept(tmp_path / "p" / "cat")) == 2
    assert "2 pictures kept in p/cat" in result.err


@pytest.mark.parametrize("end", [b"\x03", pytest.param(b"q", marks=pytest.mark.slow)])
def test_keys_in_a_terminal_whose_mode_is_restored(root, tmp_path, spawn, end):
    """Space, then the end with q or Ctrl-C."""
    terminal, inner = pty.openpty()
    before = termios.tcgetattr(inner)
    process = spawn(
        [sys.executable, "-m", "edgecnn", "capture", "synthetic:64x48?fps=50&pattern=noise", "--label", "cat"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        while b"synthetic frames" not in process.stderr.readline():
            pass
        assert not termios.tcgetattr(inner)[3] & termios.ICANON
        os.write(terminal, b" ")
        assert select.select([process.stdout], [], [], 20)[0]
        path = process.stdout.readline().decode().strip()
        assert (tmp_path / path).stat().st_size
        os.write(terminal, end)
        _, err = process.communicate(timeout=20)
        assert process.returncode == (130 if end == b"\x03" else 0), err
        assert b"Traceback" not in err
        assert termios.tcgetattr(inner) == before
    finally:
        os.close(terminal)
        os.close(inner)
