"""Old against new: is a replacement model worse than the current one? The judgement and its report, `against.json`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Annotated, Final, Literal

import numpy as np

from edgecnn.bundle.evidence import AGAINST, NOT_SHOWN, PASSED, REFUSED
from edgecnn.bundle.file import Bundle
from edgecnn.errors import BundleError, NotShownError, WorseError
from edgecnn.evaluate import statistics
from edgecnn.tables import Count, Fraction, Limits, Points, Positive, Sha256, Struct, absent, build, described
from edgecnn.verify.parity import class_drops, paired_figures
from edgecnn.verify.parity_report import ClassDrop, LabelledFlip, Name, PairedFigures

MAX_LOSS = 1.5
"""Points: a larger estimated drop gets a model refused, unless it is one photo. With `confident`, its whole interval must lie below this
margin."""

WORSE = 3.0
"""A model that is this many points worse must not pass `strict`: there must be enough photos to refuse 95 % of such models."""

Verdict = Literal["passed", "refused", "not shown"]

Rule = Literal["usual", "strict", "confident"]
USUAL: Final = "usual"
STRICT: Final = "strict"
CONFIDENT: Final = "confident"


class Judgement(Struct):
    """Whether a new model may replace an old one, why, and how many photos the verdict needs."""

    verdict: Verdict = described(
        "passed; refused: it is worse; not shown: no photos, or too few for --strict. The last two need --accept to be put in use."
    )
    why: str
    needed: Positive = described(
        "How many photos a strict verdict needs; if it is not shown, how many would be certain to be enough."
    )


class Model(Struct):
    """One of the two models."""

    name: Name = described("Of its bundle or run.")
    serial: Count = described("Of its bundle; 0 for none.")
    sha256: Sha256 | None = described("Of its bundle; null for a run.")
    model_sha256: Sha256 = described("Of the int8 file that answered.")
    taught_by: Annotated[str, Limits(enum=("list", "folds", "content"))] = described(
        "How its training photos are identified: by its list of images; by folds, whose held-out answers count; or, without "
        "either, by a photo's content, which decides whether it was a test photo."
    )


class Part(PairedFigures):
    """Both models on some of the photos, with the old one as the reference."""

    photos: Annotated[str, Limits(enum=("all", "old", "new"))] = described(
        "old: photos that existed when the old model was made; new: photos that came later."
    )
    mcnemar_p: Fraction = described("McNemar's exact test, two-sided.")
    per_class: tuple[ClassDrop, ...]


class Against(Judgement):
    """A model compared with the one it would replace, on photos that neither was trained on."""

    schema: Literal["edgecnn.against/1"] = "edgecnn.against/1"
    old: Model
    new: Model
    balanced: bool = absent(
        "Whether every class counts the same in the verdict's drop, because the classes are unbalanced and the new model's training "
        "weighed them.",
        False,
    )
    earlier: tuple[Sha256, ...] = described(
        "Bundles that the old one may replace: it passed against the first, that one against the next."
    )
    rule: Rule = described(
        "usual; strict: there had to be enough photos to refuse a model that is 3 points worse; confident: the whole 95 % interval of the "
        "drop had to be below the margin as well."
    )
    margin: Points
    parts: tuple[Part, ...] = described(
        "All photos; then the old and the new ones separately if they can be distinguished; empty without photos."
    )
    added: tuple[str, ...] = described("Classes that only the new model has; the gate does not cover them.")
    gone: tuple[str, ...] = described("Classes that only the old model has.")
    renamed: Mapping[str, str] = described("Old names of classes and their new ones.")
    not_counted: Mapping[str, Positive] = described("How many photos are not compared, by reason.")
    unknown: tuple[str, ...] = described("What could not be determined, in words.")
    flips: tuple[LabelledFlip, ...] = described(
        "Photos that the models answer differently; those that only the old model classifies correctly come first."
    )
    looks: Positive = described("How many comparisons these test photos have decided, including this one.")


Counts = tuple[int, int, int]
"""Counts of photos: those that only the old model classifies correctly, those that only the new one does, and all."""


def judge(
    lost: int, gained: int, n: int, rule: Rule = USUAL, worth: float = 1.0, by_class: Sequence[Counts] = ()
) -> Judgement:
    """Judge a new model from three counts of photos: those only the old model classifies correctly, those only the new one does, and all.

    USUAL refuses a model that is right less often by more than MAX_LOSS and by more than one photo, or is shown to be worse. STRICT and
    CONFIDENT need enough photos. Two equal models would each be right alone on the same number of photos. The smaller count estimates how
    often that happens, and so how many photos it takes to refuse a model that is WORSE in 95 % of draws. With fewer photos, these two
    refuse only a drop that is proved to be larger. `worth` is the weight of a photo: less than 1 if a fold's model answered instead of
    the one that ships.

    If `by_class` has the counts of each class, every class counts the same: the drop is that of the balanced accuracy, and the photos
    lost are those of the classes that lose.
    """
    confident = rule == CONFIDENT
    if not n:
        needed = 1 if rule == USUAL else photos_needed(0.0, confident)
        return Judgement(
            verdict=NOT_SHOWN,
            why=f"no photo can be counted for both; {needed:,} {'is' if needed == 1 else 'are'} needed",
            needed=needed,
        )
    drop, net, interval = 100 * (lost - gained) / n, lost - gained, drop_interval(lost, gained, n, worth)
    if by_class:
        present = [one for one in by_class if one[2]]
        drops = [100 * (one - other) / count for one, other, count in present]
        drop, net = sum(drops) / len(drops), sum(max(one - other, 0) for one, other, _ in present)
        interval = statistics.mean_interval(drops, [drop_interval(*one, worth) for one in present])
    fewer = min(lost, gained)
    least, needed = (ceil(photos_needed(2 * fewer / n, sure) / worth) for sure in (False, confident))
    measure = "its balanced accuracy" if by_class else "it"
    found = f"{measure} {change(drop)} (95 % interval of the drop {interval.low:.2f} to {interval.high:.2f} points) on {n:,} photos"
    verdict: Verdict = PASSED
    why = found
    if rule == USUAL:
        refused = interval.low > 0 or (drop > MAX_LOSS and net > 1)
    else:
        refused = interval.low > WORSE or (n >= least and (drop > MAX_LOSS or interval.low > 0))
    if refused:
        photo = " or of one photo" if rule == USUAL else ""
        verdict, why = REFUSED, f"{found}; a drop of {MAX_LOSS:g} points{photo} is allowed if it may be due to chance"
    elif rule == USUAL:
        if interval.high > MAX_LOSS:
            why = f"{found}, which do not exclude a drop of {interval.high:.1f} points"
    elif n < least:
        rate = 2 * statistics.clopper_pearson(fewer, n, side="upper").high
        verdict, needed = NOT_SHOWN, ceil(photos_needed(rate, confident) / worth)
        why = f"{n:,} photos are too few to refuse a model that is {WORSE:g} points worse ({needed:,} are enough); {found}"
    elif confident and interval.high >= MAX_LOSS:
        verdict, needed = NOT_SHOWN, max(needed, n + 1)
        why = f"the photos do not rule out a drop of {MAX_LOSS:g} points; about {needed:,} would; {found}"
    return Judgement(verdict=verdict, why=why, needed=needed)


def drop_interval(lost: int, gained: int, n: int, worth: float) -> statistics.Interval:
    return statistics.paired_interval(worth * lost, worth * gained, worth * n)


def photos_needed(rate: float, confident: bool = False) -> int:
    """Return how many photos a verdict needs; `rate` is the fraction that only one of two equal models classifies correctly."""
    refuses = statistics.images_to_refuse(rate, WORSE, MAX_LOSS)
    return max(refuses, statistics.images_to_clear(rate, MAX_LOSS)) if confident else refuses


def change(drop: float) -> str:
    return f"gains {-drop:.2f} points" if drop < 0 else f"drops {drop:.2f} points"


def part(
    photos: str, names: tuple[str, str], answers: Sequence[np.ndarray], labels: Sequence[str], worth: float
) -> Part:
    """Return the figures for some photos; `answers` are both models' and the true classes, as indices into `labels`, int (n,)."""
    one, other, classes = answers
    paired = paired_figures(*names, one, other, classes, worth)
    return Part(
        **vars(paired),
        photos=photos,
        mcnemar_p=statistics.mcnemar_exact(paired.lost, paired.gained),
        per_class=tuple(item for item in class_drops(one, other, classes, labels) if item.images),
    )


