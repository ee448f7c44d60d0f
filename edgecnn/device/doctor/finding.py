"""The result of a check of `edgecnn doctor`."""

import re
from typing import NamedTuple

SEVERITIES = ("ok", "note", "warning", "error")
"""In order: all is well; worth knowing; works, but not as well as it could; does not work."""


class Finding(NamedTuple):
    """A severity from SEVERITIES, the result, what it means and how to fix it. The last two are empty if there is nothing to do."""

    severity: str
    result: str
    means: str = ""
    fix: str = ""


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison: "1.21.0rc1" gives (1, 21, 0)."""
    leading = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, leading[0].split("."))) if leading else ()
