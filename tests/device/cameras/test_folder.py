"""Folders as cameras."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.cameras import folder, open_source
from edgecnn.device.cameras import folder as watch
from edgecnn.device.cameras.source import CameraLost, CameraSettings, Stalled
from edgecnn.errors import CameraError


@pytest.fixture
def photos(tmp_path, clock):
    """Three images in two classes, and what is no image."""
    clock(folder)
    for number, name in enumerate(("dog/1.png", "cat/2.jpg", "cat/1.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def times(source, count, read_s=0.0):
    """Return (end of the path, time since the first) of frames, each of which takes the reader a while."""
    found = []
    while len(found) < count and (frame := source.read(100)) is not None:
        found.append((frame.name[-9:], frame.monotonic))
        assert frame.sequence == len(found) - 1
        with open(frame.name, "rb") as file:
            assert frame.image == file.read()
        folder.time.now += read_s
    return [(name, round(at - found[0][1], 6)) for name, at in found]


def test_a_folder_is_shown_once_in_order_at_its_rate(photos):
    source = open_source(f"folder:{photos}?fps=4", CameraSettings(fps=30))
    assert (source.name, source.live, source.patient) == (f"folder:{photos}?fps=4", False, True)
    assert "3 images" in source.about and "4 frames/s" in source.about
    assert times(source, 9) == [("cat/1.jpg", 0), ("cat/2.jpg", 0.25), ("dog/1.png", 0.5)]
    assert source.read(100) is None and source.read(0) is None, "it has ended"


def test_it_repeats_and_waits_for_a_slow_reader(photos):
    again = open_source(f"folder:{photos}?loop=1&fps=0.1", CameraSettings())
    assert times(again, 4) == [("cat/1.jpg", 0), ("cat/2.jpg", 10), ("dog/1.png", 20), ("cat/1.jpg", 30)]
    slow = open_source(f"folder:{photos}?fps=10", CameraSettings())
    assert times(slow, 3, read_s=5) == [("cat/1.jpg", 0), ("cat/2.jpg", 5), ("dog/1.png", 10)], "none is missed"
    for fps, interval in ((30, 1 / 30), (0, 1)):
        assert times(open_source(f"folder:{photos}", CameraSettings(fps=fps)), 2)[1][1] == round(interval, 6)


def test_a_wait_can_be_interrupted_and_a_file_that_is_gone_is_an_empty_frame(photos):
    source = open_source(f"folder:{photos}?fps=0.1", CameraSettings())
    source.read(0)
    with pytest.raises(Stalled):
        source.read(9)
    os.remove(photos / "cat/2.jpg")
    assert source.read(1.5).image == b""
    source.close()
    with pytest.raises(CameraLost, match="closed"):
        source.read(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no images in no folder"),
        ("nowhere?fps=1", "no images in nowhere"),
        (".?fps=0", "fps is '0'; expected a number above 0"),
        (".?fps=nan", "fps is 'nan'"),
        (".?fps=\u0663", "expected a number above 0"),
        (".?loop=no", "loop is 'no'; expected 1"),
        (".?fsp=1", "no option 'fsp'. Did you mean 'fps'"),
    ],
)
def test_what_cannot_be_played_reports_why(photos, monkeypatch, text, message):
    monkeypatch.chdir(photos)
    with pytest.raises(CameraError, match=message):
        open_source(f"folder:{text}", CameraSettings())


def test_a_folder_whose_name_holds_a_question_mark(photos, tmp_path):
    (photos / "cat").rename(photos / "what?fps=9")
    assert len(times(open_source(f"folder:{photos}/what?fps=9", CameraSettings()), 9)) == 2


def image(seed, kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def quick(monkeypatch, clock):
    """Waits take no time; a folder's memory does not outlive a test."""
    clock(watch)
    monkeypatch.setattr(watch, "_seen", {})


@pytest.fixture
def folder_watch(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    (path / "old.jpg").write_bytes(image(0))
    return path


def silent(source):
    """Assert that nothing arrives, for longer than a complete file takes to arrive."""
    with pytest.raises(CameraLost) as caught:
        source.read(1)
    assert caught.value.reason == "stall"


@pytest.mark.usefixtures("quick")
def test_new_images_arrive_once_oldest_first_with_their_paths(folder_watch):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    assert (source.name, source.live, source.patient) == (f"watch:{folder_watch}", False, True)
    silent(source)
    for number, (name, kind) in enumerate({"b.jpg": "JPEG", "a.PNG": "PNG", "c.bmp": "BMP", "d.webp": "WEBP"}.items()):
        (folder_watch / name).write_bytes(image(number, kind))
        os.utime(folder_watch / name, ns=(10**18 + number, 10**18 + number))
    frames = [source.read(10) for _ in range(4)]
    assert [os.path.basename(frame.name) for frame in frames] == ["b.jpg", "a.PNG", "c.bmp", "d.webp"]
    assert [frame.sequence for frame in frames] == [0, 1, 2, 3]
    assert [frame.image for frame in frames] == [image(0), image(1, "PNG"), image(2, "BMP"), image(3, "WEBP")]
    silent(source)
    source.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_a_growing_file_waits_until_it_is_complete(folder_watch, kind):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    data = image(1, kind)
    path = folder_watch / "new.jpg"
    path.write_bytes(b"")
    for cut in (10, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:cut])
        silent(source)
    path.write_bytes(data)
    assert source.read(10).image == data
    silent(source)


