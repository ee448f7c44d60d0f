"""Time calls to compare them, interleaved so that other work on the machine affects all of them equally."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Timing(NamedTuple):
    """Wall time of `n` calls in milliseconds: the median and the 90th percentile."""

    p50_ms: float
    p90_ms: float
    n: int


def measure_interleaved(calls: Mapping[str, Callable[[], Any]], *, warmup: int, repeats: int) -> dict[str, Timing]:
    """Time several calls, interleaved, in a new random order each round, because a call that follows a large one finds cold caches."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, received {repeats}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, turns in interleave(list(calls), warmup + repeats, block=1):
        start = time.perf_counter()
        calls[name]()
        if turns[0] >= warmup:
            times[name].append((time.perf_counter() - start) * 1000)
    return {
        name: Timing(float(np.median(values)), float(np.percentile(values, 90)), repeats)
        for name, values in times.items()
    }


def interleave(names: Sequence[str], repeats: int, block: int) -> Iterator[tuple[str, range]]:
    """Yield names with their call numbers, in blocks that let caches settle: each name once per round, in random order."""
    drawn = random.Random(0)
    for start in range(0, repeats, block):
        order = list(names)
        drawn.shuffle(order)
        for name in order:
            yield name, range(start, min(start + block, repeats))
