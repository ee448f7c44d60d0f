"""What a bundle says of its model's answers: the scores on validation images, and the verdict on the comparison with the one it replaces.

The scores, `validation.json` of a run and its bundle, are the reference for a camera's scores. The verdict is treated as untrusted text.
"""

import bisect
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edgecnn.bundle.file import Bundle
from edgecnn.errors import BundleError
from edgecnn.labels import printable, unsafe
from edgecnn.tables import Struct, build, key

VALIDATION = "validation.json"
SCORES_SCHEMA = "edgecnn.validation/1"

BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
"""Upper ends of a histogram's bins, except the last, which ends at 1. Most scores are close to 1."""

BINS = len(BOUNDS) + 1


class ValidationScores(Struct):
    """A histogram of the best scores of validation images, and a device's decisions on them.

    `counts` holds the number of images with a score in (previous bound, bound], for each of BOUNDS and 1. `below` counts the images below
    `threshold` that are not strangers, `strangers` those less familiar than `limit`. `strangers_below` counts the strangers below the
    threshold: a device that does not recognise strangers abstains there. `model` is the model's file in the bundle.
    """

    schema: str = key(SCORES_SCHEMA, choices=(SCORES_SCHEMA,))
    model: str
    model_sha256: str
    validation_sha256: str
    temperature: float
    threshold: float
    limit: float | None
    images: int = key(low=1)
    bounds: tuple[float, ...] = key(valid=lambda bounds: bounds == BOUNDS, expected=f"the numbers {BOUNDS}")
    counts: tuple[int, ...] = key(
        valid=lambda counts: len(counts) == BINS and min(counts) >= 0, expected=f"{BINS} counts"
    )
    below: int = key(low=0)
    strangers: int = key(low=0)
    strangers_below: int = key(low=0)

    def shares(self, threshold: float, strangers: bool) -> tuple[float | None, float]:
        """Return a device's shares of abstain, None if it uses another threshold, and of stranger."""
        abstained = self.below if strangers else self.below + self.strangers_below
        refused = self.strangers if strangers else 0
        return (abstained / self.images if threshold == self.threshold else None), refused / self.images


def bin_of(score: float) -> int:
    """Return the index of a score's bin, 0 to BINS - 1."""
    return bisect.bisect_left(BOUNDS, score)


def score_counts(scores: np.ndarray) -> tuple[int, ...]:
    """Count the best scores, shape (n,), in each bin."""
    bins = np.searchsorted(BOUNDS, scores.astype(np.float64))
    return tuple(np.bincount(bins, minlength=BINS).tolist())


def read_validation(files: Mapping[str, bytes]) -> ValidationScores | None:
    """Return the scores in a bundle's `files`; None if the bundle has none. BundleError if they are not valid."""
    if VALIDATION not in files:
        return None
    try:
        table: Any = json.loads(files[VALIDATION])
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{VALIDATION} is not JSON: {error}") from None
    scores = build(ValidationScores, table, BundleError, VALIDATION, exact=True)
    if (
        sum(scores.counts) != scores.images
        or max(scores.below + scores.strangers, scores.strangers_below) > scores.images
    ):
        raise BundleError(f"{VALIDATION}: the counts do not match {scores.images:,} images")
    return scores


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
