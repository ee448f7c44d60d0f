"""The result of a frame, and the JSON lines of results and events. `result.schema.json` is their schema."""

import json
import time
from dataclasses import dataclass, field

import numpy as np

from edgecnn.device.stream.events import Event
from edgecnn.device.stream.lines import SCHEMA, latency_json, model_json, quote, text_json, top_json
from edgecnn.labels import utf8
from edgecnn.region import WHOLE, Region
from edgecnn.runtime.decision import Score


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """The result for one frame of a stream; `top`, `decision`, `reason`, `lead`, `latency_ms` and `features` are as in `Result`.

    Attributes:
        seq: the frame's number among all frames since the start. Gaps are frames that were discarded, dropped, damaged or passed over.
        ts: when the frame was complete, in seconds since the epoch. The result was ready `age_ms` later.
        image: the source's frame before any rotation: an encoded image's bytes, or uint8 RGB of shape (height, width, 3).
        state: the decision after smoothing; None until enough frames have arrived, at the start and after a loss of the camera.
        state_since: the `ts` of the frame that set the state.
        dropped: frames since the start that were replaced by newer ones while another was classified, or were too old.
    """

    seq: int
    ts: float
    age_ms: float
    source: str
    image: bytes | np.ndarray = field(repr=False, compare=False)
    top: tuple[Score, ...]
    decision: str
    reason: str | None
    lead: float
    state: str | None
    state_since: float | None
    latency_ms: dict[str, float]
    dropped: int
    features: np.ndarray | None = field(default=None, repr=False, compare=False)


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC with milliseconds: 2026-11-25T04:00:00.123Z."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{ms:03d}Z"


def result_line(result: FrameResult, model: tuple[str, str], region: Region = WHOLE) -> str:
    """Return a frame's result as a JSON line; `model` and `region` are as in `lines.file_line`."""
    since = "null" if result.state_since is None else f'"{rfc3339(result.state_since)}"'
    return (
        f'{{"schema": "{SCHEMA}", "seq": {result.seq}, "ts": "{rfc3339(result.ts)}", "age_ms": {result.age_ms:.3f}, '
        f'"source": {quote(result.source)}, "top": {top_json(result.top)}, "decision": {quote(result.decision)}, '
        f'"reason": {text_json(result.reason)}, "state": {text_json(result.state)}, "state_since": {since}, '
        f'"latency_ms": {latency_json(result.latency_ms)}, "dropped": {result.dropped}, {model_json(model, region)}}}'
    )


def event_line(event: Event) -> str:
    left_out = {"ts", "source"} | ({"region"} if getattr(event, "region", None) is None else set())
    details = {name: value for name, value in vars(event).items() if name not in left_out}
    line = {"schema": SCHEMA, "event": event.kind, "ts": rfc3339(event.ts), "source": event.source, **details}
    return json.dumps({name: utf8(value) if isinstance(value, str) else value for name, value in line.items()})
