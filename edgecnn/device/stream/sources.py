"""From SOURCE arguments to images: a file, a folder, a glob, or `-` for a list of paths on standard input; each processed, in order, on
one processor or several.
"""

import math
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

from edgecnn.errors import EngineError, ImageError, ImageTooLargeError
from edgecnn.images import MEMORY_LIMIT, SUFFIXES, left_out, limit
from edgecnn.runtime.child import end_with_parent

T = TypeVar("T")

WORTH_S, CHUNK_S, CHUNK = 0.1, 0.05, 32
"""Forks begin if the first images took WORTH_S together. Each is given work for about CHUNK_S, at most CHUNK images, at a time."""

AHEAD = 4
"""Chunks for each process that may be begun before the oldest one is yielded."""

Expanded = Iterator[tuple[str, ImageError | None]]


Image = tuple[list[str], str, ImageError | None]
"""The notes to show before it, its source, and the error if no image exists."""


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
    processes: int = 1,
) -> Generator[ImageOutcome[T], None, None]:
    """Call `work` with each image that SOURCE arguments stand for, as in `expand`. A broken image does not end the loop.

    If the first images take long enough, forks of this process work on the others; `work` must allow that, and its results are pickled.
    Outcomes and notes keep their order. EngineError if a fork ends by itself.
    """
    images = expand(sources, stdin, lambda text: notes.append(text))
    notes: list[str] = []
    start = perf_counter()

    def noted() -> Iterator[Image]:
        for source, error in images:
            yield [*notes], source, error
            notes.clear()

    waiting = noted()
    for count, (before, source, error) in enumerate(waiting, 1):
        for text in before:
            note(text)
        yield outcome(work, source, error)
        if processes > 1 and (seconds := perf_counter() - start) > WORTH_S:
            size = min(max(int(CHUNK_S * count / seconds), 1), CHUNK)
            yield from in_processes(work, waiting, note, processes, size)
            break
    for text in notes:
        note(text)


def outcome(work: Callable[[str], T], source: str, error: ImageError | None) -> ImageOutcome[T]:
    result = None
    if error is None:
        try:
            result = work(source)
        except ImageError as caught:
            error = caught
    return ImageOutcome(source, result, error)


def in_processes(
    work: Callable[[str], T], images: Iterator[Image], note: Callable[[str], object], processes: int, size: int
) -> Iterator[ImageOutcome[T]]:
    """Yield each image's outcome, in order, from forks that are given `size` images at a time.

    Each fork may decode its part of the memory limit. What needs more is done here, while the forks wait.
    """
    # imported here, since one image does not need them and starts faster
    from concurrent.futures import Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    allowed = limit()[0] / processes
    pool = ProcessPoolExecutor(processes, get_context("fork"), initializer=_begin, initargs=(work, allowed))
    waiting: deque[tuple[list[Image], Future[list[ImageOutcome[T]]]]] = deque()
    try:
        while True:
            while len(waiting) < AHEAD * processes and (chunk := list(islice(images, size))):
                waiting.append((chunk, pool.submit(_each, [image[1:] for image in chunk])))
            if not waiting:
                return
            outcomes = waiting[0][1].result()
            chunk, _ = waiting.popleft()
            for (before, source, _), found in zip(chunk, outcomes, strict=True):
                for text in before:
                    note(text)
                if isinstance(found.error, ImageTooLargeError):
                    wait([future for _, future in waiting])
                    found = outcome(work, source, None)
                yield found
    except BrokenProcessPool:
        raise EngineError(
            f"a process that worked on {waiting[0][0][0][1]} or an image after it ended by itself: the engine crashed, or the "
            "memory was exhausted. Try these images one by one."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[str], Any]


def _begin(work: Callable[[str], Any], allowed: float) -> None:
    """Prepare a fork. Ctrl-C is left to its parent, which then ends it."""
    global _work
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work = work
    if allowed < math.inf:
        os.environ[MEMORY_LIMIT] = str(int(allowed) >> 20)


def _each(images: Sequence[tuple[str, ImageError | None]]) -> list[ImageOutcome[Any]]:
    return [outcome(_work, source, error) for source, error in images]


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


def _folder(source: str, note: Callable[[str], object]) -> Expanded:
    unreadable: list[OSError] = []
    others: list[str] = []
    any_image = False
    seen = {os.path.realpath(source)}  # a link may lead back
    for folder, folders, names in os.walk(source, onerror=unreadable.append, followlinks=True):
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, path in real.items() if path not in seen)
        seen.update(real.values())
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