def read_against(bundle: Bundle) -> Against | None:
    """Return the comparison of a bundle's model with the one it was made to replace; None if it was not compared."""
    if AGAINST not in bundle.files:
        return None
    try:
        return build(Against, json.loads(bundle.files[AGAINST]), ValueError)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: {AGAINST} cannot be read: {error}.") from None


def against_lines(against: Against) -> list[str]:
    """Return a comparison in words: the verdict, then what was counted and what was not."""
    old, new = against.old, against.new
    lines = [
        f"{named(new)} against {named(old)}: {PASSED if against.verdict == PASSED else against.verdict.upper()}: {against.why}"
    ]
    for item in against.parts[1:]:
        low, high = item.drop_interval
        lines.append(
            f"{item.photos} photos: {item.accuracy_reference:.2%}, now {item.accuracy_candidate:.2%} of {item.n:,}; it {change(item.drop)} "
            f"({low:.2f} to {high:.2f}); {item.lost:,} lost, {item.gained:,} gained"
        )
    if against.parts:
        whole = against.parts[0]
        lines.append(
            f"all photos: {whole.accuracy_reference:.2%}, now {whole.accuracy_candidate:.2%}; {whole.lost:,} lost, {whole.gained:,} "
            f"gained; McNemar's p {whole.mcnemar_p:.3g}{by_class(whole.per_class)}"
        )
    for names, text in (
        (against.added, "new classes, not covered by the gate"),
        (against.gone, "classes that it lacks"),
    ):
        if names:
            lines.append(f"{text}: {', '.join(names)}")
    if against.added and against.gone:
        lines.append(f"If a class was renamed: --renamed '{against.gone[0]}={against.added[0]}'")
    lines += [f"not counted: {photos:,} {why}" for why, photos in against.not_counted.items()]
    lines += [*against.unknown]
    if against.looks > 1:
        lines.append(
            f"these test photos have decided {against.looks} comparisons: the more they decide, the more the winner owes to luck; use new "
            "photos to avoid that"
        )
    return lines


def named(model: Model) -> str:
    digest = f" {model.sha256[:12]}" if model.sha256 else ""
    return f"{model.name}{f' serial {model.serial}' if model.serial else ''}{digest}"


def by_class(drops: Iterable[ClassDrop]) -> str:
    worst = sorted(((item.drop or 0.0, item) for item in drops), key=lambda pair: -pair[0])[:3]
    lost = ", ".join(f"{item.label} {drop:.1f} points of {item.images:,}" for drop, item in worst if drop > 0)
    return f"; most lost: {lost}" if lost else ""


def require_no_harm(against: Against, bundle: str) -> None:
    """Raise WorseError or NotShownError unless the new model passed. `bundle` is the file name to print in the instructions."""
    accept = f"To put it in use anyway, on record: edgecnn slot add {bundle} --activate --accept REASON"
    if against.verdict == REFUSED:
        raise WorseError(f"{against.new.name} is worse than {named(against.old)}: {against.why}.\n{accept}")
    if against.verdict == NOT_SHOWN:
        raise NotShownError(
            f"not shown that {against.new.name} is no worse than {named(against.old)}: {against.why}.\n"
            f"Add photos, or train with --folds, which lets every photo test. {accept}"
        )
