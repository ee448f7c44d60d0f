"""The parity report: models on the same images, and the gate, the limits that a comparison's figures must meet.

The classes are frozen dataclasses. `parity.json` is `tables.to_json` of a `Report`, and `tools/schema.py` makes its schema from its fields.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from edgecnn.calibrate.confidence import Choice
from edgecnn.calibrate.input_range import InputRange
from edgecnn.errors import EmulatorError, ParityError
from edgecnn.evaluate.statistics import ClassFound, ScoreFigures
from edgecnn.run_info import FoldInfo, Int8Method
from edgecnn.tables import Count, Fraction, Limits, NonNegative, Points, Positive, Sha256, Struct, absent, described

Kind = Literal["quantization", "conversion", "alternative", "models", "program", "seen"]
SplitName = Annotated[str, Limits(enum=("test", "all", "folds"))]
Figure = Literal["drop", "drop_interval", "agreement", "largest_lsb"]
BoardFigure = Literal["error", "selftest", "largest_difference"]
Unit = Literal["logit", "score"]
Interval = tuple[Fraction, Fraction]
PointsInterval = tuple[Points, Points]
Name = Annotated[str, Limits(minLength=1)]
Format = Annotated[str, Limits(enum=("keras", "tflite", "onnx", "saved-model"))]
RawUnit = Annotated[str, Limits(enum=("LSB", "logit"))]
Precision = Annotated[str, Limits(pattern="^(fake-quantized|(float|u?int)[0-9]+[a-z0-9-]*)$")]


FEW_GROUPS = 10
"""With fewer groups in the test split, the interval is wide because of them, and nothing is called at chance level."""


class Data(Struct):
    """The images that were compared."""

    name: str
    title: str
    split: SplitName = described(
        "Which images were compared; all only if two files were. folds: all images, each answered by a model that was not trained on it."
    )
    test_images: Positive = described("Their number.")
    images: Positive | None = absent("How many images the dataset has in total; if two files were compared.")
    own_test: bool | None = absent("Whether the dataset has its own test split; if two files were compared.")
    unseen: bool | None = absent(
        "Whether the importer says that these images did not train the model; absent if edgecnn trained it."
    )
    test_sha256: Sha256 = described(
        "Over the sorted (label, content hash) of the test images; for all, over all images with their split."
    )
    divided_by: Literal["photo", "group"] | None = absent(
        "Whether single photos or groups that the user named were divided; absent if edgecnn did not divide them."
    )
    groups: Positive | None = absent("Number of groups in all splits, if named.")
    test_groups: Positive | None = absent("Number of groups that tested, if named.")


class ModelRange(InputRange):
    """The range given to one of two models."""

    model: str


class Chance(Struct):
    """Always answering the most frequent class."""

    label: str
    accuracy: Fraction
    balanced: Fraction | None = absent(
        "Its balanced accuracy, if every class counts the same because the classes of the data are unbalanced."
    )
    not_better: tuple[str, ...] = described(
        "Names of the models whose accuracy, or balanced accuracy, has a 95 % interval that does not lie wholly above it."
    )


class ModelFigures(Struct):
    """One model on the images."""

    name: Name = described(
        "float, fake-quantized, FORMAT-PRECISION of an export, the program that an export is for, or a file's name."
    )
    format: Format
    precision: Precision
    engine: str = described("Name, version and provider of the engine that ran it.")
    size_bytes: Positive
    sha256: Sha256 = described("Of the file.")
    accuracy: Fraction = described("Top-1.")
    accuracy_interval: Interval = described(
        "95 % interval, fractions: Wilson's, over groups if the user named some; with folds a wider one, for the final model trained on "
        "all images."
    )
    calibration_error: Fraction = described("Expected calibration error, 15 bins.")
    ms_per_image: NonNegative = described("Median milliseconds per call with one image; see timing.")


class PairedFigures(Struct):
    """A candidate compared with a reference, image by image."""

    reference: str
    candidate: str
    n: Positive
    accuracy_reference: Fraction
    accuracy_candidate: Fraction
    drop: Points = described("Reference minus candidate, in percentage points.")
    drop_interval: PointsInterval = described("Tango's paired 95 % interval.")
    drop_upper: Points = described(
        "The largest drop that the images do not rule out: Tango's one-sided 95 % upper bound."
    )
    lost: Count = described("Images that only the reference classifies correctly.")
    gained: Count = described("Images that only the candidate classifies correctly.")
    agreement: Fraction = described("Share of the images with the same top-1 answer.")


class ClassDrop(Struct):
    """A class's drop."""

    label: str
    images: Count
    drop: Points | None = described("null without images.")


