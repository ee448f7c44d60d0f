"""The report of an inspection of labelled images, and its sentences: what is wrong, how bad it is, and what to do.

Frozen dataclasses; `inspection.json` is `tables.to_json` of an `Inspection`, and its schema is made from the same fields:
`tools/schema.py`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from edgecnn.data.items import Fault, Item
from edgecnn.images import SUFFIXES
from edgecnn.labels import plural
from edgecnn.tables import Count, Fraction, NonNegative, Positive, Struct, absent, described

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")

Kind = Literal[
    "layout", "left-out", "leak", "two-labels", "unreadable", "groups", "label", "duplicate", "near-duplicate", "alike", "few", "balance",
    "tell", "far", "blurred", "sizes",
]  # fmt: skip
Same = Literal["file", "pixels", "near"]
By = Literal["content", "hash", "features"]


class Photo(Struct):
    """An image of the data."""

    source: str = described("Its path within the data, or NAME[INDEX] of an array.")
    split: str = described("train, validation or test; if the data have no splits, the one that edgecnn assigns.")
    label: str


class Copy(Photo):
    """An image of a group."""

    same: Same = described(
        "What it shares with another image of its group: the file, the decoded pixels, or nearly the same content."
    )
    pixels: Count = described("The same number for images of a group that have the same pixels.")
    keep: bool = described("Whether a cleaned copy of the data keeps it.")


class Group(Struct):
    """Images that show the same thing."""

    copies: tuple[Copy, ...]
    exact: bool = described("Whether all have the same pixels.")
    leak: bool = described("Whether they are in more than one split.")
    two_labels: bool = described("Whether they have more than one label.")
    by: By = described("What detected the last of them: the content, the perceptual hash, or the features.")
    score: Fraction = described("Similarity of the least alike two among those compared; 1 for the same pixels.")
    mirrored: bool = described("Whether some are mirrored left to right.")

    @property
    def twins(self) -> list[Copy]:
        """The first images of the group that have the same pixels, even if others of it are only alike; [] if all differ."""
        counts = Counter(copy.pixels for copy in self.copies)
        number = next((copy.pixels for copy in self.copies if counts[copy.pixels] > 1), None)
        return [copy for copy in self.copies if copy.pixels == number]


class Lost(Struct):
    """An image that cannot be read."""

    source: str
    split: str | None = described("null if not even its bytes could be read.")
    reason: str


class WrongLabel(Photo):
    """An image whose label is likely wrong."""

    suggested: str = described("The label that its features suggest.")
    score: Fraction = described("Its label's score from classifiers that were fitted without it.")
    suggested_score: Fraction


class Odd(Photo):
    """An image unlike the others."""

    value: float = described(
        "Its distance from its neighbours' features, 0 to 2; for a blurred one its sharpness over its contrast."
    )
    usual: float = described("The median of all images.")


class ClassFigures(Struct):
    """A class."""

    label: str
    images: Mapping[str, Count] = described("Readable images by split.")
    distinct: Count = described("Images left if each group counts as one.")


class SizeFigures(Struct):
    """Images of one size and mode."""

    width: Positive
    height: Positive
    channels: Positive = described("1 for grey, 3 for colour.")
    images: Positive


class Finding(Struct):
    """A sentence on what is wrong, and what to do about it."""

    kind: Kind
    severity: Severity
    images: Count = described("Number of images, classes or groups that it is about.")
    text: str
    advice: str


class Method(Struct):
    """How the images were compared."""

    features: str | None = described("The network whose features were used; null for hashes only.")
    missing: str | None = described("What was not searched for, and what to install; null if nothing.")
    all_alike: bool = described(
        "Whether most of a class looked like one group, so that only images with the same pixels are called copies."
    )
    skipped_pairs: Count = described("Candidates by features that were not compared, since there were too many.")
    uncompared: Count = described(
        "Images whose hashes were not compared with those of later images, since too many are alike."
    )
    labels_by: str | None = absent(
        "The run whose folds judged the labels; absent if a classifier on features judged them."
    )


class Inspection(Struct):
    """The whole report of `edgecnn inspect`."""

    schema: Literal["edgecnn.inspect/1"]
    edgecnn: str = described("Version of edgecnn.")
    name: str
    title: str
    fingerprint: str = described("SHA-256 over the splits, labels and content hashes of the listed images.")
    images: Count = described("Images that can be read.")
    splits: Mapping[str, Count] = described("Those by split.")
    own_splits: tuple[str, ...] = described("The data's own splits; only train if edgecnn makes the others.")
    findings: tuple[Finding, ...] = described("The most severe first.")
    classes: tuple[ClassFigures, ...]
    sizes: tuple[SizeFigures, ...] = described("The most frequent first.")
    unreadable: tuple[Lost, ...]
    groups: tuple[Group, ...] = described("Leaks first, then those with two labels, exact and near copies.")
    wrong_labels: tuple[WrongLabel, ...] = described("The likeliest first.")
    far: tuple[Odd, ...] = described("The farthest first.")
    blurred: tuple[Odd, ...] = described("The most blurred first.")
    method: Method
    computed: Mapping[str, Count] = described(
        "Number of images whose hashes and features were computed; the others were known."
    )
    seconds: NonNegative


class LeftOut(Struct):
    """An image that a cleaned copy leaves out, and why."""

    source: str
    reason: str


class Cleaned(Struct):
    """`left-out.json` of a cleaned copy."""

    schema: Literal["edgecnn.left-out/1"]
    data: str = described("What was cleaned.")
    kept: Count
    left_out: tuple[LeftOut, ...]


FEW_TRAINING, FEW_TEST = 20, 10
"""A class with fewer images is small: with 10 test images, one more correct answer is ten points of that class's accuracy."""

