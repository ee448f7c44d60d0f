"""The server's data: what counts up, what is replaced, what the last hour shows, and which pictures are still there."""

import asyncio
import io
import json

import numpy as np
from PIL import Image

from edgecnn.device.http.board import Board
from edgecnn.device.http.link import EVENT, RESULT, UNSURE, UNSURES, Opening, Shared
from edgecnn.device.http.opening import described
from edgecnn.device.stream.results import rfc3339

NOW = 1_800_000_000.0


def event(kind, after_s=0.0, **fields):
    return json.dumps({"event": kind, "ts": rfc3339(NOW + after_s), "source": "cam", **fields})


def result(dropped, state=None, after_s=0.0, reason=None, **late):
    since = state and rfc3339(NOW + after_s)
    line = {
        "seq": 9, "ts": rfc3339(NOW), "source": "cam", "top": [], "latency_ms": {"infer": 2.5}, "dropped": dropped,
        "state": state, "state_since": since, "reason": reason,
    }  # fmt: skip
    return RESULT + json.dumps([[64, 48], late]).encode() + b"\n" + json.dumps(line).encode()


def make(now, **opening):
    return Board(Opening(port=0, **opening), clock=lambda: now[0])


def test_counts_go_on_after_a_restart_and_dropped_frames_are_a_total():
    opened = event("camera_opened", about="a camera")
    board = make([NOW], decisions={"cat": 5, "dog": 2}, replay=(opened, event("frame_damaged", count=3)))
    for message in (result(7, cat=2, dog=1), result(9, cat=1)):
        board.receive(message)
    for line in (
        event("frame_damaged", count=4),
        event("camera_lost", message="gone"),
        event("camera_back", about="x"),
    ):
        board.receive(EVENT + line.encode())
    document = board.document()
    assert document["counts"] == {
        "frames": 11, "dropped": 9, "damaged": 7, "reconnects": 1, "decisions": {"cat": 8, "dog": 3},
    }  # fmt: skip
    frame = {"seq": 9, "ts": NOW, "width": 64, "height": 48, "inference_ms": 2.5}
    assert document["frame"] == frame and document["source"] == "cam" and document["time"] == NOW


def test_a_board_is_ready_for_ten_seconds_after_a_frame_of_a_camera_that_is_there():
    now = [NOW]
    board = make(now, replay=(event("camera_opened", about="a camera"),))
    assert not board.is_ready()
    board.receive(result(0))
    ready = []
    for now[0] in (NOW, NOW + 9.9, NOW + 10.0):
        ready.append(board.is_ready())
    assert ready == [True, True, False]
    now[0] = NOW
    board.receive(EVENT + event("camera_lost", message="gone").encode())
    assert not board.is_ready() and board.document()["camera_message"] == "gone"
    board.receive(EVENT + event("camera_back", 7.5, about="the same camera").encode())
    document = board.document()
    assert board.is_ready() and (document["camera_since"], document["camera_message"]) == (NOW + 7.5, "the same camera")


def test_the_last_hour_begins_with_the_state_an_hour_ago():
    now = [NOW + 100]
    board = make(now)
    for after_s, state in ((0.0, "cat"), (0.5, "dog"), (1.5, "cat"), (60.0, "owl"), (60.5, "cat")):
        board.receive(EVENT + event("state_changed", after_s, state=state, reason=None).encode())
    assert board.document()["hour"] == [(NOW, "dog"), (NOW + 1.5, "cat")], "changes within a second are one"
    assert (board.document()["state"], board.document()["since"]) == ("cat", NOW + 60.5)
    shown = []
    for now[0] in (NOW + 3600, NOW + 3601, NOW + 3601.5, NOW + 9000):
        shown.append(board.document()["hour"])
    assert shown == [
        [(NOW, "dog"), (NOW + 1.5, "cat")], [(NOW + 1, "dog"), (NOW + 1.5, "cat")], [(NOW + 1.5, "cat")], [(NOW + 5400, "cat")],
    ]  # fmt: skip


def test_changes_a_second_apart_are_two_and_a_camera_that_is_lost_has_no_state():
    board = make([NOW + 9], replay=(event("state_changed", state="cat", reason=None),))
    for after_s, state, reason in ((1.0, "dog", None), (2.5, None, "camera_lost")):
        board.receive(EVENT + event("state_changed", after_s, state=state, reason=reason).encode())
    document = board.document()
    assert document["hour"] == [(NOW, "cat"), (NOW + 1, "dog"), (NOW + 2.5, None)]
    assert (document["state"], document["since"], document["reason"]) == (None, NOW + 2.5, "camera_lost")


