"""A bundle's own verdict on how its model compares with the one it replaces. It is treated as untrusted text."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from edgecnn.bundle.read import Bundle
from edgecnn.labels import printable, unsafe

AGAINST = "against.json"
"""The file in a bundle with the comparison."""

PASSED: Final = "passed"
REFUSED: Final = "refused"
NOT_SHOWN: Final = "not shown"

LONGEST_REASON = 1000


class Verdict(NamedTuple):
    """A verdict (PASSED, REFUSED or NOT_SHOWN) and its reason, both "" if the bundle was not compared.

    `passed` are the SHA-256s of the bundles that it may replace: the one it passed against, those that this one passed against, and so on.
    """

    word: str = ""
    why: str = ""
    passed: tuple[str, ...] = ()


def verdict_of(bundle: Bundle) -> Verdict:
    """Return a bundle's verdict, which counts only for a model in the bundle."""
    if AGAINST not in bundle.files:
        return Verdict()
    try:
        against = json.loads(bundle.files[AGAINST])
        word, why, old, new = against["verdict"], against["why"], against["old"], against["new"]
        passed = tuple(map(str, (old["sha256"], *against.get("earlier", ()))))
        name, model = old["name"], new["model_sha256"]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        word = None
    if word not in (PASSED, REFUSED, NOT_SHOWN) or type(why) is not str:
        return Verdict(NOT_SHOWN, f"its {AGAINST} cannot be read")
    if model not in bundle.manifest.files.values():
        return Verdict(NOT_SHOWN, f"its {AGAINST} is about a model that it does not contain")
    return Verdict(word, printable(f"against {name}, {why}"), passed if word == PASSED else ())


def objection(bundle: Bundle, olds: Mapping[str, Path], serial: int) -> str:
    """Return why a bundle may not replace the bundles in use; "" if it may, or none is in use.

    `olds` are their files by SHA-256, the newest last. If a verdict is missing, the text ends with the line that makes the bundle anew
    with it, and with a serial number.
    """
    verdict = verdict_of(bundle)
    if verdict.word not in ("", PASSED):
        return f"it is {verdict.word}: {verdict.why}"
    unknown = [old for old in olds if old not in verdict.passed]
    if not unknown:
        return ""
    old = unknown[-1]
    line = f"edgecnn verify RUN --against {shlex.quote(str(olds[old]))} && edgecnn bundle RUN --serial {serial} --force"
    return (
        f"nobody has compared it with {old[:12]}, which is in use. On the workstation, where its run, RUN, and the photos are, with a copy "
        f"of the bundle in use: {line}"
    )


def bad_reason(reason: str) -> str:
    """Return what is wrong with a reason to accept a bundle without a verdict; "" if nothing is."""
    if any(map(unsafe, reason)):
        return "--accept must not contain control characters."
    return f"--accept must have at most {LONGEST_REASON:,} characters." if len(reason) > LONGEST_REASON else ""
