"""What a check of `edgecnn doctor` finds."""

from typing import NamedTuple

SEVERITIES = ("ok", "note", "warning", "error")
"""Right; worth knowing; works, but worse than it could; does not work."""


class Finding(NamedTuple):
    """One of SEVERITIES, what was found, what it means and what mends it; the last two are empty where there is nothing to say or do."""

    severity: str
    found: str
    means: str = ""
    mend: str = ""


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, to be compared: "1.21.0rc1" gives (1, 21, 0)."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