UNEVEN, VERY_UNEVEN = 3.0, 10.0  # largest class over smallest one, in images

MOSTLY_COPIES = 0.7  # a class with a smaller fraction of distinct images has images that are too alike

TELLING = 0.2
"""How much better the size, mode and format of an image may predict its class than always guessing the largest class."""

FEWEST_OF_A_SIZE = 10  # fewest images of one size that say something about the class

PHOTOS = (*SUFFIXES, ".heic", ".heif", ".jxl", ".dng", ".raw", ".zip")
"""Suffixes of photo files."""


def finding(kind: Kind, severity: Severity, images: int, text: str, advice: str) -> Finding:
    return Finding(kind=kind, severity=severity, images=images, text=text, advice=advice)


def of_folders(faults: Iterable[Fault], skipped: Sequence[str], lines: Iterable[str]) -> Iterator[Finding]:
    """Yield the faults of folders, and the files that are not read; `lines` describe `skipped`."""
    for text, advice in faults:
        yield finding("layout", "error", 1, text.rstrip("."), advice)
    severity: Severity = "warning" if any(name.lower().endswith(PHOTOS) for name in skipped) else "note"
    for line in lines:
        text, _, advice = line.partition(". ")
        advice = advice or "Move them into class folders, or remove them."
        yield finding("left-out", severity, len(skipped), text, advice)


def of_files(lost: Sequence[Lost], total: int) -> Iterator[Finding]:
    if lost:
        text = f"{plural(len(lost), 'image')} of {total:,} cannot be read, such as {lost[0].source} ({lost[0].reason})"
        yield finding("unreadable", "warning", len(lost), text, "Replace or remove them.")


def of_groups(groups: Sequence[Group], own_splits: Iterable[str], keeps_groups: bool) -> Iterator[Finding]:
    """Yield the problems of images that show the same thing.

    `own_splits` are the data's own splits; `keeps_groups` means that training keeps such images in one split from the start.
    """
    given = set(own_splits)
    leaks = [group for group in groups if group.leak]
    theirs = [group for group in leaks if {copy.split for copy in group.copies} <= given]
    ours = [group for group in leaks if not {copy.split for copy in group.copies} <= given]
    rest = [group for group in groups if not group.leak and not group.two_labels]
    leaked, remove = "the same image in more than one split", "Keep one of each group."
    keep_one = "Keep one of each, or divide the images into train, val and test folders yourself."
    if keeps_groups:
        keep_one = "Nothing: photos added later connect them, and model comparisons leave the test images out."
    kinds: tuple[tuple[Kind, Severity, list[Group], str, str], ...] = (
        ("leak", "error", theirs, leaked, "Remove them from training: a model cannot be tested on images that it was trained on."),
        ("leak", "warning", ours, leaked, keep_one),
        ("two-labels", "error", [group for group in groups if group.two_labels], "the same image with different labels",
         "Remove the images with the wrong label."),
        ("duplicate", "warning", [group for group in rest if group.twins], "identical images within a split", remove),
        ("near-duplicate", "note", [group for group in rest if not group.exact],
         "nearly identical images within a split", remove),
    )  # fmt: skip
    for kind, severity, found, what, advice in kinds:
        if found:
            text = f"{plural(len(found), 'group')} of {what}, such as {first_two(found[0], kind)}"
            yield finding(kind, severity, len(found), text, advice)


def of_question(sentence: str, count: int) -> Iterator[Finding]:
    if sentence:
        text, _, advice = sentence.partition("; ")
        yield finding("groups", "warning", count, f"{text[0].upper()}{text[1:]}", f"{advice}.")


def of_labels(doubts: Sequence[WrongLabel]) -> Iterator[Finding]:
    if doubts:
        first = doubts[0]
        text = (
            f"{plural(len(doubts), 'label')} may be wrong, the likeliest first: {first.source} is labelled {first.label}, "
            f"but looks like {first.suggested}"
        )
        advice = "Check them in this order, and move the wrong ones."
        yield finding("label", "warning", len(doubts), text, advice)


