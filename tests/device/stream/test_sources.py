"""The meaning of SOURCE arguments."""

import os

import pytest

from edgecnn.device.stream.sources import expand


def listed(*sources, stdin=()):
    """Return (path, error or None) for each item of the sources."""
    return [(path, str(error) if error else None) for path, error in expand(sources, stdin)]


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)


def test_a_file_is_accepted_whatever_its_name():
    assert listed("photos/notes.txt", "photos/.hidden.jpg") == [
        ("photos/notes.txt", None),
        ("photos/.hidden.jpg", None),
    ]


def test_a_folder_is_sorted_and_recursive_without_hidden_files(folder):
    for name in ("zebra", "mouse", "ape"):
        (folder / name).mkdir()
        (folder / name / "1.jpg").touch()
    names = ["A.PNG", "b.jpg", "ape/1.jpg", "mouse/1.jpg", "sub/c.bmp", "zebra/1.jpg"]
    assert listed("photos") == [(f"photos/{name}", None) for name in names]


def test_files_of_a_folder_that_are_not_read_are_counted(folder):
    for name in ("c.heic", "sub/d.HEIC", "e.tif", "f.gif", "g.jfif"):
        (folder / name).write_bytes(b"x")
    notes = []
    found = [path for path, _ in expand(["photos"], (), notes.append)]
    assert [path.rpartition("/")[2] for path in found] == ["A.PNG", "b.jpg", "e.tif", "f.gif", "g.jfif", "c.bmp"]
    (note,) = notes
    assert note.startswith("photos: 3 files left out (2 .heic, 1 .txt)")


def test_linked_folders_are_read_like_in_training_and_cycles_end(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.jpg").write_bytes(b"x")
    (folder / "sub" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "sub")
    (folder / "sub" / "self").symlink_to(folder)
    expected = [("A.PNG", None), ("b.jpg", None), ("sub/c.bmp", None), ("sub/cat/d.jpg", None)]
    for source in ("photos", "photos/", str(folder)):
        assert listed(source) == [(os.path.join(source, name), error) for name, error in expected]


def test_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    ((path, error),) = listed("empty")
    assert path == "empty" and "no images in this folder; expected files that end in .jpg" in error


def test_folder_that_cannot_be_read(monkeypatch):
    def walk(top, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", f"{top}/secret"))
        yield top, [], names

    monkeypatch.setattr(os, "walk", walk)
    names, secret = ["b.jpg"], ("photos/secret", "cannot be read: Permission denied")
    assert listed("photos") == [("photos/b.jpg", None), secret]
    names = []
    assert listed("photos") == [secret], "it may hold images"


def test_glob():
    assert listed("photos/*.jpg") == [("photos/b.jpg", None)]
    assert listed("photos/**/*.bmp") == [("photos/sub/c.bmp", None)]
    assert listed("photos/s*") == [("photos/sub/c.bmp", None)]
    assert listed("photos/*.gif") == [("photos/*.gif", "the pattern matches nothing")]


def test_file_with_the_name_of_a_glob(folder):
    (folder / "b[1].jpg").write_bytes(b"x")
    assert listed("photos/b[1].jpg") == [("photos/b[1].jpg", None)]


def test_a_missing_file_is_an_item_and_the_rest_follows():
    assert listed("none.jpg", "photos/b.jpg") == [("none.jpg", "no such file or folder"), ("photos/b.jpg", None)]
    ((_, why),) = listed("a\0b")
    assert why.startswith("no such file or folder. ") and "--camera" in why


def test_broken_link_is_left_to_the_reader(tmp_path):
    (tmp_path / "link.jpg").symlink_to("nowhere")
    assert listed("link.jpg") == [("link.jpg", None)]


def test_standard_input():
    lines = [b"photos/b.jpg\n", b"\n", b"none.jpg\r\n", b"photos/sub", b"\xff.jpg\n", b" b.jpg \n"]
    assert listed("-", stdin=lines) == [
        ("photos/b.jpg", None),
        ("none.jpg", "no such file or folder"),
        ("photos/sub/c.bmp", None),
        ("\udcff.jpg", "no such file or folder"),
        (" b.jpg ", "no such file or folder"),
    ]
    assert listed("-") == []


def test_standard_input_is_read_line_by_line():
    def lines():
        yield b"photos/b.jpg\n"
        raise AssertionError("the first image must be given out before the second line is read")

    assert next(expand(["-"], lines())) == ("photos/b.jpg", None)
