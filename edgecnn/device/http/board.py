"""Everything the server knows about the board and its camera, and what it makes of that: metrics, and the files of a running board.

Only messages from the camera loop change the state of a stream. Metrics follow Prometheus's conventions: the board's whole state, and
histograms of the results that arrive here. For a board with no open port, a Consumer writes them to a file for node_exporter.
"""

import asyncio
import contextlib
import itertools
import json
import os
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from edgecnn import __version__
from edgecnn.bundle.evidence import BOUNDS
from edgecnn.device.http.drift import Drift
from edgecnn.device.http.link import EVENT, PICTURE, RESULT, UNSURE, UNSURES, Opening, Picture, dumps
from edgecnn.device.stream.events import Event, FrameResult, ProblemEvent, RateLimiter, event_line, result_line
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.pictures import as_jpeg
from edgecnn.device.system import BITS, System, temperature, throttle_words, throttled
from edgecnn.device.update import last_check
from edgecnn.errors import ImageError, OutputError
from edgecnn.files import write_atomic
from edgecnn.images import read_file

EVERY_S = 5.0


def machine_state(system: System, processes: tuple[int, ...]) -> dict[str, Any]:
    """Return `board` of /v1/state, with the memory of these processes, the uptime of the last one, and the last check for a release."""
    bits, check = throttled(system), last_check()
    pages = 0
    for process in processes:
        with contextlib.suppress(ValueError, IndexError):
            pages += int(system.read(f"/proc/{process}/statm").split()[1])
    return {
        "temperature_c": temperature(system),
        "throttled": throttle_words(bits)[0] if bits else [],
        "memory_mib": round(pages * resource.getpagesize() / 2**20, 1) if pages else None,
        "uptime_s": process_age_s(system, processes[-1]),
        "update": check and {name: check[name] for name in ("reason", "last_good", "age_s")},
    }


def process_age_s(system: System, process: int) -> float | None:
    """Return how long a process has run (proc_pid_stat(5), field 22), in seconds."""
    try:
        ticks = int(system.read(f"/proc/{process}/stat").rpartition(")")[2].split()[19])
        return float(system.read("/proc/uptime").split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError):
        return None


async def watch_machine(board: "Board") -> None:
    """Keep the machine's state up to date, in a thread, because reading it may mean running a program."""
    system = System(packages={})
    processes = (os.getpid(), *([os.getppid()] if board.camera != "none" else []))  # the camera loop is the parent
    while True:
        board.machine.update(await asyncio.to_thread(machine_state, system, processes))
        await asyncio.sleep(EVERY_S)


SCHEMA = "edgecnn.state/1"

HOUR_S = 3600.0

SAME_S = 1.0  # state changes closer together than this count as one in the strip of the last hour

FRESH_S = 10.0  # a frame classified longer ago than this is not fresh

QUIET_S = 15.0

LINES = 1000  # waiting lines at which a reader counts as too slow


