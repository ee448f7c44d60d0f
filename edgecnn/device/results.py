"""What a classifier's loop tells: a result for each frame or file, and events. `result.schema.json` is the form of their JSON lines."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from edgecnn.runtime.decision import Score

SCHEMA = "edgecnn.result/1"


@dataclass(frozen=True, kw_only=True)
class FrameResult:
    """What a frame of a stream was taken for. The fields are those of a JSON line; `ts` and `state_since` are seconds since the epoch."""

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
    """Something that happened beside results: `kind` is the JSON line's `event`, `details` its other fields."""

    kind: str
    ts: float
    source: str
    details: dict[str, Any] = field(default_factory=dict)


def rfc3339(seconds: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC with milliseconds: 2026-11-25T04:00:00.123Z."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{ms:03d}Z"


def result_line(result: FrameResult, model_sha256: str) -> str:
    """Return a frame's result as a JSON line."""
    since = "null" if result.state_since is None else f'"{rfc3339(result.state_since)}"'
    return (
        f'{{"schema": "{SCHEMA}", "seq": {result.seq}, "ts": "{rfc3339(result.ts)}", "age_ms": {result.age_ms:.3f}, '
        f'"source": {quote(result.source)}, "top": {_top(result.top)}, "decision": {quote(result.decision)}, '
        f'"reason": {_text(result.reason)}, "state": {_text(result.state)}, "state_since": {since}, '
        f'"latency_ms": {_latency(result.latency_ms)}, "dropped": {result.dropped}, "model_sha256": "{model_sha256}"}}'
    )


def event_line(event: Event) -> str:
    """Return an event as a JSON line."""
    line = {"schema": SCHEMA, "event": event.kind, "ts": rfc3339(event.ts), "source": event.source, **event.details}
    return json.dumps(line)


def file_line(
    source: str,
    top: Sequence[Score],
    decision: str,
    reason: str | None,
    latency_ms: dict[str, float],
    model_sha256: str,
) -> str:
    """Return a file's result as a JSON line: that of a frame without what makes no sense for a file."""
    return (
        f'{{"schema": "{SCHEMA}", "source": {quote(source)}, "top": {_top(top)}, "decision": {quote(decision)}, '
        f'"reason": {_text(reason)}, "latency_ms": {_latency(latency_ms)}, "model_sha256": "{model_sha256}"}}'
    )


def error_line(source: str, error: str) -> str:
    """Return a file that could not be classified as a JSON line."""
    return f'{{"schema": "{SCHEMA}", "source": {quote(source)}, "error": {quote(error)}}}'


def _top(top: Sequence[Score]) -> str:
    items = [f'{{"label": {quote(item.label)}, "index": {item.index}, "score": {item.score:.6f}}}' for item in top]
    return f"[{', '.join(items)}]"


def _text(text: str | None) -> str:
    return "null" if text is None else quote(text)


def _latency(latency_ms: dict[str, float]) -> str:
    return (
        f'{{"decode": {latency_ms["decode"]:.3f}, "preprocess": {latency_ms["preprocess"]:.3f}, '
        f'"infer": {latency_ms["infer"]:.3f}}}'
    )
