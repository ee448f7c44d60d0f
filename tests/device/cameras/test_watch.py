import io
import os

import numpy as np
import pytest
from PIL import Image

from edgecnn.device.cameras import folder as watch
from edgecnn.device.cameras import open_source
from edgecnn.device.cameras.source import CameraLost, CameraSettings, Stalled
from edgecnn.errors import CameraError


def image(seed, kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch, clock):
    """Waits take no time; a folder's memory does not outlive a test."""
    clock(watch)
    monkeypatch.setattr(watch, "_seen", {})


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    (path / "old.jpg").write_bytes(image(0))
    return path


def silent(source):
    """Assert that nothing arrives, for longer than a complete file takes to arrive."""
    with pytest.raises(CameraLost) as caught:
        source.read(1)
    assert caught.value.reason == "stall"


def test_new_images_arrive_once_oldest_first_with_their_paths(folder):
    source = open_source(f"watch:{folder}", CameraSettings())
    assert (source.name, source.live, source.patient) == (f"watch:{folder}", False, True)
    silent(source)
    for number, (name, kind) in enumerate({"b.jpg": "JPEG", "a.PNG": "PNG", "c.bmp": "BMP", "d.webp": "WEBP"}.items()):
        (folder / name).write_bytes(image(number, kind))
        os.utime(folder / name, ns=(10**18 + number, 10**18 + number))
    frames = [source.read(10) for _ in range(4)]
    assert [os.path.basename(frame.name) for frame in frames] == ["b.jpg", "a.PNG", "c.bmp", "d.webp"]
    assert [frame.sequence for frame in frames] == [0, 1, 2, 3]
    assert [frame.image for frame in frames] == [image(0), image(1, "PNG"), image(2, "BMP"), image(3, "WEBP")]
    silent(source)
    source.close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_a_growing_file_waits_until_it_is_complete(folder, kind):
    source = open_source(f"watch:{folder}", CameraSettings())
    data = image(1, kind)
    path = folder / "new.jpg"
    path.write_bytes(b"")
    for cut in (10, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:cut])
        silent(source)
    path.write_bytes(data)
    assert source.read(10).image == data
    silent(source)


def test_a_file_without_an_end_arrives_once_it_stops_growing(folder):
    source = open_source(f"watch:{folder}", CameraSettings())
    (folder / "cut.jpg").write_bytes(image(1)[:-5])
    assert source.read(10).image == image(1)[:-5]
    silent(source)


def test_hidden_temporary_and_other_files_are_left_alone(folder):
    source = open_source(f"watch:{folder}", CameraSettings())
    for name in (".new.jpg", "~new.jpg", "tmp.new.jpg", "new.jpg.part", "new.jpg~", "notes.txt"):
        (folder / name).write_bytes(image(1))
    (folder / "folder.jpg").mkdir()
    (folder / "broken.jpg").symlink_to(folder / "none")
    silent(source)
    os.replace(folder / ".new.jpg", folder / "new.jpg")
    assert source.read(10).name == str(folder / "new.jpg")
    os.rename(folder / "new.jpg", folder / "renamed.jpg")
    silent(source)


def test_a_rewritten_file_is_a_new_image(folder):
    source = open_source(f"watch:{folder}", CameraSettings())
    for seed in range(3):
        (folder / "latest.jpg").write_bytes(image(seed))
        with pytest.raises(Stalled):
            source.read(watch.SETTLED_S / 2)
        assert source.read(10).image == image(seed)
    silent(source)


def test_a_reopened_folder_misses_and_repeats_nothing(folder):
    source = open_source(f"watch:{folder}", CameraSettings())
    (folder / "a.jpg").write_bytes(image(1))
    assert source.read(10).image == image(1)
    source.close()
    (folder / "b.jpg").write_bytes(image(2))
    source = open_source(f"watch:{folder}/", CameraSettings())
    assert source.read(10).image == image(2)
    silent(source)


def test_a_removed_file_is_forgotten_and_new_when_it_returns(folder, tmp_path):
    """Otherwise a folder watched for months would fill the memory, and a file with a reused inode might look like an old one."""
    source = open_source(f"watch:{folder}", CameraSettings())
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(image(number))
        assert source.read(10).image == image(number)
        (folder / f"{number}.jpg").rename(tmp_path / f"{number}.jpg")
        silent(source)
    assert len(watch._seen[os.path.realpath(folder)]) == 1, "only old.jpg"
    (tmp_path / "1.jpg").rename(folder / "1.jpg")
    assert source.read(10).image == image(1)


def test_a_file_removed_before_its_turn_is_skipped(folder):
    source = open_source(f"watch:{folder}", CameraSettings())
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        (folder / name).write_bytes(image(number))
        os.utime(folder / name, ns=(10**18 + number, 10**18 + number))
    assert source.read(10).name == str(folder / "a.jpg")
    (folder / "b.jpg").unlink()
    assert source.read(10).name == str(folder / "c.jpg")


def test_a_file_that_cannot_be_read_has_no_bytes_and_its_name(folder, monkeypatch):
    monkeypatch.setattr("edgecnn.images.MAX_FILE_BYTES", 10)
    source = open_source(f"watch:{folder}", CameraSettings())
    (folder / "a.jpg").write_bytes(image(1))
    frame = source.read(10)
    assert (frame.image, frame.name) == (b"", str(folder / "a.jpg"))


def test_a_folder_that_vanishes_is_unplugged_and_a_missing_one_is_an_error(folder, tmp_path):
    source = open_source(f"watch:{folder}", CameraSettings())
    folder.rename(tmp_path / "moved")
    with pytest.raises(CameraLost) as caught:
        source.read(0.1)
    assert caught.value.reason == "unplugged"
    for text in (folder, tmp_path / "moved" / "old.jpg", ""):
        with pytest.raises(CameraError, match="expected a readable folder"):
            open_source(f"watch:{text}", CameraSettings())


def test_a_closed_watch_gives_nothing(folder):
    source = open_source(f"watch:{folder}", CameraSettings())
    source.close()
    source.close()
    with pytest.raises(CameraLost, match="closed"):
        source.read(10)