def of_classes(classes: Sequence[ClassFigures], method: Method) -> Iterator[Finding]:
    """Yield problems with the number of images and with their variety."""
    totals = {item.label: sum(item.images.values()) for item in classes}
    small: tuple[tuple[str, int, Severity], ...] = (("train", FEW_TRAINING, "warning"), ("test", FEW_TEST, "note"))
    for split, least, severity in small:
        few = [item for item in classes if item.images[split] < least]
        if few and any(item.images[split] for item in classes):
            smallest = min(few, key=lambda item: item.images[split])
            text = (
                f"{plural(len(few), 'class', 'classes')} with fewer than {least} images in {split}, such as {smallest.label} "
                f"({smallest.images[split]:,})"
            )
            yield finding("few", severity, len(few), text, "Add images of these classes.")
    largest, smallest_label = max(totals, key=lambda label: totals[label]), min(totals, key=lambda label: totals[label])
    ratio = totals[largest] / max(totals[smallest_label], 1)
    if ratio >= UNEVEN:
        text = f"{largest} has {ratio:.1f} times as many images as {smallest_label} ({totals[largest]:,} and {totals[smallest_label]:,})"
        severity = "warning" if ratio >= VERY_UNEVEN else "note"
        yield finding("balance", severity, 2, text, f"Add images of {smallest_label}.")
    alike = [item for item in classes if item.distinct < MOSTLY_COPIES * totals[item.label]]
    if alike:
        worst = min(alike, key=lambda item: item.distinct / totals[item.label])
        text = (
            f"{plural(len(alike), 'class', 'classes')} in which many images show the same thing, such as {worst.label}: "
            f"{totals[worst.label]:,} images, {worst.distinct:,} different ones"
        )
        yield finding("alike", "warning", len(alike), text, "Add images from other places, days and angles.")
    if method.all_alike:
        text = (
            "most images of a class look like one group of copies, as from a camera that never moves. Only images with the same pixels are "
            "called copies"
        )
        advice = "Add images from other places, days and angles, unless the camera will stay there."
        yield finding("alike", "warning", 0, text, advice)
    if method.skipped_pairs or method.uncompared:
        text = (
            f"too many images are alike to compare all: {method.skipped_pairs:,} pairs by features and {method.uncompared:,} images "
            "by hash were left out, so copies may be missing here"
        )
        yield finding("alike", "warning", method.uncompared, text, "Remove copies, and inspect the data again.")


def of_sizes(items: Sequence[Item], shapes: Sequence[tuple[int, int, int]], labels: Sequence[str]) -> Iterator[Finding]:
    keys = [(*shape, item.source.rpartition(".")[2].lower()[:5]) for item, shape in zip(items, shapes, strict=True)]
    if not keys:
        return
    counts = Counter(keys)
    usual, most = counts.most_common(1)[0]
    if len(counts) > 1:
        text = f"images of {len(counts):,} sizes, modes and formats; {most / len(keys):.0%} are {usual[0]}x{usual[1]}"
        advice = "Nothing, unless the camera's images all have one size."
        yield finding("sizes", "note", len(keys) - most, text, advice)
    frequent = [(key, item.label) for key, item in zip(keys, items, strict=True) if counts[key] >= FEWEST_OF_A_SIZE]
    if len(frequent) < len(keys) / 2:
        return
    by_key: dict[tuple, Counter[int]] = {}
    for key, label in frequent:
        by_key.setdefault(key, Counter())[label] += 1
    right = sum(counter.most_common(1)[0][1] for counter in by_key.values())
    chance = Counter(label for _, label in frequent).most_common(1)[0][1]
    if right - chance >= TELLING * len(frequent):
        key = max(by_key, key=lambda key: by_key[key].most_common(1)[0][1] if key != usual else 0)
        label, count = by_key[key].most_common(1)[0]
        text = (
            f"size, mode and format predict the class of {right / len(frequent):.0%} of the images (always guessing the largest class: "
            f"{chance / len(frequent):.0%}), such as {key[0]}x{key[1]} {key[3]}: {labels[label]} in {count / by_key[key].total():.0%}"
        )
        advice = "A network may learn that instead of the content. Take the images of all classes in the same way."
        yield finding("tell", "warning", right, text, advice)


def of_odd_ones(far: Sequence[Odd], soft: Sequence[Odd]) -> Iterator[Finding]:
    if far:
        text = f"{plural(len(far), 'image')} unlike all others, such as {far[0].source} ({far[0].label})"
        yield finding("far", "note", len(far), text, "Check that they belong to the data.")
    if soft:
        text = (
            f"{plural(len(soft), 'image')} much less sharp than the others, such as {soft[0].source} ({soft[0].label})"
        )
        yield finding("blurred", "note", len(soft), text, "Remove them, unless the camera's images will be like that.")


def first_two(group: Group, kind: Kind) -> str:
    """Return the first two images of a group that show the problem: different splits or labels, the same pixels, or different ones."""
    first, *others = group.twins if kind == "duplicate" else group.copies

    def shown(copy: Copy) -> tuple[str, str, bool]:
        return copy.split, copy.label, kind == "near-duplicate" and copy.pixels != first.pixels

    other = next((copy for copy in others if shown(copy) != shown(first)), others[0])
    return " and ".join(f"{copy.source} ({copy.split})" if group.leak else copy.source for copy in (first, other))