@pytest.mark.usefixtures("quick")
def test_a_file_without_an_end_arrives_once_it_stops_growing(folder_watch):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    (folder_watch / "cut.jpg").write_bytes(image(1)[:-5])
    assert source.read(10).image == image(1)[:-5]
    silent(source)


@pytest.mark.usefixtures("quick")
def test_hidden_temporary_and_other_files_are_left_alone(folder_watch):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    for name in (".new.jpg", "~new.jpg", "tmp.new.jpg", "new.jpg.part", "new.jpg~", "notes.txt"):
        (folder_watch / name).write_bytes(image(1))
    (folder_watch / "folder.jpg").mkdir()
    (folder_watch / "broken.jpg").symlink_to(folder_watch / "none")
    silent(source)
    os.replace(folder_watch / ".new.jpg", folder_watch / "new.jpg")
    assert source.read(10).name == str(folder_watch / "new.jpg")
    os.rename(folder_watch / "new.jpg", folder_watch / "renamed.jpg")
    silent(source)


@pytest.mark.usefixtures("quick")
def test_a_rewritten_file_is_a_new_image(folder_watch):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    for seed in range(3):
        (folder_watch / "latest.jpg").write_bytes(image(seed))
        with pytest.raises(Stalled):
            source.read(watch.SETTLED_S / 2)
        assert source.read(10).image == image(seed)
    silent(source)


@pytest.mark.usefixtures("quick")
def test_a_reopened_folder_misses_and_repeats_nothing(folder_watch):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    (folder_watch / "a.jpg").write_bytes(image(1))
    assert source.read(10).image == image(1)
    source.close()
    (folder_watch / "b.jpg").write_bytes(image(2))
    source = open_source(f"watch:{folder_watch}/", CameraSettings())
    assert source.read(10).image == image(2)
    silent(source)


@pytest.mark.usefixtures("quick")
def test_a_removed_file_is_forgotten_and_new_when_it_returns(folder_watch, tmp_path):
    """Otherwise a folder watched for months would fill the memory, and a file with a reused inode might look like an old one."""
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    for number in range(3):
        (folder_watch / f"{number}.jpg").write_bytes(image(number))
        assert source.read(10).image == image(number)
        (folder_watch / f"{number}.jpg").rename(tmp_path / f"{number}.jpg")
        silent(source)
    assert len(watch._seen[os.path.realpath(folder_watch)]) == 1, "only old.jpg"
    (tmp_path / "1.jpg").rename(folder_watch / "1.jpg")
    assert source.read(10).image == image(1)


@pytest.mark.usefixtures("quick")
def test_a_file_removed_before_its_turn_is_skipped(folder_watch):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        (folder_watch / name).write_bytes(image(number))
        os.utime(folder_watch / name, ns=(10**18 + number, 10**18 + number))
    assert source.read(10).name == str(folder_watch / "a.jpg")
    (folder_watch / "b.jpg").unlink()
    assert source.read(10).name == str(folder_watch / "c.jpg")


@pytest.mark.usefixtures("quick")
def test_a_file_that_cannot_be_read_has_no_bytes_and_its_name(folder_watch, monkeypatch):
    monkeypatch.setattr("edgecnn.images.MAX_FILE_BYTES", 10)
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    (folder_watch / "a.jpg").write_bytes(image(1))
    frame = source.read(10)
    assert (frame.image, frame.name) == (b"", str(folder_watch / "a.jpg"))


@pytest.mark.usefixtures("quick")
def test_a_disk_that_comes_back_brings_no_old_files(folder_watch, tmp_path):
    """Unmounted, its mount point is an empty folder."""
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    (folder_watch / "a.jpg").write_bytes(image(1))
    assert source.read(10).name == str(folder_watch / "a.jpg")
    folder_watch.rename(tmp_path / "unmounted")
    folder_watch.mkdir()
    with pytest.raises(Stalled):
        source.read(0.2)
    folder_watch.rmdir()
    (tmp_path / "unmounted").rename(folder_watch)
    (folder_watch / "b.jpg").write_bytes(image(2))
    assert source.read(10).name == str(folder_watch / "b.jpg")


@pytest.mark.usefixtures("quick")
def test_a_folder_that_vanishes_is_unplugged_and_a_missing_one_is_an_error(folder_watch, tmp_path):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    folder_watch.rename(tmp_path / "moved")
    with pytest.raises(CameraLost) as caught:
        source.read(0.1)
    assert caught.value.reason == "unplugged"
    for text in (folder_watch, tmp_path / "moved" / "old.jpg", ""):
        with pytest.raises(CameraError, match="expected a readable folder"):
            open_source(f"watch:{text}", CameraSettings())


@pytest.mark.usefixtures("quick")
def test_a_closed_watch_gives_nothing(folder_watch):
    source = open_source(f"watch:{folder_watch}", CameraSettings())
    source.close()
    source.close()
    with pytest.raises(CameraLost, match="closed"):
        source.read(10)
