"""A folder of kept pictures, its random sample, and the estimate from it."""

import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from scipy.stats import t

import edgecnn.device.keep
from edgecnn.boards import SAMPLE_FILE
from edgecnn.device.keep.folder import (
    SAMPLE_SCHEMA,
    Counts,
    Facts,
    Kept,
    KeptModel,
    KeptPicture,
    KeptScore,
    Sample,
    append,
    documents,
    field_accuracy,
    kept_pictures,
    name_of,
    read_counts,
    student,
    write_files,
)
from edgecnn.errors import ImageError, OutputError
from edgecnn.evaluate.statistics import wilson
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


def write_kept(folder, facts, data):
    name = name_of(facts.ts, facts.seq)
    write_files(folder, name, documents(facts, data))
    return Kept(path=folder / f"{name}.jpg", **vars(facts))


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


def answers(right, wrong, skipped=0, hours=1):
    """Answers for the random sample, spread evenly over a number of hours."""
    all_ = np.random.default_rng(0).permutation([True] * right + [False] * wrong + [None] * skipped).tolist()
    return [(3600 * (index % hours) + index, right) for index, right in enumerate(all_)]


def test_the_line_of_text():
    found = field_accuracy(answers(178, 34, 9, hours=221), planned=230, kept=221)
    assert (found.planned, found.kept, found.skipped, found.hours) == (230, 221, 9, 212)
    assert found.bounds == pytest.approx((178 / 221, 187 / 221))
    assert found.text == (
        "in the field 84.0 % right: 212 random pictures from 212 hours, 95 % interval 77 to 89 %; "
        "with the 9 skipped, between 80.5 and 84.6 %"
    )
    assert "skipped" not in field_accuracy(answers(9, 1, hours=10), 10, 10).text
    assert field_accuracy([(0.0, None)], 1, 1) is None, "skipped"


def test_independent_answers_have_almost_wilsons_interval():
    found = field_accuracy([(3600.0 * i, i % 10 > 0) for i in range(400)], 400, 400)
    low, high = wilson(360, 400)
    assert found.hours == 400 and (found.low, found.high) == pytest.approx((low, high), abs=5e-3)


def test_ten_pictures_of_one_scene_are_hardly_more_than_one():
    """40 hours, each with a scene that the model always classifies correctly, or always wrongly."""
    by_scene = [(3600.0 * hour + i, hour % 4 > 0) for hour in range(40) for i in range(10)]
    found = field_accuracy(by_scene, 400, 400)
    low, high = wilson(30, 40)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    one_hour = field_accuracy(by_scene[:10], 10, 10)
    assert one_hour.low == pytest.approx(0, abs=0.01), "one scene shows next to nothing"


