"""The times of the random sample: which are due, which are missed, and what is counted."""

import json

from edgecnn.device.keep.sample import FILE, SCHEMA, Counts, Sample, read_counts

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
    (tmp_path / FILE).write_text(json.dumps({"schema": SCHEMA, "days": table}))
    Sample(tmp_path, 1, lambda: 0.5).is_due(DAY)
    left = json.loads((tmp_path / FILE).read_text())["days"]
    assert [day["kept"] for day in left.values()] == [*range(2, 402), 0] and len(left) == 401


def test_no_pictures_a_day_plans_nothing(tmp_path):
    assert not Sample(tmp_path, 0).is_due(DAY) and not any(tmp_path.iterdir())
    assert read_counts(tmp_path) == Counts(0, 0)