class ConfidenceDrift(Struct):
    """Mean and 95th percentile over the images."""

    mean: Fraction
    p95: Fraction


class LabelledFlip(Struct):
    """An image that two models answer differently."""

    source: str
    true: str
    reference: str
    candidate: str


class ComparisonFigures(PairedFigures):
    """All figures that compare a candidate with a reference."""

    kind: Kind = described(
        "quantization: against the float model; conversion: an int8 file against the fake-quantized model, or a program's "
        "file against the int8 file that it was made from; alternative: a model that does not ship, either fake-quantized or int8 by the "
        "other method, against the float model; models: any two files; program: the test images as another program resizes and "
        "classifies them, against the float model and the int8 file on edgecnn's own pixels; seen: a file of the final model trained on "
        "all images, against its float model on some of them, by agreement and LSB only."
    )
    mcnemar_p: Fraction = described("McNemar's exact test, two-sided.")
    agreement_upper: Fraction = described(
        "One-sided 95 % upper bound of agreement (Clopper and Pearson), which decides whether a conversion passes."
    )
    per_class: Annotated[tuple[ClassDrop, ...], Limits(minItems=2)]
    confidence_drift: ConfidenceDrift = described("Change in the softmax score of the reference's answer.")
    unit: Unit = described("What was compared: scores if a model ends in softmax.")
    largest_difference: NonNegative = described("Between two outputs, in unit.")
    mean_lsb: NonNegative | None
    largest_lsb: Count | None = described(
        "Largest difference in codes of the candidate's output; for logits, up to a constant per image, which softmax removes, "
        "unless kind is conversion; null if it is not quantized."
    )
    flips: tuple[LabelledFlip, ...] = described("Every image that the two models answer differently, by label.")


class Comparison(ComparisonFigures):
    """A candidate compared with a reference, and checked against the limit of its kind."""

    limit: str = described("The limit of the comparison.")
    failed: tuple[Figure, ...] = described("The figures beyond their limit.")
    accepted: bool = described("Whether accept_conversion let it pass although figures are beyond their limit.")
    passed: bool


class MatrixCell(Struct):
    """An engine compared with another."""

    name: str
    agreement: Fraction
    largest_lsb: Count | None


class MatrixRow(Struct):
    """The int8 model on one engine."""

    name: str = described("The engine, its version and provider.")
    accuracy: Fraction | None = described("null if it did not run.")
    against: tuple[MatrixCell, ...]
    note: str = described("Why it did not run, otherwise empty.")


class BoardRow(Struct):
    """A model on an emulated board."""

    target: str
    cpu: str = described("QEMU's name for the processor.")
    release: str = described("Debian's code name.")
    engine: str = described("Name, version and, if it ran, provider of the engine there.")
    model: str = described("The file in the bundle.")
    against: str = described("The engine on this machine whose outputs it was compared with.")
    selftest: bool | None = described("Whether the self-test passed; null if it did not finish.")
    images: Count = described("How many images ran there and here.")
    split: Literal["test", "golden"] = described("A sample of the test split, or the bundle's golden images.")
    accuracy: Fraction | None = described("Top-1 there; null without classes.")
    accuracy_here: Fraction | None = described("On the same images here.")
    agreement: Fraction | None = described("Share of images with the same top-1 answer.")
    rows_that_differ: Count | None = described("Images with any output that differs.")
    largest_difference: NonNegative | None = described("Between two raw outputs, in unit.")
    unit: RawUnit
    limit: NonNegative = described("Largest difference allowed, in unit.")
    error: str | None = described("What ended the process there; null if it finished.")
    versions: Mapping[str, str] = described("Of the board's packages.")
    qemu: str = described("The emulator's version.")
    failed: tuple[BoardFigure, ...]
    passed: bool
    selftest_error: str | None = described("Why the self-test failed; null if it did not.", default=None)


