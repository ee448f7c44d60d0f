"""A bundle's own verdict on how its model compares with the one it replaces. It is treated as untrusted text."""

import json
from typing import Final

from edgecnn.bundle.read import Bundle
from edgecnn.labels import printable

AGAINST = "against.json"
"""The file in a bundle with the comparison."""

PASSED: Final = "passed"
REFUSED: Final = "refused"
NOT_SHOWN: Final = "not shown"


def verdict_of(bundle: Bundle) -> tuple[str, str]:
    """Return a bundle's verdict (PASSED, REFUSED or NOT_SHOWN) and the reason; both "" if the bundle was not compared."""
    if AGAINST not in bundle.files:
        return "", ""
    try:
        against = json.loads(bundle.files[AGAINST])
        verdict, why, old = against["verdict"], against["why"], against["old"]["name"]
    except (KeyError, TypeError, ValueError, RecursionError):
        verdict = why = old = None
    if verdict not in (PASSED, REFUSED, NOT_SHOWN) or type(why) is not str:
        return NOT_SHOWN, f"its {AGAINST} cannot be read"
    return verdict, printable(f"against {old}, {why}")
