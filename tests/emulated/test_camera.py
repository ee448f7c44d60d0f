import io
import json

import numpy as np
import pytest
from PIL import Image


def answers(line):
    """Return the fields that a frame and a file share."""
    return line["decision"], line["top"]


def scores(line):
    """Return the score of each label in a line."""
    return {item["label"]: item["score"] for item in line["top"]}


def test_pictures_from_the_camera_are_classified_like_the_same_files(feed, classifying, pictures, colours, as_files):
    seen = {}
    feed.format("RGB3")
    feed.show(pictures[0])
    with classifying("--camera") as lines:
        opened = lines.event("camera_opened")
        assert opened["source"] == "/dev/video0" and "RGB3 640x480" in opened["about"]
        for path in [*pictures, *colours]:
            seen[path] = answers(lines.frame(after=feed.show(path)))
        assert lines.signal("TERM") == 143
        assert lines.event("ended")["reason"] == "signal"
    assert len(pictures) == 20 and len({as_files[path]["decision"] for path in pictures}) >= 5
    assert seen == {path: answers(as_files[path]) for path in [*pictures, *colours]}


def test_yuyv_changes_no_label(feed, classifying, pictures, colours, as_files):
    seen = {}
    feed.format("YUYV")
    feed.show(pictures[0])
    with classifying("/dev/video0", form="YUYV") as lines:
        assert "YUYV 640x480" in lines.event("camera_opened")["about"]
        for path in pictures:
            seen[path] = lines.frame(after=feed.show(path))["decision"]
        for path in colours:
            line = lines.frame(after=feed.show(path))
            assert scores(line) == pytest.approx(scores(as_files[path]), abs=0.05)
    assert seen == {path: as_files[path]["decision"] for path in pictures}


def test_red_stays_red_and_blue_stays_blue_if_the_camera_swaps_them(feed, classifying, colours, as_files):
    feed.format("BGR3")
    feed.show(colours[0])
    with classifying("/dev/video0", form="BGR3") as lines:
        assert "BGR3 640x480" in lines.event("camera_opened")["about"]
        for path in colours:
            assert answers(lines.frame(after=feed.show(path))) == answers(as_files[path])


def test_a_region_of_the_cameras_picture_is_classified_like_the_same_region_of_files(
    board, feed, classifying, pictures, as_files
):
    region, shown = "0.3,0.2,0.45,0.6", pictures[:3]
    done = board.run(
        ["edgecnn", "classify", *shown, "--region", region, "--json", "--top-k", "10"], check=True, timeout=120
    )
    expected = {line["source"]: answers(line) for line in map(json.loads, done.out.splitlines())}
    feed.format("RGB3")
    feed.show(shown[0])
    with classifying("--camera", "--region", region) as lines:
        assert lines.event("camera_opened")["region"] == [0.3, 0.2, 0.45, 0.6]
        seen = {}
        for path in shown:
            line = lines.frame(after=feed.show(path))
            assert line["region"] == [0.3, 0.2, 0.45, 0.6]
            seen[path] = answers(line)
    assert seen == expected
    assert all(seen[path] != answers(as_files[path]) for path in shown), "the region is not the whole picture"


def test_a_captured_picture_equals_the_scene(board, feed, colours):
    feed.format("RGB3")
    feed.show(colours[0])
    command = [
        "edgecnn",
        "capture",
        "--camera",
        "--label",
        "seen",
        "--interval",
        "0.1",
        "--count",
        "1",
        "--out",
        "taken",
    ]
    board.run(command, check=True)
    (name,) = board.run(["ls", "taken/seen"], check=True).out.split()
    taken, shown, swapped = (pixels(board.get(path)) for path in (f"/root/taken/seen/{name}", *colours))
    assert np.abs(taken - shown).mean() < 2 < 10 < np.abs(taken - swapped).mean()


def pixels(encoded):
    """Return an image's RGB pixels in a type that can be subtracted."""
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB")).astype(int)