class QatAgainstPtq(PairedFigures):
    """Quantization-aware training compared with post-training quantization, which is the reference, on the test split."""

    mcnemar_p_worse: Fraction = described("McNemar's exact test, one-sided: small if the candidate is worse.")


class Int8Choice(Int8Method):
    """How the int8 models were made."""

    qat_against_ptq: QatAgainstPtq | None = described(
        "Both on the test split, post-training quantization as the reference; null if one was not measured.",
        default=None,
    )


class Confidence(ScoreFigures):
    """Test figures of the temperature and the threshold chosen on validation images."""

    model: str = described("The export used to choose them, which also gave these answers.")
    temperature: Annotated[float, Limits(exclusiveMinimum=0)]
    not_fitted: str | None = described("Why the temperature is 1; null if it was fitted.", default=None)
    choice: Choice | None = described(
        "The threshold's figures on the validation images used to choose it, and the error bound that they prove; "
        "null without a target.",
        default=None,
    )


class StrangerFigures(Struct):
    """Results of the decision "stranger" on the test split if it is made. All images show the model's classes."""

    model: str = described("The export used to choose its limit, which also gave these answers.")
    rate: Fraction = described("Share of in-distribution images that may be refused.")
    not_fitted: str | None = described("Why no limit was chosen, so that nothing is refused; null if one was.")
    known_images: Positive = described("Training images with which an image is compared.")
    validation_images: Positive = described("Images used to choose the limit.")
    n: Positive
    refused: Count = described("Images that were refused as strangers.")
    refused_wrong: Count = described("Those of them whose best class is wrong.")
    refused_interval: Interval | None = described(
        "Wilson's 95 % interval of their share; null if no limit was chosen.", default=None
    )
    decide: bool = described("Whether a device makes the decision unless configured otherwise.")


class Report(Struct):
    """The parity report: models on the same images, and the comparisons that the gate checks."""

    schema: Literal["edgecnn.parity/1"]
    run: str | None = described("Name of the run folder; null if two files were compared.")
    data: Data
    input_ranges: tuple[ModelRange, ...] = absent("The range given to each of two files; absent for a run.", ())
    doubts: tuple[str, ...] = absent("Reasons to doubt the reference of two files; absent without doubts.", ())
    max_drop: float = described("The gate, in percentage points of accuracy.")
    confident: bool = described("Whether the upper end of the drop's interval had to be within max_drop.")
    min_agreement: Fraction | None = described("Minimum agreement; null for no limit.")
    accept_conversion: bool = described("Whether conversions beyond their limit passed.")
    passed: bool = described(
        "Whether every comparison and board passed and, with confident, no model is at chance level."
    )
    chance: Chance = described("The accuracy of always answering the most frequent class.")
    models: Annotated[tuple[ModelFigures, ...], Limits(minItems=1)]
    comparisons: Annotated[tuple[Comparison, ...], Limits(minItems=1)]
    int8: Int8Choice | None = described("How the int8 models were made; null if training did not choose.", default=None)
    matrix: tuple[MatrixRow, ...] = described(
        "The int8 model on each engine, against each other engine; empty if it was not requested."
    )
    boards: tuple[BoardRow, ...] = described("The exports on emulated boards; empty if none was requested.", default=())
    confidence: Confidence | None = described(
        "Test figures of the temperature and threshold chosen on validation; null if two files were compared."
    )
    folds: tuple[FoldInfo, ...] = absent(
        "The models that estimate accuracies, drops and scores, if the one that ships was trained on all images; otherwise absent.",
        (),
    )
    seen_images: Positive | None = absent(
        "On how many of these images the files that ship were compared; absent without folds."
    )
    found: tuple[ClassFound, ...] = absent(
        "How many images of each class the first export finds; absent in older reports.", ()
    )
    strangers: StrangerFigures | None = described(
        "Results of the decision stranger here; null if the model does not make it.", default=None
    )
    timing: str = described("How ms_per_image was measured.")
    machine: str
    versions: Mapping[str, str]


