"""The report of an inspection of labelled images.

Frozen dataclasses; `inspection.json` is `tables.to_json` of an `Inspection`, and its schema is made from the same fields:
`tools/schema.py`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

from edgecnn.schema import Count, Fraction, Limits, NonNegative, Positive, described
from edgecnn.tables import Struct

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")

Kind = Literal[
    "layout", "left-out", "leak", "two-labels", "unreadable", "groups", "label", "duplicate", "near-duplicate", "alike", "few", "balance",
    "tell", "far", "blurred", "sizes",
]  # fmt: skip
Same = Literal["file", "pixels", "near"]
By = Literal["content", "hash", "features"]
Cosine = Annotated[float, Limits(minimum=-1, maximum=1)]


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
    labels_by: str | None = described(
        "The run whose folds judged the labels; absent if a classifier on features judged them.",
        default=None,
        left_out=True,
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
