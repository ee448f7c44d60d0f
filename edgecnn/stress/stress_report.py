"""The stress report: accuracy and agreement under each corruption at each strength.

The classes are frozen dataclasses. `stress-SPLIT.json` is `tables.to_json` of a `StressReport`, and `tools/schema.py` makes its schema from
its fields.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from edgecnn.runs import STRESS, Run
from edgecnn.stress.corruptions import SizeClass
from edgecnn.tables import Count, Fraction, Limits, NonNegative, Points, Positive, Sha256, Struct, described

Interval = tuple[Fraction, Fraction]
StressSplit = Literal["validation", "test"]
SPLITS: tuple[StressSplit, ...] = ("test", "validation")
"""The splits that can be measured; the one for final figures comes first."""


class StressData(Struct):
    """The images."""

    name: str
    title: str
    split: StressSplit
    images: Positive = described("How many were measured.")
    of: Positive = described("How many the split has.")
    sha256: Sha256 = described("Of the split: over the sorted (label, content hash) of its images.")


class StressedModel(Struct):
    """A model under test."""

    name: Annotated[str, Limits(enum=("float", "int8"))]
    engine: str = described("Name, version and provider of the engine that ran it.")
    sha256: Sha256 = described("Of its file.")


class Measured(Struct):
    """Accuracy on n images."""

    accuracy: Fraction
    interval: Interval = described("Wilson's 95 % interval.")


class Condition(Struct):
    """The uncorrupted images, or one corruption of them at one strength."""

    strength: Count = described("1 to 5; 0 without corruption.")
    value: str = described("The strength's value, in the corruption's unit; empty without corruption.")
    float: Measured | None = described("Of the float model; null without one.")
    int8: Measured = described("Of the int8 model.")
    agreement: Fraction | None = described("Share of images with the same answer; null without a float model.")
    agreement_interval: Interval | None = described("Wilson's 95 % interval.")


class Stressed(Struct):
    """A corruption: the means over its strengths, and each strength."""

    corruption: str
    unit: str = described("Of the strengths' values.")
    float: Fraction | None = described("Mean accuracy of the float model; null without one.")
    int8: Fraction = described("Mean accuracy of the int8 model.")
    agreement: Fraction | None = described("Mean agreement of the two; null without a float model.")
    lost: Points = described("Percentage points of the int8 model's accuracy that the corruption costs on average.")
    strengths: Annotated[tuple[Condition, ...], Limits(minItems=1)]


class Mean(Struct):
    """The mean corrupted accuracy: the mean of the corruptions' means, so that each corruption counts once."""

    accuracy: Fraction
    interval: Interval = described(
        "95 %, from the normal distribution of each image's mean: the images are a sample, the corruptions are not."
    )


class StressReport(Struct):
    """The stress report: accuracy and agreement of float and int8 under each corruption at each strength."""

    schema: Literal["edgecnn.stress/1"]
    name: str = described("Of the run or the bundle.")
    kind: Literal["run", "bundle"]
    data: StressData
    seed: Count = described("Of the corruptions' random numbers.")
    size_class: SizeClass = described("Which strengths were used: those for photos, or those for small images.")
    largest_side: Positive | None = described(
        "Pixels to which the shorter side of larger photos was reduced before corruption; null if images kept their size."
    )
    models: Annotated[tuple[StressedModel, ...], Limits(minItems=1)]
    clean: Condition = described("Without corruption.")
    corruptions: Annotated[tuple[Stressed, ...], Limits(minItems=1)]
    complete: bool = described("Whether every corruption that applies to the images was measured.")
    mean_float: Mean | None = described("The float model's mean corrupted accuracy; null without one.")
    mean_int8: Mean = described("The int8 model's mean corrupted accuracy.")
    worst: str = described("The corruption that costs the int8 model most.")
    trained_robust: bool = described("Whether it was trained with train.robust.")
    at_least: Fraction | None = described("The pass line: minimum mean corrupted accuracy of int8; null without one.")
    passed: bool = described("Whether the pass line was met, or there was none.")
    test_uses: Count = described("How often this run's test split was measured under stress, including this time.")
    seconds: NonNegative
    machine: str
    versions: Mapping[str, str]

    @property
    def costliest(self) -> Stressed:
        return next(item for item in self.corruptions if item.corruption == self.worst)


def stress_report(run: Run, split: StressSplit) -> StressReport | None:
    """Return a run's stress report on a split; None if it was not measured, or the file cannot be used."""
    return run.stored(STRESS.format(split=split), StressReport)


def best_report(run: Run) -> StressReport | None:
    """Return a run's report on the test split, else on validation images, else None."""
    return next((report for split in SPLITS if (report := stress_report(run, split))), None)
