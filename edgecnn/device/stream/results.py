"""What the loop over a stream reports: a result for each frame, and events. `result.schema.json` is the schema of their JSON lines."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from edgecnn.device.stream.lines import SCHEMA, latency_json, model_json, quote, text_json, top_json
from edgecnn.runtime.decision import Score


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """The result of one frame. The fields are those of a JSON line; `ts` and `state_since` are seconds since the epoch."""

    seq: int
    ts: float
    age_ms: float
    source: str
    top: tuple[Score, ...]
    decision: str
    reason: str | None
    state: str | None
    state_since: float | None
    latency_ms: dict[str, float]
    dropped: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something other than a result: `kind` is the JSON line's `event`, `details` its other fields."""

    kind: str
    ts: float
    source: str
    details: dict[str, Any] = field(default_factory=dict)


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC with milliseconds: 2026-11-25T04:00:00.123Z."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{ms:03d}Z"


def result_line(result: FrameResult, model: tuple[str, str]) -> str:
    """Return a frame's result as a JSON line; `model` is as in `lines.file_line`."""
    since = "null" if result.state_since is None else f'"{rfc3339(result.state_since)}"'
    return (
        f'{{"schema": "{SCHEMA}", "seq": {result.seq}, "ts": "{rfc3339(result.ts)}", "age_ms": {result.age_ms:.3f}, '
        f'"source": {quote(result.source)}, "top": {top_json(result.top)}, "decision": {quote(result.decision)}, '
        f'"reason": {text_json(result.reason)}, "state": {text_json(result.state)}, "state_since": {since}, '
        f'"latency_ms": {latency_json(result.latency_ms)}, "dropped": {result.dropped}, {model_json(model)}}}'
    )


def event_line(event: Event) -> str:
    """Return an event as a JSON line."""
    line = {"schema": SCHEMA, "event": event.kind, "ts": rfc3339(event.ts), "source": event.source, **event.details}
    return json.dumps(line)
