"""Several items at the same time, with results in order."""

import threading
import time

import pytest

from edgecnn.device.stream.ahead import AHEAD, in_order

LONG = 20.0


def running():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_items_are_processed_at_the_same_time_and_yielded_in_order():
    """The first ends last: each of four waits for the one behind it."""
    ended = [threading.Event() for _ in range(4)]

    def work(number):
        assert number == 3 or ended[number + 1].wait(LONG)
        ended[number].set()
        return -number

    assert list(in_order(work, range(4), 4)) == [0, -1, -2, -3]
    assert not running()


def test_an_exception_comes_in_its_turn_and_ends_the_threads():
    def work(number):
        if number >= 5:
            raise ValueError(f"number {number}")
        time.sleep(0.02 * (5 - number))
        return number

    seen = []
    with pytest.raises(ValueError, match="number 5"):
        seen.extend(in_order(work, range(100), 3))
    results = in_order(work, range(100), 3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    assert not running()


def test_no_more_than_a_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(str, items(), 2)
    for count in range(1, 100):
        assert next(results) == str(count - 1)
        assert len(taken) == count + 2 * AHEAD - 1
    assert list(results)[-1] == "999"


def test_items_that_wait_when_it_is_closed_are_left_out():
    begun, go_on = [], threading.Event()

    def work(number):
        begun.append(number)
        if number:
            assert go_on.wait(LONG)
        return number

    results = in_order(work, range(100), 2)
    assert next(results) == 0
    while len(begun) < 3:
        time.sleep(0.001)
    threading.Timer(0.05, go_on.set).start()
    results.close()
    assert begun == [0, 1, 2] and not running(), "those that had begun have ended"
