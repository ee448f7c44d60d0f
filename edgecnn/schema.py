"""Meanings and limits of a JSON document's fields, for its schema. `edgecnn.tables` checks their types, not these limits."""

from dataclasses import MISSING
from typing import Annotated, Any

from edgecnn.tables import Struct, key


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


def described(meaning: str, *, default: Any = MISSING, left_out: bool = False) -> Any:
    """Return a field of a document: its description, the value if the key is missing, and whether the default is left out on writing."""
    return key(default, meaning, left_out=left_out)
