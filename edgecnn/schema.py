"""What the fields of a JSON document mean and are limited to, for its schema; `edgecnn.tables` checks their types, not these limits."""

from dataclasses import MISSING
from typing import Annotated, Any

from edgecnn.tables import Struct, key


class Limits(Struct):
    """What a value is limited to, under JSON Schema's own keys; for `Annotated`."""

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


def described(meaning: str, *, default: Any = MISSING, left_out: bool = False) -> Any:
    """Return a field of a document: its schema's text, the value if a document lacks the key, and whether the default is written."""
    return key(default, meaning, left_out=left_out)
