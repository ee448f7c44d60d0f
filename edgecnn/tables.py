"""Check nested tables, as read from TOML and JSON, into frozen dataclasses, and write these as JSON again.

A field's type is the required type of its value: `str`, `int`, `float`, `bool`, a `Literal`, another dataclass, `tuple[X, ...]`,
`tuple[X, X]`, `dict[str, X]` or `Mapping[str, X]`, or one of these `| None`; `Any` is not checked. Its limits are metadata, which `key`
sets; additions of `Annotated` are for schemas (`edgecnn.tables`).
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from edgecnn.errors import nearest

T = TypeVar("T")
NAMES = {str: "string", int: "whole number", float: "number", bool: "boolean"}
UNIONS = (types.UnionType, typing.Union)
"""The type of `X | None` if X is `Annotated`."""

SHOWN = 80
"""Maximum number of characters of a received value to repeat in a message."""


def key(default: Any = dataclasses.MISSING, meaning: str = "", **limits: Any) -> Any:
    """Return a dataclass field with limits that `build` enforces: low and high inclusive, choices, or `valid` for an array or text.

    `expected` describes what `valid` accepts; left_out=True leaves the key out of JSON while the value is the default.
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, **limits} if meaning else limits)


@functools.cache
def fields_of(kind: type) -> dict[str, dataclasses.Field]:
    return {entry.name: entry for entry in dataclasses.fields(kind)}


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Struct:
    """A frozen dataclass of keyword-only fields: `@dataclass` would compile its methods again at each start, 0.3 ms per class."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, **values: Any) -> None:
        kind: type = type(self)
        fields = fields_of(kind)
        for name in values:
            if name not in fields:
                raise TypeError(f"{kind.__name__} has no field {name!r}. {nearest(name, fields)}")
        for name, entry in fields.items():
            if name in values or entry.default is not dataclasses.MISSING:
                value = values.get(name, entry.default)
            elif entry.default_factory is not dataclasses.MISSING:
                value = entry.default_factory()
            else:
                raise TypeError(f"{kind.__name__} needs the field {name!r}")
            self.__dict__[name] = value
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values of a new struct, as in a dataclass."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __repr__(self) -> str:
        kind: type = type(self)
        shown = (f"{name}={getattr(self, name)!r}" for name, entry in fields_of(kind).items() if entry.repr)
        return f"{kind.__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))


def _values(struct: Any) -> tuple[Any, ...]:
    kind: type = type(struct)
    return tuple(getattr(struct, name) for name in fields_of(kind))


def leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field]]:
    """Yield every key of a dataclass and its tables, with its dotted name, in order, but not the tables themselves."""
    for name, entry in fields_of(kind).items():
        if dataclasses.is_dataclass(inner := value_type(entry.type)):
            yield from leaves(typing.cast(type, inner), f"{prefix}{name}.")
        else:
            yield prefix + name, entry


def build(kind: type[T], table: Any, error: type[Exception], where: str = "", *, exact: bool = False) -> T:
    """Build a checked dataclass from nested tables; missing keys take their defaults.

    `error`, whose message begins with `where`, is raised for an unknown or missing key, a wrong type or a value outside its limits. `exact`
    is for JSON from a program: only keys that may be left out can be missing, and a whole number is not a float.
    """
    return _Builder(kind, error, f"{where}: " if where else "", exact).table(kind, table, "")


def to_json(value: Any) -> Any:
    """Convert a dataclass, or a value within one, for JSON: dataclasses and mappings to objects, tuples to arrays."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: to_json(content)
            for name, entry in fields_of(type(value)).items()
            if not ((content := getattr(value, name)) == entry.default and entry.metadata.get("left_out", False))
        }
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    return value