def test_a_scene_that_lasts_a_day_is_hardly_more_than_one_answer():
    """Nine days from five in the morning, six of them right and three wrong at every hour: 8 independent answers, by hand."""
    start = 1_800_000_000 // 86400 * 86400 + 5 * 3600
    days = [day in (1, 4, 5) for day in range(9)]
    found = field_accuracy([(start + 3600.0 * hour, not days[hour // 24]) for hour in range(216)], 216, 216)
    p, n, z = 2 / 3, 8, t.ppf(0.975, 8)
    ends = np.roots([1 + z**2 / n, -2 * p - z**2 / n, p**2])  # (p - x)^2 = z^2 x (1 - x) / n
    assert (found.low, found.high) == pytest.approx(sorted(ends), abs=3e-3)


def test_half_a_week_has_seven_blocks_and_the_newest_answer_begins_no_other():
    """Seven scenes of 12 hours, with an answer per hour; the last scene has 13 answers, the last of them 84 hours after the first."""
    sizes, right = np.array([12] * 6 + [13]), np.array([1, 1, 0, 1, 1, 0, 1])
    found = field_accuracy(
        [(1_800_000_000.0 + 3600 * hour, bool(right[min(hour // 12, 6)])) for hour in range(85)], 85, 85
    )
    p = 61 / 85
    effect = 7 / 6 * np.sum((sizes * (right - p)) ** 2) / (85 * p * (1 - p))
    n, z = 85 / effect, t.ppf(0.975, 6)
    ends = np.roots([1 + z**2 / n, -2 * p - z**2 / n, p**2])
    assert found.accuracy == pytest.approx(p) and (found.low, found.high) == pytest.approx(sorted(ends), abs=3e-3)


def test_students_percentile():
    for freedom in (0, 1, 2, 3, 5, 10, 30, 200):
        assert student(freedom) == pytest.approx(t.ppf(0.975, freedom) if freedom else 1.96, rel=0.01), freedom


DAY = 1_800_000_000 // 86400 * 86400


def test_a_time_is_due_for_a_minute_once_and_counted_after_a_restart(tmp_path):
    draws = iter([0.5, 0.25, 0.75, 0.125, 0.625, 0.375])  # three times of the first day, then three of the second
    sample = Sample(tmp_path, 3, lambda: next(draws))
    six, noon, evening = DAY + 21600, DAY + 43200, DAY + 64800
    assert [sample.is_due(ts) for ts in (DAY, six - 1, six + 60)] == [False, False, True]
    sample.take()
    assert not sample.is_due(six + 61), "each time is used once"
    assert not sample.is_due(noon + 60.5), "too late"
    assert sample.is_due(evening)
    sample.take()
    assert read_counts(tmp_path) == Counts(planned=3, kept=2)
    again = Sample(tmp_path, 3, lambda: next(draws))
    assert not again.is_due(evening + 1)
    assert [again.is_due(DAY + 86400 + ts) for ts in (0, 10799, 10800)] == [False, False, True]
    again.take()
    again.fail()
    assert read_counts(tmp_path) == Counts(4, 3), "the failure is written with the next count"
    assert again.is_due(DAY + 86400 + 32400)
    again.take()
    assert read_counts(tmp_path) == Counts(5, 3)


def test_the_first_day_begins_now_and_a_later_one_counts_what_it_missed(tmp_path):
    draws = iter([0.25, 0.5, 0.75, 0.125, 0.375, 0.625])
    sample = Sample(tmp_path, 3, lambda: next(draws))
    assert not sample.is_due(DAY + 43201)
    assert read_counts(tmp_path) == Counts(0, 0), "no time has passed yet"
    assert not sample.is_due(DAY + 86400 + 32500), "two times of the second day have passed"
    assert sample.is_due(DAY + 86400 + 54000)
    sample.take()
    assert read_counts(tmp_path) == Counts(planned=4, kept=1)


def test_the_newest_400_days_are_remembered(tmp_path):
    days = {f"{2000 + number // 12}-{number % 12 + 1:02}-01": number for number in range(402)}
    table = {day: {"kept": number, "missed": 1, "due": []} for day, number in days.items()}
    (tmp_path / SAMPLE_FILE).write_text(json.dumps({"schema": SAMPLE_SCHEMA, "days": table}))
    Sample(tmp_path, 1, lambda: 0.5).is_due(DAY)
    left = json.loads((tmp_path / SAMPLE_FILE).read_text())["days"]
    assert [day["kept"] for day in left.values()] == [*range(2, 402), 0] and len(left) == 401


def test_no_pictures_a_day_plans_nothing(tmp_path):
    assert not Sample(tmp_path, 0).is_due(DAY) and not any(tmp_path.iterdir())
    assert read_counts(tmp_path) == Counts(0, 0)


def test_lines_that_do_not_fit_leave_the_file_as_it_was(tmp_path, file_limit):
    path = tmp_path / "index.csv"
    append(path, "a" * 99 + "\n")
    before = path.read_bytes()
    with pytest.raises(OutputError), file_limit(150):
        append(path, "".join(f"{letter * 39}\n" for letter in "bcd"))
    assert path.read_bytes() == before
