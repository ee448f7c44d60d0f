"""The result of a check of `edgecnn doctor`."""

from typing import NamedTuple

SEVERITIES = ("ok", "note", "warning", "error")
"""All is well; worth knowing; it works, but not as well as it could; it does not work."""


class Finding(NamedTuple):
    """One of SEVERITIES, the result, what it means and how to fix it; the last two are empty where there is nothing to say or do."""

    severity: str
    result: str
    means: str = ""
    fix: str = ""


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison: "1.21.0rc1" gives (1, 21, 0)."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