class BoardsData(Struct):
    """The test split from which a bundle's boards ran a sample."""

    name: str
    title: str
    test_images: Positive
    test_sha256: Sha256


class BoardsReport(Struct):
    """A bundle on emulated boards, without its run."""

    schema: Literal["edgecnn.boards/1"]
    bundle: str = described("Its name.")
    bundle_sha256: Sha256
    data: BoardsData | None = described(
        "The test split that the images are a sample of; null if there were only golden images."
    )
    boards: Annotated[tuple[BoardRow, ...], Limits(minItems=1)]
    passed: bool
    machine: str
    versions: Mapping[str, str]


MAX_DROP = 1.0
"""Default of the gate, in percentage points of accuracy."""

MAX_LSB = 1
MIN_AGREEMENT = 0.98
"""An int8 file must be within MAX_LSB of the fake-quantized model everywhere, or agree with it on this fraction of the images:
one code of rounding is allowed, a different answer on more than one image in fifty is not. Over many layers, rounding alone adds
up. A conversion fails only if the images are evidence: if the one-sided 95 % upper bound of the agreement is below this.
"""


REMEDIES: dict[Kind, str] = {
    "quantization": "Train longer with --qat-epochs (if it was imported: import it again with --qat-epochs 8), or accept more with "
    "--max-drop. Worst layers: edgecnn layers",
    "conversion": "If the file or the run has changed since the export: edgecnn export --force. Otherwise the converter or the engine "
    "rounds differently; worst layers: edgecnn layers. To ship it anyway, on record: --accept-conversion",
    "seen": "Quantization changes the answers to images used in training. Worst layers: edgecnn layers. Or ship another precision.",
    "program": "The program stretches images and resizes them without antialiasing: train with --set data.fit=stretch on images as it sees "
    "them, or accept more with --max-drop.",
    "models": "Check that both read the same range (--input-range) and channel order, or accept more with --max-drop.",
}


class Gate(Struct):
    """How much a candidate may lose against its reference: `max_drop` in points, `min_agreement` as a fraction, None for no limit.

    With `confident`, the upper end of the drop's 95 % interval must meet the limit too, and no model may be at chance level. With
    `accept_conversion`, a conversion beyond its limit passes and the report records that.
    """

    max_drop: float = MAX_DROP
    confident: bool = False
    min_agreement: float | None = None
    accept_conversion: bool = False

    def judge(self, figures: ComparisonFigures) -> Comparison:
        failed = self.failed(figures)
        accepted = bool(failed) and figures.kind == "conversion" and self.accept_conversion
        limit, passed = self.limit(figures.kind), accepted or not failed
        return Comparison(**vars(figures), limit=limit, failed=failed, accepted=accepted, passed=passed)

    def failed(self, comparison: ComparisonFigures) -> tuple[Figure, ...]:
        if comparison.kind == "alternative":
            return ()
        if comparison.kind in ("conversion", "seen"):
            lsb, upper = comparison.largest_lsb, comparison.agreement_upper
            if upper >= MIN_AGREEMENT or (lsb is not None and lsb <= MAX_LSB):
                return ()
            return ("agreement",) if lsb is None else ("largest_lsb", "agreement")
        beyond: dict[Figure, bool] = {
            "drop": comparison.drop > self.max_drop,
            "drop_interval": self.confident and comparison.drop_interval[1] > self.max_drop,
            "agreement": self.min_agreement is not None and comparison.agreement < self.min_agreement,
        }
        return tuple(figure for figure, failed in beyond.items() if failed)

    def limit(self, kind: Kind) -> str:
        if kind == "alternative":
            return "none, does not ship"
        if kind in ("conversion", "seen"):
            return f"at most {MAX_LSB} LSB, or no evidence of agreement below {MIN_AGREEMENT:.0%}"
        whole = " with its whole 95 % interval" if self.confident else ""
        agreement = "" if self.min_agreement is None else f", agreement of at least {self.min_agreement:.2%}"
        return f"drop of at most {self.max_drop:.2f} points{whole}{agreement}"


