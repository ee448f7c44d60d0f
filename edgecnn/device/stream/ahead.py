"""Work on several items at the same time, in threads, and yield the results in order."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 8  # items for each thread that may be begun before the oldest one is yielded


class _Job(Generic[T]):
    """An item; `done` is locked until the thread has its result, or the exception."""

    __slots__ = ("done", "error", "item", "result")

    def __init__(self, item: T) -> None:
        self.item = item
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield `work(item)` for each item, in order; an exception of `work` comes in its turn.

    The caller's thread takes the items. When the iterator is closed, items that wait are left out and the threads end.
    """
    from queue import SimpleQueue

    jobs: SimpleQueue[_Job[T] | None] = SimpleQueue()
    waiting: deque[_Job[T]] = deque()
    closed = threading.Event()

    def run() -> None:
        while (job := jobs.get()) is not None:
            try:
                if not closed.is_set():
                    job.result = work(job.item)
            except BaseException as error:  # noqa: BLE001 - raised where its result would be
                job.error = error
            job.done.release()

    def oldest() -> R:
        job = waiting.popleft()
        job.done.acquire()
        if job.error is not None:
            raise job.error
        result: R = job.result
        return result

    workers = [threading.Thread(target=run, name="ahead", daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        for item in items:
            waiting.append(job := _Job(item))
            jobs.put(job)
            if len(waiting) >= AHEAD * threads:
                yield oldest()
        while waiting:
            yield oldest()
    finally:
        closed.set()
        for _ in workers:
            jobs.put(None)
        for worker in workers:
            worker.join()
