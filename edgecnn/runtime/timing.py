"""Time calls in order to compare them, interleaved so that other work on the machine affects all of them alike."""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Wall time of `n` calls in milliseconds: the median and the 90th percentile."""

    p50_ms: float
    p90_ms: float
    n: int


def measure_interleaved(calls: Mapping[str, Callable[[], Any]], *, warmup: int, repeats: int) -> dict[str, Timing]:
    """Time several calls, interleaved, in a new random order in each round: what follows a large call pays for the caches that it emptied.

    Args:
        calls: what to call, by name.
        warmup: rounds that are not counted.
        repeats: rounds that are counted, at least 1.

    Returns:
        The timing of each, by name.

    Raises:
        ValueError: if `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, received {repeats}")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, turns in interleave(list(calls), warmup + repeats, block=1):
        start = time.perf_counter()
        calls[name]()
        if turns[0] >= warmup:
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: Timing(percentile(values, 50), percentile(values, 90), repeats) for name, values in times.items()}


def interleave(names: Sequence[str], repeats: int, block: int, seed: int = 0) -> Iterator[tuple[str, range]]:
    """Yield what to call next, in blocks of calls: every name once in each round, in a new random order each time.

    Blocks let caches and threads settle after another call's block; random orders keep a name from always following the same one.

    Args:
        names: what is timed.
        repeats: calls of each in total.
        block: calls of one block; the last round's are fewer where `repeats` is not a multiple.

    Yields:
        (name, the numbers of its calls in this block, from 0).
    """
    drawn = random.Random(seed)
    for start in range(0, repeats, block):
        order = list(names)
        drawn.shuffle(order)
        for name in order:
            yield name, range(start, min(start + block, repeats))


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile of values by linear interpolation between the two nearest.

    Args:
        values: at least one.
        percent: 0 to 100.
    """
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