def measured(comparison: Comparison, figure: Figure) -> str:
    if figure == "drop":
        return f"drops {comparison.drop:.2f} points"
    if figure == "drop_interval":
        return f"may drop by as much as {comparison.drop_interval[1]:.2f} points (upper end of the 95 % interval)"
    if figure == "largest_lsb":
        return f"differs by {comparison.largest_lsb} LSB"
    share = f"agrees on {comparison.agreement:.2%}"
    if comparison.kind not in ("conversion", "seen"):
        return share
    return f"{share} of {comparison.n:,} images (at most {comparison.agreement_upper:.2%} with 95 % confidence)"


def require_parity(report: Report) -> None:
    """Raise ParityError if a comparison failed or, with `confident`, a model is at chance level; then call `require_boards`."""
    failed = [comparison for comparison in report.comparisons if not comparison.passed]
    if failed:
        first = failed[0]
        figures = " and ".join(measured(first, figure) for figure in first.failed)
        raise ParityError(
            f"{first.candidate} does not answer like {first.reference}: it {figures} (limit: {first.limit}); "
            f"{len(failed)} of {len(report.comparisons)} comparisons failed. {REMEDIES[first.kind]}"
        )
    if report.confident and (warning := chance_warning(report)):
        raise ParityError(warning)
    require_boards(report.boards)


def chance_warning(report: Report) -> str | None:
    """Return a warning that names the models not shown to be better than chance, and what to do; None if all are."""
    chance = report.chance
    if not chance.not_better:
        return None
    models = {item.name: item for item in report.models}
    figures = ", ".join(
        "{} {:.2%} ({:.0%} to {:.0%})".format(name, models[name].accuracy, *models[name].accuracy_interval)
        for name in chance.not_better[:2]
    )
    more = f" and {len(chance.not_better) - 2} more" if len(chance.not_better) > 2 else ""
    counted = (
        "" if chance.balanced is None else f", and a balanced accuracy of {chance.balanced:.2%}, which counts here"
    )
    return (
        f"not shown to be better than chance: {figures}{more}. Always answering {chance.label!r} is right for "
        f"{chance.accuracy:.2%} of these {report.data.test_images:,} images{counted}.\n"
        "Parity of such models proves little. Use more images, train longer, or check labels and input range."
    )


def require_boards(rows: Sequence[BoardRow]) -> None:
    """Raise an error for the first board that failed, naming the engine and the remedy.

    Raises EmulatorError if a process crashed on a board because its packages do not run there; ParityError if the board answers differently
    from this machine, or its self-test failed.
    """
    failed = [row for row in rows if not row.passed]
    others = f" ({len(failed)} of {len(rows)} failed)" if len(rows) > 1 else ""
    for row in failed:
        if row.error:
            raise EmulatorError(
                f"{row.engine} on {row.target}: {row.error}{others}. "
                "This build does not run on that processor: install another version of it, or use another engine."
            )
    if failed:
        first = failed[0]
        reason = f"the self-test failed: {first.selftest_error}"
        if "largest_difference" in first.failed:
            reason = f"its answers differ from {first.against} here by {first.largest_difference:g} {first.unit} ({first.limit:g} allowed)"
        raise ParityError(
            f"{first.engine} on {first.target} ({first.cpu}): {reason}{others}. "
            "Try another version of the engine, or another engine."
        )