class Board:
    """The data behind /v1/state, the page and the metrics. Listeners are called for each picture and each result."""

    def __init__(self, opening: Opening, clock: Callable[[], float] = time.time) -> None:
        self.opening = opening
        self.model = opening.model
        self.camera = "opening" if opening.camera else "none"
        self.camera_since: float | None = None
        self.camera_message: str | None = None
        self.source: str | None = None
        self.frame: dict[str, Any] | None = None
        self.result: dict[str, Any] | None = None
        self.state: str | None = None
        self.since: float | None = None
        self.reason: str | None = None
        self.frames = sum(opening.decisions.values())
        self.dropped = self.damaged = self.reconnects = 0
        self.decisions: Counter[str] = Counter(opening.decisions)
        self.hour: deque[tuple[float, str | None]] = deque(maxlen=int(HOUR_S))
        self.unsure: deque[dict[str, Any]] = deque(reversed(opening.kept), UNSURES)
        self.machine: dict[str, Any] = dict.fromkeys(("temperature_c", "memory_mib", "uptime_s", "update"))
        self.machine["throttled"] = []
        self.drift: Callable[[], dict[str, Any] | None] = lambda: None
        self.on_picture: Callable[[Picture], object] = bool
        self.on_result: list[Callable[[dict[str, Any]], object]] = []
        self._clock = clock
        self._readers: set[asyncio.Queue[str]] = set()
        for line in opening.replay:
            self._event(json.loads(line))

    def receive(self, message: bytes) -> None:
        """Handle a message from the camera loop, in the format of `edgecnn.device.http.link`."""
        kind, rest = message[:1], message[1:]
        if kind == RESULT:
            head, _, line = rest.partition(b"\n")
            size, late = json.loads(head)
            self._result(json.loads(line), size, late)
            self._publish(line.decode())
        elif kind == EVENT:
            self._event(json.loads(rest))
            self._publish(rest.decode())
        elif kind == PICTURE:
            self.on_picture(Picture.parse(rest))
        elif kind == UNSURE:
            self.unsure.appendleft(json.loads(rest))

    def is_ready(self) -> bool:
        """Return whether, with a camera, a frame was classified within FRESH_S."""
        if self.camera == "none":
            return True
        return self.camera == "open" and self.frame is not None and self._clock() - self.frame["ts"] < FRESH_S

    def document(self) -> dict[str, Any]:
        """Return the document of /v1/state."""
        now = self._clock()
        top = self.result["top"] if self.result else []
        return {
            "schema": SCHEMA, "time": now, "source": self.source, "camera": self.camera, "camera_since": self.camera_since,
            "camera_message": self.camera_message, "frame": self.frame, "state": self.state, "since": self.since, "reason": self.reason,
            "top": [{"label": item["label"], "score": item["score"]} for item in top],
            "region": self.opening.region, "hour": self._hour(now),
            "counts": {
                "frames": self.frames, "dropped": self.dropped, "damaged": self.damaged, "reconnects": self.reconnects,
                "decisions": dict(self.decisions),
            },
            "model": self.model, "board": self.machine, "unsure": list(self.unsure), "drift": self.drift(),
        }  # fmt: skip

    def unsure_picture(self, name: str) -> bytes | None:
        """Return the JPEG of a listed unsure frame; None if it is not listed, or is gone."""
        if self.opening.unsure is None or all(item["name"] != name for item in self.unsure):
            return None
        try:
            return as_jpeg(read_file(os.path.join(self.opening.unsure, name)))
        except ImageError:
            return None

    async def lines(self) -> AsyncIterator[list[str]]:
        """Yield the new lines, all that wait, or none after QUIET_S without one; end if the reader falls LINES behind."""
        queue: asyncio.Queue[str] = asyncio.Queue(LINES)
        self._readers.add(queue)
        try:
            while queue in self._readers:
                lines = []
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(QUIET_S):
                        lines.append(await queue.get())
                while not queue.empty():
                    lines.append(queue.get_nowait())
                yield lines
        finally:
            self._readers.discard(queue)

    def _publish(self, line: str) -> None:
        for queue in [queue for queue in self._readers if queue.full()]:
            self._readers.discard(queue)
        for queue in self._readers:
            queue.put_nowait(line)

    def _result(self, line: dict[str, Any], size: list[int], late: dict[str, int]) -> None:
        self.result = line
        self.source = line["source"]
        self.decisions.update(late)
        self.frames += sum(late.values())
        self.dropped = line["dropped"]
        width, height = size
        self.frame = {"seq": line["seq"], "ts": seconds(line["ts"]), "width": width, "height": height}
        self.frame["inference_ms"] = line["latency_ms"]["infer"]
        if self.camera == "open" and line["state"] != self.state:  # the event of the change comes after its frame
            self.state, self.reason = line["state"], line["reason"]
            self.since = line["state_since"] and seconds(line["state_since"])
        for listener in self.on_result:
            listener(line)

    def _event(self, line: dict[str, Any]) -> None:
        ts = seconds(line["ts"])
        match line["event"]:
            case "camera_opened" | "camera_back":
                self._camera("open", ts, line["about"])
                self.reconnects += line["event"] == "camera_back"
            case "camera_lost":
                self._camera("lost", ts, line["message"])
            case "frame_damaged":
                self.damaged += line["count"]
            case "state_changed":
                self.state, self.since, self.reason = line["state"], ts, line["reason"]
                self._changed(ts, line["state"])
        self.source = line["source"] or self.source

    def _camera(self, state: str, ts: float, message: str) -> None:
        self.camera, self.camera_since, self.camera_message = state, ts, message

    def _changed(self, ts: float, state: str | None) -> None:
        while self.hour and self.hour[-1][0] > ts:  # the clock was set back
            self.hour.pop()
        if self.hour and ts - self.hour[-1][0] < SAME_S:
            ts = self.hour.pop()[0]
        if not self.hour or self.hour[-1][1] != state:
            self.hour.append((ts, state))

    def _hour(self, now: float) -> list[tuple[float, str | None]]:
        """Return the changes of the last hour; the first is the state an hour ago, if there was one."""
        while len(self.hour) > 1 and self.hour[1][0] <= now - HOUR_S:
            self.hour.popleft()
        changes = list(self.hour)
        if changes and changes[0][0] < now - HOUR_S:
            changes[0] = (now - HOUR_S, changes[0][1])
        return changes


