"""The files of a running board: metrics for node_exporter, and the drift counts."""

import asyncio
import sys
import time
from pathlib import Path

from edgecnn.device.http.board import Board, seconds
from edgecnn.device.http.drift import Drift
from edgecnn.device.http.link import Opening
from edgecnn.device.http.metrics import Metrics
from edgecnn.device.stream.events import Seldom
from edgecnn.errors import OutputError
from edgecnn.files import write_atomic

METRICS_EVERY_S, DRIFT_EVERY_S = 15.0, 900.0

COMPLAIN_EVERY_S = 3600.0

Files = list[tuple[Path, bytes | str]]


class Upkeep:
    """Counts a board's results and decides which files are due."""

    def __init__(self, board: Board, opening: Opening) -> None:
        """Start counting; without a camera, `drift` is None."""
        self.metrics = Metrics(board)
        self.drift: Drift | None = None
        if opening.drift is not None:
            known = opening.drift
            file, labels = Path(known["file"]), opening.model["labels"]
            drift = self.drift = Drift(labels, known["key"], file, known["validation"], known["strangers"])
            board.drift = drift.document
            board.on_result.append(lambda line, late: drift.take(line, seconds(line["ts"])))
        self._file = None if opening.metrics_file is None else Path(opening.metrics_file)
        self._metrics, self._drift = Seldom(METRICS_EVERY_S), Seldom(DRIFT_EVERY_S)
        self._drift.count()
        self._complaints = Seldom(COMPLAIN_EVERY_S)

    def due(self, *, end: bool = False) -> Files:
        """Return the files to write now, with their content; at the end, all files."""
        files: Files = []
        if self._file is not None and (self._metrics.count() or end):
            files.append((self._file, self.metrics.text()))
        if self.drift is not None and self.drift.file is not None and (self._drift.count() or end):
            files.append((self.drift.file, self.drift.dumped()))
        return files

    def write(self, files: Files) -> str | None:
        """Write files, which may be slow; return the error message, if any, at most once per COMPLAIN_EVERY_S."""
        problem = None
        for path, content in files:
            try:
                write_atomic(path, content)
            except OutputError as error:
                problem = str(error)
        return problem if problem and self._complaints.count() else None


async def keep(upkeep: Upkeep) -> None:
    """Write the files that are due, in a thread, forever; problems go to standard error."""
    while True:
        await asyncio.sleep(1.0)
        if files := upkeep.due():
            say(await asyncio.to_thread(upkeep.write, files))


def say(problem: str | None) -> None:
    if problem is not None:
        print(f"{time.strftime('%FT%TZ', time.gmtime())} {problem}", file=sys.stderr, flush=True)