def test_the_state_is_that_of_the_frame_before_its_event_arrives_and_a_late_frame_of_a_lost_camera_brings_none():
    board = make([NOW + 9], replay=(event("camera_opened", about="a camera"),))
    shown = []
    for message in (
        result(0, "cat", 1.0),
        result(0, "abstain", 2.0, "below_threshold"),
        EVENT + event("camera_lost", 3.0, message="gone").encode(),
        EVENT + event("state_changed", 3.0, state=None, reason="camera_lost").encode(),
        result(0, "cat", 2.5),
    ):
        board.receive(message)
        document = board.document()
        shown.append((document["state"], document["since"], document["reason"]))
    lost = (None, NOW + 3, "camera_lost")
    assert shown[:2] == [("cat", NOW + 1, None), ("abstain", NOW + 2, "below_threshold")]
    assert shown[3:] == [lost, lost]


def test_a_reader_of_the_lines_that_falls_a_thousand_behind_gets_no_more_and_the_others_do(monkeypatch):
    """Its connection ends, so that it asks again. All lines that wait come together; none, if nothing happens for a while."""

    async def read():
        board = make([NOW])
        slow, quick = board.lines(), board.lines()
        first = [asyncio.create_task(anext(lines)) for lines in (slow, quick)]
        await asyncio.sleep(0)
        lines = [event("frame_damaged", count=count) for count in range(1003)]
        for part in (lines[:2], lines[2:1002]):
            for line in part:
                board.receive(EVENT + line.encode())
            assert await (first.pop() if first[1:] else anext(quick)) == part
        board.receive(EVENT + lines[1002].encode())
        assert await anext(quick) == lines[1002:]
        monkeypatch.setattr("edgecnn.device.http.board.QUIET_S", 0.001)
        assert await anext(quick) == []
        board.receive(EVENT + lines[7].encode())
        assert await anext(quick) == lines[7:8]
        return [await first[0], [line async for line in slow]]

    first, later = asyncio.run(read())
    assert len(first) == 2 and later == []


def test_only_a_listed_unsure_picture_is_shown(tmp_path):
    for name in ("listed.png", "other.png"):
        Image.new("RGB", (8, 6), (200, 0, 0)).save(tmp_path / name)
    board = make([NOW], unsure=str(tmp_path), kept=({"name": "listed.png"}, {"name": "gone.png"}))
    picture = Image.open(io.BytesIO(board.unsure_picture("listed.png")))
    assert (picture.format, picture.size) == ("JPEG", (8, 6))
    assert board.unsure_picture("other.png") is board.unsure_picture("gone.png") is None


def test_an_earlier_runs_unsure_frame_has_its_best_class_and_score(keep_pictures, tmp_path):
    (kept,) = keep_pictures(tmp_path, scenes=1)
    name = str(kept.path.relative_to(tmp_path))
    assert described(tmp_path, name) == {
        "name": name, "ts": 1795860902.5, "guess": "cat", "reason": "below_threshold", "score": 0.5
    }  # fmt: skip
    kept.path.unlink()
    assert described(tmp_path, name) is None


def test_the_newest_unsure_frames_come_first():
    board = make([NOW], kept=tuple({"name": str(number)} for number in range(3)))
    assert [item["name"] for item in board.document()["unsure"]] == ["2", "1", "0"]
    for number in range(3, 15):
        board.receive(UNSURE + json.dumps({"name": str(number)}).encode())
    assert [item["name"] for item in board.document()["unsure"]] == [str(number) for number in range(14, 2, -1)]
    assert len(board.unsure) == UNSURES


def test_the_last_two_frames_are_shared_and_older_ones_are_gone():
    writer = Shared.create()
    reader = Shared(writer.file)
    frames = [np.full((4, 6, 3), level, np.uint8) for level in (1, 2, 3)]
    frames[2][0, 5] = 200
    places = [writer.write(frame, NOW, number) for number, frame in enumerate(frames)]
    assert reader.read(places[0]) is None
    assert [np.array_equal(reader.read(place), frame) for place, frame in zip(places[1:], frames[1:], strict=True)] == [
        True, True,
    ]  # fmt: skip
    large = writer.write(b"j" * 1000, NOW, 3)
    assert reader.read(large) == b"j" * 1000 and reader.read(places[1]) is None
