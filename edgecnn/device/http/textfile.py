"""Metrics in a file for node_exporter, for a board with no open port: a Consumer that never waits for the disk."""

import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from edgecnn.device.http.board import Board
from edgecnn.device.http.link import EVENT, RESULT, Opening, dumps
from edgecnn.device.http.machine import look
from edgecnn.device.http.upkeep import Files, Upkeep
from edgecnn.device.stream.events import Event, ProblemEvent
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.results import FrameResult, event_line, result_line
from edgecnn.device.system import System


class MetricsFile(Consumer):
    """Keeps the stream's Board in this process and writes its metrics."""

    def __init__(self, opening: Opening, model: tuple[str, str], region: Any) -> None:
        """`model` and `region` are as in `result_line`."""
        self._board = Board(opening)
        self._upkeep = Upkeep(self._board, opening)
        self._model, self._region = model, region
        self._system = System(packages={})
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._writing: Future[str | None] | None = None
        self._source = ""

    def take(self, item: Item) -> Iterable[Event]:
        self._source = item.source
        if isinstance(item, FrameResult):
            head = dumps([[0, 0], {item.decision: 1}])  # nobody sees the frame's size here
            line = result_line(item, self._model, self._region)
            self._board.receive(b"%b%b\n%b" % (RESULT, head, line.encode()))
        else:
            self._board.receive(EVENT + event_line(item).encode())
        return ()

    def poll(self) -> Iterable[Event]:
        """Start writing the files that are due, unless a write is still running; report a write that failed."""
        if self._writing is not None:
            if not self._writing.done():
                return ()
            problem, self._writing = self._writing.result(), None
            if problem is not None:
                return [ProblemEvent(ts=time.time(), source=self._source, about="metrics", message=problem)]
        if files := self._upkeep.due():
            self._writing = self._thread.submit(self._write, files)
        return ()

    def finish(self, wait_s: float) -> Iterable[Event]:
        self._thread.submit(self._upkeep.write, self._upkeep.due(end=True))
        self._thread.shutdown(wait=wait_s > 0)
        return ()

    def _write(self, files: Files) -> str | None:
        problem = self._upkeep.write(files)
        self._board.machine.update(look(self._system, (os.getpid(),)))  # for the next write
        return problem
