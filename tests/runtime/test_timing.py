"""Interleaved timing."""

import time

import pytest

from edgecnn.runtime.timing import interleave, measure_interleaved


def test_interleaved():
    seen = []
    timings = measure_interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, warmup=2, repeats=3)
    rounds = ["".join(seen[start : start + 2]) for start in range(0, 10, 2)]
    assert set(rounds) == {"ab", "ba"} and len(rounds) == 5
    assert timings["a"].n == 3
    assert 0 <= timings["a"].p50_ms <= timings["a"].p90_ms


def test_which_runs_count(monkeypatch):
    """The first call, of 99 ms, is the warm-up. The others take 10 to 1 ms."""
    durations = iter([0.099, *(number / 1000 for number in range(10, 0, -1))])
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call():
        now[0] += next(durations)

    timing = measure_interleaved({"a": call}, warmup=1, repeats=10)["a"]
    assert (timing.p50_ms, timing.p90_ms, timing.n) == (pytest.approx(5.5), pytest.approx(9.1), 10)


def test_no_repetitions():
    with pytest.raises(ValueError, match="received 0"):
        measure_interleaved({}, warmup=1, repeats=0)


def test_each_block_has_a_new_random_order():
    turns = list(interleave(["a", "b", "c"], 25, 10))
    assert [(len(calls), calls[0]) for _, calls in turns] == [(10, 0)] * 3 + [(10, 10)] * 3 + [(5, 20)] * 3
    rounds = [[name for name, _ in turns[start : start + 3]] for start in (0, 3, 6)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert turns == list(interleave(["a", "b", "c"], 25, 10)), "the same seed draws the same orders"
    names = [name for name, _ in interleave(["a", "b", "c"], 50, 1)]
    many = {tuple(names[start : start + 3]) for start in range(0, 150, 3)}
    assert len(many) == 6, "every order comes up"