class _Builder:
    def __init__(self, root: type, error: type[Exception], where: str, exact: bool) -> None:
        self.root, self.error, self.where, self.exact = root, error, where, exact

    def fail(self, text: str) -> Exception:
        return self.error(self.where + text)

    def table(self, kind: type, table: Any, path: str) -> Any:
        """Return a table's values as an instance of a dataclass; `path` is the table's dotted name."""
        self.dict(table, path)
        fields, prefix = fields_of(kind), f"{path}." if path else ""
        for name in table:
            if name not in fields:
                raise self.fail(f"unknown key {prefix}{_name(name)}. {self.advice(name, fields)}")
        for name, entry in fields.items():
            needed = entry.default is entry.default_factory  # both MISSING
            if name not in table and (needed or (self.exact and not entry.metadata.get("left_out", False))):
                raise self.fail(f"the key {prefix}{name} is missing")
        return kind(
            **{
                name: self.value(value, fields[name].type, fields[name].metadata, prefix + name)
                for name, value in table.items()
                if not (value is None and fields[name].default is None)
            }
        )

    def advice(self, name: str, fields: Mapping[str, Any]) -> str:
        same = [other for other, _ in leaves(self.root) if other.rpartition(".")[2] == name]
        return f"Did you mean {' or '.join(same)}?" if same else nearest(name[:SHOWN], fields)

    def dict(self, value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            expected = "an object" if self.exact else "a table"
            raise self.fail(f"{path}{' ' * bool(path)}must be {expected}, received {shown(value)}")

    def value(self, value: Any, kind: Any, limits: Mapping[str, Any], path: str) -> Any:
        kind = value_type(kind, value)
        if kind in NAMES:
            return self.plain(value, kind, limits, path)
        if kind is Any or kind is None:
            return value
        if dataclasses.is_dataclass(kind):
            return self.table(typing.cast(type, kind), value, path)
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin is Literal:
            return self.plain(value, str, {"choices": inner}, path)
        if origin is tuple:
            if type(value) is not list or (inner[-1] is not ... and len(value) != len(inner)):
                expected = "an array" if inner[-1] is ... else f"an array of {len(inner)}"
                raise self.fail(f"{path} must be {expected}, received {shown(value)}")
            if inner[0] is str and all(type(entry) is str for entry in value):
                return tuple(value)
            values = tuple(self.value(entry, inner[0], {}, f"{path}[{index}]") for index, entry in enumerate(value))
            if "valid" in limits and not limits["valid"](values):
                raise self.fail(f"{path} must be {limits['expected']}; received {shown(value)}")
            return values
        self.dict(value, path)
        if inner[1] is Any:
            return dict(value)
        return {name: self.value(entry, inner[1], {}, f"{path}.{_name(name)}") for name, entry in value.items()}

    def plain(self, value: Any, kind: Any, limits: Mapping[str, Any], path: str) -> Any:
        if kind is float and type(value) is int and not self.exact:
            value = float(value) if abs(value) < 1e308 else math.inf
        if type(value) is not kind:
            point = " with a decimal point" if kind is float and self.exact else ""
            raise self.fail(f"{path} must be a {NAMES[kind]}{point}, received {shown(value)}")
        if kind is float and not math.isfinite(value):
            raise self.fail(f"{path} must be finite, received {value!r}")
        choices, low, high = limits.get("choices"), limits.get("low"), limits.get("high")
        if choices is not None and value not in choices:
            raise self.fail(f"{path} must be one of {', '.join(map(str, choices))}; received {shown(value)}")
        if "valid" in limits and not limits["valid"](value):
            raise self.fail(f"{path} must be {limits['expected']}; received {shown(value)}")
        if low is not None and not low <= value <= (math.inf if high is None else high):
            allowed = f"at least {end_text(low)}" if high is None else f"between {end_text(low)} and {end_text(high)}"
            raise self.fail(f"{path} must be {allowed}, received {shown(value)}")
        return value


def value_type(kind: Any, value: Any = ...) -> Any:
    """Return X for `X | None` and `Annotated[X, ...]`, and any other type unchanged; None for `X | None` if the value is None."""
    while (origin := typing.get_origin(kind)) in UNIONS or origin is Annotated:
        if value is None and origin is not Annotated:
            return None
        kind = typing.get_args(kind)[0]
    return kind


def end_text(end: float) -> str:
    """Return an end of a range for a message: a whole number with all its digits."""
    return f"{end:,}" if isinstance(end, int) else f"{end:g}"


def _name(name: str) -> str:
    """Return a key for a message: quoted and shortened if it is not a plain word."""
    return name if name.isidentifier() and len(name) <= SHOWN else shown(name)


def shown(value: Any) -> str:
    """Return a value for a message: in ASCII, shortened."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


class Limits(Struct):
    """Limits of a value, under JSON Schema's own keys; for `Annotated`."""

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


def described(meaning: str, *, default: Any = MISSING) -> Any:
    """Return a field of a document: its description, and the value if the key is missing."""
    return key(default, meaning)


def absent(meaning: str, default: Any = None) -> Any:
    """Return a field of a document that is not written while it has its default."""
    return key(default, meaning, left_out=True)


def option(default: Any, about: str, meaning: str = "", **more: Any) -> Any:
    """Return a field of a stream's settings. `about` is the flag's help, `meaning` that of the service's key, or "" if it has no key.

    `more` may have low, high and choices as in `edgecnn.tables.key` (`unlimited`: no `high` for the flag); `flag`, `heading` and the
    default for the `service`, if they differ; `metavar` and `shown` (the default in words) for the help; and `typed`, the default as
    typed, with `read`, which converts a typed value or raises ValueError.
    """
    return key(default, meaning, about=about, **more)


class Group(Struct):
    """Settings that belong together, each with a default."""
