import os

import pytest
from PIL import Image

from edgecnn.device.cameras import folder, open_source
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
