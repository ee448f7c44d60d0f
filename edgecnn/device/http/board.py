"""Everything the server knows about the board and its camera; only messages from the camera loop change it."""

import asyncio
import contextlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from edgecnn.device.http.link import EVENT, PICTURE, RESULT, UNSURE, UNSURES, Opening, Picture
from edgecnn.errors import ImageError

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
        self.ready = False
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
        self.machine: dict[str, Any] = {
            "temperature_c": None,
            "throttled": [],
            "memory_mib": None,
            "uptime_s": None,
            "update": None,
        }
        self.drift: Callable[[], dict[str, Any] | None] = lambda: None
        self.on_picture: Callable[[Picture], object] = bool
        self.on_result: list[Callable[[dict[str, Any], dict[str, int]], object]] = []
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
        """Return whether a model is loaded and, with a camera, a frame was classified within FRESH_S."""
        if self.camera == "none":
            return self.ready
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
        from edgecnn.device.stream.pictures import as_jpeg
        from edgecnn.images import read_file

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
        ms = line["latency_ms"]["infer"]
        self.frame = {
            "seq": line["seq"],
            "ts": seconds(line["ts"]),
            "width": width,
            "height": height,
            "inference_ms": ms,
        }
        if self.camera == "open" and line["state"] != self.state:  # the event of the change comes after its frame
            self.state, self.reason = line["state"], line["reason"]
            self.since = line["state_since"] and seconds(line["state_since"])
        for listener in self.on_result:
            listener(line, late)

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
