"""Frozen dataclasses as JSON documents: the fields and their types decide what is written, what is read and what the schema says.

`tools/schema.py` makes the JSON schema from the same fields.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

Document = TypeVar("Document")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a value is limited to, under JSON Schema's own keys; for `Annotated`. The schema says it, reading does not check it."""

    minimum: float | None = None
    maximum: float | None = None
    exclusiveMinimum: float | None = None
    minLength: int | None = None
    minItems: int | None = None
    pattern: str | None = None
    enum: tuple[str, ...] | None = None


Count = Annotated[int, Limits(minimum=0)]
Positive = Annotated[int, Limits(minimum=1)]
Fraction = Annotated[float, Limits(minimum=0, maximum=1)]
Points = Annotated[float, Limits(minimum=-100, maximum=100)]
NonNegative = Annotated[float, Limits(minimum=0)]
Sha256 = Annotated[str, Limits(pattern="^[0-9a-f]{64}$")]


def described(description: str, *, default: Any = MISSING, left_out: bool = False) -> Any:
    """Return a field of a document.

    Args:
        description: what the schema says of it.
        default: its value where a document lacks the key, as older ones may.
        left_out: whether the key is not written where the value is the default.
    """
    return field(default=default, metadata={"description": description, "left_out": left_out})


def to_json(value: Any) -> Any:
    """Return a document, or a value within one, as JSON has it: dataclasses as objects, tuples as arrays."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            entry.name: to_json(content)
            for entry in dataclasses.fields(value)
            if not ((content := getattr(value, entry.name)) == entry.default and entry.metadata.get("left_out", False))
        }
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(kind: type[Document], value: Any) -> Document:
    """Return the document that a JSON value holds.

    Args:
        kind: the dataclass.
        value: as `json.loads` gives it.

    Raises:
        ValueError: naming the key that is missing, unknown or of another type.
    """
    document: Document = _read(kind, value, "")
    return document


@cache
def hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with what `Annotated` adds."""
    return typing.get_type_hints(kind, include_extras=True)


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _read(inner[0], value, where)
    if origin in (typing.Union, types.UnionType):
        (present,) = (item for item in inner if item is not type(None))
        return None if value is None else _read(present, value, where)
    if origin is Literal:
        valid = value in inner
    elif origin is tuple:
        if isinstance(value, list) and (inner[-1] is Ellipsis or len(inner) == len(value)):
            return tuple(_read(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value))
        valid = False
    elif origin is not None and issubclass(origin, Mapping):
        if isinstance(value, dict):
            return {key: _read(inner[1], item, f"{where}.{key}") for key, item in value.items()}
        valid = False
    elif dataclasses.is_dataclass(kind):
        return _read_object(typing.cast(type, kind), value, where)
    elif kind is float:
        valid = isinstance(value, int | float) and not isinstance(value, bool)
    elif kind is int:
        valid = isinstance(value, int) and not isinstance(value, bool)
    else:
        valid = isinstance(value, kind)
    if not valid:
        raise ValueError(f"{where or 'the document'} is {value!r:.40}, expected {_words(kind)}")
    return value


def _read_object(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the document'} is {value!r:.40}, expected an object")
    entries = {entry.name: entry for entry in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    if unknown := sorted(value.keys() - entries.keys()):
        raise ValueError(f"{prefix}{unknown[0]} is an unknown key")
    if missing := [name for name, entry in entries.items() if entry.default is MISSING and name not in value]:
        raise ValueError(f"{prefix}{missing[0]} is missing")
    return kind(**{name: _read(hints(kind)[name], value[name], f"{prefix}{name}") for name in value})


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(kind)))}"
    return {"tuple": "an array", "Mapping": "an object"}.get(
        getattr(kind, "__name__", ""), getattr(kind, "__name__", str(kind))
    )