def seconds(text: str) -> float:
    """Convert an RFC 3339 time to seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


INFERENCE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

AGE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

DRIFT_WEEKS = ("today", "validation", "accepted")


class Metrics(Collector):
    """Collects the metrics of a board; `registry` holds nothing else."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._inference, self._age, self._score = (
            Histogram(name, about, buckets=bounds, registry=None)
            for name, about, bounds in (
                ("edgecnn_inference_seconds", "Inference time per frame.", INFERENCE_S),
                ("edgecnn_frame_age_seconds", "Age of a frame when the decision is made.", AGE_S),
                ("edgecnn_best_score", "Largest softmax score of a frame.", (*BOUNDS, 1.0)),
            )
        )
        disable_created_metrics()
        board.on_result.append(self._take)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def _take(self, line: Mapping[str, Any]) -> None:
        self._inference.observe(line["latency_ms"]["infer"] / 1000)
        self._age.observe(line["age_ms"] / 1000)
        if line["top"]:
            self._score.observe(line["top"][0]["score"])

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._about()
        yield from self._machine()
        if self._board.camera != "none":
            yield from self._camera()
        if drift := self._board.drift():
            yield from drift_families(drift)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def encoded(self, accept: str) -> tuple[bytes, str]:
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _about(self) -> Iterator[Metric]:
        model = self._board.model
        facts = {name: str(model[name]) for name in ("name", "serial", "sha256", "engine", "precision")}
        yield InfoMetricFamily("edgecnn_model", "The model in use, from its bundle.", value=facts)
        yield InfoMetricFamily("edgecnn_build", "The version of edgecnn.", value={"version": __version__})
        about = "When edgecnn started, in seconds since the epoch."
        yield GaugeMetricFamily("edgecnn_start_time_seconds", about, value=self._board.opening.started)
        if model["accuracy"] is not None:
            about = "Accuracy of the model on its test images."
            yield GaugeMetricFamily("edgecnn_model_accuracy_ratio", about, value=model["accuracy"])

    def _machine(self) -> Iterator[Metric]:
        machine = self._board.machine
        if machine["temperature_c"] is not None:
            about = "Temperature of the processor."
            yield GaugeMetricFamily("edgecnn_temperature_celsius", about, value=machine["temperature_c"])
        if machine["memory_mib"] is not None:
            memory = machine["memory_mib"] * 2**20
            yield GaugeMetricFamily(
                "edgecnn_resident_memory_bytes", "Memory used by edgecnn's processes.", value=memory
            )
        throttled = GaugeMetricFamily(
            "edgecnn_throttled", "Whether the board is throttled now, by reason.", labels=["reason"]
        )
        for reason in BITS.values():
            throttled.add_metric([reason], float(reason in machine["throttled"]))
        yield throttled
        if update := machine["update"]:
            about = "Whether the last check for a release failed."
            yield GaugeMetricFamily("edgecnn_update_failed", about, value=float(update["reason"] is not None))
            if update["last_good"]:
                about = "When the last successful check for a release was, in seconds since the epoch."
                good = datetime.fromisoformat(update["last_good"]).timestamp()
                yield GaugeMetricFamily("edgecnn_update_last_good_timestamp_seconds", about, value=good)

    def _camera(self) -> Iterator[Metric]:
        board = self._board
        about = "Whether the camera delivers frames."
        yield GaugeMetricFamily("edgecnn_camera_up", about, value=float(board.camera == "open"))
        yield CounterMetricFamily(
            "edgecnn_camera_reconnects", "Number of times that a lost camera came back.", value=board.reconnects
        )
        yield CounterMetricFamily("edgecnn_frames", "Frames that were classified.", value=board.frames)
        decisions = CounterMetricFamily("edgecnn_decisions", "Frames by decision.", labels=["decision"])
        for decision in dict.fromkeys((*board.model["labels"], *board.decisions)):
            decisions.add_metric([decision], board.decisions[decision])
        yield decisions
        about = "Frames that were too old, or replaced by newer ones during a classification."
        yield CounterMetricFamily("edgecnn_frames_dropped", about, value=board.dropped)
        yield CounterMetricFamily("edgecnn_frames_damaged", "Frames that could not be decoded.", value=board.damaged)
        if board.frame:
            about = "When the newest classified frame was complete, in seconds since the epoch."
            yield GaugeMetricFamily("edgecnn_last_frame_timestamp_seconds", about, value=board.frame["ts"])
        for histogram in (self._inference, self._age, self._score):
            yield from histogram.collect()


