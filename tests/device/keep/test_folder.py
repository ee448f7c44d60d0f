"""Kept pictures as files: written completely and privately, and read back; other files are skipped."""

import json
import os
from pathlib import Path

import jsonschema
import pytest

import edgecnn.device.keep
from edgecnn.device.keep.folder import (
    Facts,
    KeptModel,
    KeptPicture,
    KeptScore,
    kept_pictures,
    name_of,
    write_kept,
)
from edgecnn.errors import ImageError
from edgecnn.files import sha256

JPEG = b"\xff\xd8\xff a picture"
SCHEMA = json.loads(Path(edgecnn.device.keep.__file__).with_name("kept.schema.json").read_text())
TS = 1795860902.123456  # 2026-11-28T10:15:02.123456Z


def facts(**changed):
    return Facts(
        **{
            "ts": TS,
            "why": "unsure",
            "source": "/dev/video0",
            "seq": 417,
            "model": KeptModel(name="door", sha256="ab" * 32),
            "scores": (KeptScore(label="open", score=0.6), KeptScore(label="shut", score=0.4)),
            "label": "open",
            "reason": None,
            "region": None,
            "picture": KeptPicture(sha256=sha256(JPEG), width=640, height=480),
            **changed,
        }
    )


def test_a_picture_is_written_for_its_owner_and_read_back(tmp_path):
    folder = tmp_path / "kept"
    kept = write_kept(folder, facts(label=None, reason="below_threshold", region=(0.5, 0.0, 0.5, 1.0)), JPEG)
    assert kept.path == folder / "2026-11-28/20261128T101502.123456Z-417.jpg"
    assert kept_pictures(folder) == [kept] and kept.read() == JPEG and kept.guess == "open"
    jsonschema.validate(json.loads(kept.path.with_suffix(".json").read_text()), SCHEMA)
    assert [path.stat().st_mode & 0o777 for path in (folder, kept.path.parent)] == [0o700, 0o700]
    assert {path.stat().st_mode & 0o777 for path in kept.path.parent.iterdir()} == {0o600}


def test_other_files_are_not_kept_pictures(tmp_path):
    """A folder fetched from a board may hold anything."""
    good = write_kept(tmp_path, facts(scores=(), label=None, reason="no_score"), JPEG)
    text = good.path.with_suffix(".json").read_text()

    def place(seq, content=text, jpeg=True):
        path = tmp_path / f"{name_of(TS, seq)}.json"
        path.write_text(content)
        if jpeg:
            path.with_suffix(".jpg").write_bytes(JPEG)
        return path

    newer = place(500, text.replace('"seq": 417', '"seq": 500, "mood": "grey"'))
    place(1, jpeg=False)
    broken = ["", "[]", "7", "[" * 10**5, text[:-9], text.replace("unsure", "bored"), " " * 2**20 + text]
    broken += [
        text.replace('"region": null', f'"region": {region}') for region in ([0, 0, 2, 1], [0, 0, 1], "[NaN, 0, 1, 1]")
    ]
    broken += [text.replace(f'"ts": {TS}', f'"ts": {ts}') for ts in ("1e300", "-1", "NaN", "true")]
    assert text not in broken
    for seq, content in enumerate(broken, 2):
        place(seq, content)
    place(40, jpeg=False).with_suffix(".jpg").symlink_to("/etc/hostname")
    linked = place(41)
    linked.unlink()
    linked.symlink_to(good.path.with_suffix(".json"))
    os.mkfifo(tmp_path / f"{name_of(TS, 42)}.json")
    (tmp_path / f"{name_of(TS, 42)}.jpg").write_bytes(JPEG)
    (tmp_path / "2026-11-29").symlink_to("2026-11-28")
    (tmp_path / "2026-11-28" / "photo.json").write_text(text)
    (tmp_path / "2026-11-30").write_text("a file")
    found = kept_pictures(tmp_path)
    assert [kept.path for kept in found] == [good.path, newer.with_suffix(".jpg")], "a later version may add fields"
    assert kept_pictures(tmp_path / "nothing") == []
    good.path.write_bytes(JPEG + b"!")
    with pytest.raises(ImageError, match="has changed since it was kept"):
        found[0].read()
