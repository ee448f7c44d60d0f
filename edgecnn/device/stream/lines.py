"""JSON lines for files, and the parts that they share with frames. Formatted by hand, since `json.dumps` takes longer than a decision."""

from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING

from edgecnn.labels import utf8
from edgecnn.region import WHOLE, Region
from edgecnn.runtime.decision import Score

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Result

SCHEMA = "edgecnn.result/1"


def quote(text: str) -> str:
    """Return a text as a JSON string. `edgecnn.labels.utf8` handles names that are not UTF-8."""
    return encode_basestring_ascii(utf8(text))


def file_line(source: str, result: "Result", model: tuple[str, str], region: Region = WHOLE) -> str:
    """Return a file's result as a JSON line; `model` is the bundle's name and the SHA-256 of its model file."""
    return (
        f'{{"schema": "{SCHEMA}", "source": {quote(source)}, "top": {top_json(result.top)}, '
        f'"decision": {quote(result.decision)}, "reason": {text_json(result.reason)}, '
        f'"latency_ms": {latency_json(result.latency_ms)}, {model_json(model, region)}}}'
    )


def error_line(source: str, error: str) -> str:
    return f'{{"schema": "{SCHEMA}", "source": {quote(source)}, "error": {quote(error)}}}'


def top_json(top: Sequence[Score]) -> str:
    items = [f'{{"label": {quote(item.label)}, "index": {item.index}, "score": {item.score:.6f}}}' for item in top]
    return f"[{', '.join(items)}]"


def text_json(text: str | None) -> str:
    return "null" if text is None else quote(text)


def model_json(model: tuple[str, str], region: Region) -> str:
    """Return a model's name, its file's SHA-256 and, unless it saw the whole image, the region, as the fields of a JSON object."""
    name, sha256 = model
    part = "" if region == WHOLE else f', "region": {list(region)}'
    return f'"model": {quote(name)}, "model_sha256": "{sha256}"{part}'


def latency_json(latency_ms: dict[str, float]) -> str:
    return (
        f'{{"decode": {latency_ms["decode"]:.3f}, "preprocess": {latency_ms["preprocess"]:.3f}, '
        f'"infer": {latency_ms["infer"]:.3f}}}'
    )
