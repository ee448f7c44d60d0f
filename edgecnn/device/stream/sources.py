"""From SOURCE arguments to images: a file, a folder, a glob, or `-` for a list of paths on standard input; decoded ahead, in order, in
threads.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice, starmap
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

from edgecnn.errors import ImageError
from edgecnn.images import SUFFIXES, left_out, shared_memory

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


TIMED, WORTH_S = 16, 0.002
"""Images to time before threads begin, and the least median: Python runs one thread at a time, so for short work threads cost more."""

Expanded = Iterator[tuple[str, ImageError | None]]


class ImageOutcome(NamedTuple, Generic[T]):
    """The outcome for an image: its result, or the error that prevented one."""

    source: str
    result: T | None
    error: ImageError | None


def for_each_image(
    work: Callable[[str], T],
    sources: Iterable[str],
    stdin: Iterable[bytes],
    note: Callable[[str], object] = bool,
    threads: int = 1,
) -> Generator[ImageOutcome[T], None, None]:
    """Call `work` with each image that SOURCE arguments stand for, as in `expand`. A broken image does not end the loop.

    If the first images take long enough, more than one thread looks ahead. Outcomes and notes keep their order, and images in memory
    together stay within the memory limit.
    """
    hear = note
    images = expand(sources, stdin, lambda text: hear(text))
    seconds: list[float] = []

    def outcome(source: str, error: ImageError | None) -> ImageOutcome[T]:
        result = None
        if error is None:
            try:
                result = work(source)
            except ImageError as caught:
                error = caught
        return ImageOutcome(source, result, error)

    for image in islice(images, TIMED if threads > 1 else 0):
        start = perf_counter()
        found = outcome(*image)
        seconds.append(perf_counter() - start)
        yield found
    if not seconds or sorted(seconds)[len(seconds) // 2] < WORTH_S:
        yield from starmap(outcome, images)
        return
    notes: list[str] = []
    hear = notes.append

    def noted() -> Iterator[tuple[list[str], str | None, ImageError | None]]:
        for source, error in images:
            yield [*notes], source, error
            notes.clear()
        yield notes, None, None

    def shared(item: tuple[list[str], str | None, ImageError | None]) -> tuple[list[str], ImageOutcome[T] | None]:
        before, source, error = item
        with shared_memory():
            return before, None if source is None else outcome(source, error)

    for before, later in in_order(shared, noted(), threads):
        for text in before:
            note(text)
        if later is not None:
            yield later


def expand(sources: Iterable[str], stdin: Iterable[bytes], note: Callable[[str], object] = bool) -> Expanded:
    """Yield (path, None) for each image that files, folders, globs and `-` stand for, sorted, or (source, error) if no image exists."""
    for source in sources:
        if source == "-":
            for line in stdin:
                if path := os.fsdecode(line.rstrip(b"\r\n")):
                    yield from _expand_one(path, note)
        else:
            yield from _expand_one(source, note)


def _expand_one(source: str, note: Callable[[str], object]) -> Expanded:
    if os.path.isdir(source):
        yield from _folder(source, note)
        return
    if os.path.lexists(source):
        yield source, None
        return
    import glob  # here, since a plain file name does not need it and starts faster

    if glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        for match in matches:
            yield from _folder(match, note) if os.path.isdir(match) else [(match, None)]
        if not matches:
            yield source, ImageError("the pattern matches nothing")
    elif "." in source or "/" in source:
        yield source, ImageError("no such file or folder")
    else:  # an image has a suffix; somebody who types 0 or webcam means a camera
        yield source, ImageError("no such file or folder. For a camera, use --camera or a device such as /dev/video0.")


def _leads_back(source: str, folder: str, name: str) -> bool:
    """Return whether a folder's entry is a link to a folder on its path from `source` down, or to one that contains it."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    target, above = os.path.realpath(path), source
    for part in folder[len(source) :].split(os.sep):
        above = os.path.join(above, part)
        if os.path.commonpath((target, os.path.realpath(above))) == target:
            return True
    return False


def _folder(source: str, note: Callable[[str], object]) -> Expanded:
    unreadable: list[OSError] = []
    others: list[str] = []
    any_image = False
    for folder, folders, names in os.walk(source, onerror=unreadable.append, followlinks=True):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not _leads_back(source, folder, name)
        )
        for name in sorted(name for name in names if not name.startswith(".")):
            if name.lower().endswith(SUFFIXES):
                any_image = True
                yield os.path.join(folder, name), None
            else:
                others.append(name)
    if others:
        note(f"{source}: {left_out(others)}")
    for error in unreadable:
        yield os.fsdecode(error.filename or source), ImageError(f"cannot be read: {error.strerror or error}")
    if not any_image and not unreadable:
        yield source, ImageError(f"no images in this folder; expected files that end in {' '.join(SUFFIXES)}")