def drift_families(drift: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the metrics of `edgecnn.device.http.drift.Drift.document`; `of` is today, the validation images or the accepted week."""
    about = "Whether the scores differ from those of the accepted week."
    yield GaugeMetricFamily("edgecnn_drift_alarm", about, value=float(drift["alarm"] is not None))
    about = "Whether a week can be accepted as the reference for the alarm."
    yield GaugeMetricFamily("edgecnn_drift_can_accept", about, value=float(drift["can_accept"]))
    frames = GaugeMetricFamily("edgecnn_drift_frames", "Number of frames or images in the shares.", labels=["of"])
    about = "Share of frames with this decision."
    decisions = GaugeMetricFamily("edgecnn_drift_decision_ratio", about, labels=["of", "decision"])
    about = "Share of frames whose best score is at most the bound."
    scores = GaugeMetricFamily("edgecnn_drift_score_ratio", about, labels=["of", "bound"])
    for of in DRIFT_WEEKS:
        if (shown := drift[of]) is None:
            continue
        frames.add_metric([of], shown["n"])
        for decision in ("abstain", "stranger"):
            if shown[decision] is not None:
                decisions.add_metric([of, decision], shown[decision])
        for bound, share in zip(drift["bins"][1:], itertools.accumulate(shown["histogram"]), strict=True):
            scores.add_metric([of, floatToGoString(bound)], share)
    yield from (frames, decisions, scores)


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
            board.on_result.append(lambda line: drift.take(line, seconds(line["ts"])))
        self._file = None if opening.metrics_file is None else Path(opening.metrics_file)
        self._metrics, self._drift = RateLimiter(METRICS_EVERY_S), RateLimiter(DRIFT_EVERY_S)
        self._drift.count()
        self._complaints = RateLimiter(COMPLAIN_EVERY_S)

    def due(self, *, end: bool = False) -> Files:
        """Return the files to write now, with their content; at the end, all files."""
        files: Files = []
        if self._file is not None and (self._metrics.count() or end):
            files.append((self._file, self.metrics.text()))
        if self.drift is not None and self.drift.file is not None and (self._drift.count() or end):
            files.append((self.drift.file, self.drift.dumped()))
        return files

    def store(self, files: Files) -> str | None:
        """Write files, which may be slow; return the error message, if any."""
        problem = None
        for path, content in files:
            try:
                write_atomic(path, content)
            except OutputError as error:
                problem = str(error)
        return problem

    def write(self, files: Files) -> str | None:
        """Write files like `store`, but return the message at most once per COMPLAIN_EVERY_S."""
        problem = self.store(files)
        return problem if problem and self._complaints.count() else None


async def keep_files(upkeep: Upkeep) -> None:
    """Write the files that are due, in a thread, forever; problems go to standard error."""
    while True:
        await asyncio.sleep(1.0)
        if files := upkeep.due():
            print_problem(await asyncio.to_thread(upkeep.write, files))


def print_problem(problem: str | None) -> None:
    if problem is not None:
        print(f"{time.strftime('%FT%TZ', time.gmtime())} {problem}", file=sys.stderr, flush=True)


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
        self._board.machine.update(machine_state(self._system, (os.getpid(),)))  # for the next write
        return problem
