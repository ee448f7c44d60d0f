"""The parity report: models on the same images, and the comparisons that the gate is held to.

Frozen dataclasses; `parity.json` is `tables.to_json` of a `Report`, and its schema is made from the same fields: `tools/schema.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from edgecnn.calibrate.input_range import InputRange
from edgecnn.calibrate.threshold import Choice
from edgecnn.evaluate.scores import ScoreFigures
from edgecnn.run_info import FoldInfo, Int8Method
from edgecnn.schema import Count, Fraction, Limits, NonNegative, Points, Positive, Sha256, described
from edgecnn.tables import Struct

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


def older(meaning: str, default: Any = None, *, left_out: bool = False) -> Any:
    """Return a field that reports of earlier versions lack."""
    return described(f"{meaning} absent from older reports.", default=default, left_out=left_out)


class Data(Struct):
    """The images that were compared."""

    name: str
    title: str
    split: SplitName = described(
        "Which images were compared; all only where two files were. folds: all images, each answered by a model that it did not teach."
    )
    test_images: Positive = described("How many they are.")
    images: Positive | None = described(
        "How many images the data have in all; where two files were compared.", default=None, left_out=True
    )
    own_test: bool | None = described(
        "Whether the data bring a test split of their own; where two files were compared.", default=None, left_out=True
    )
    test_sha256: Sha256 = described(
        "Over the sorted (label, content hash) of the test images; of all images with their split for all."
    )


class ModelRange(InputRange):
    """The range that one of two models was given."""

    model: str


class Chance(Struct):
    """The accuracy of always answering the most frequent class."""

    label: str
    accuracy: Fraction
    not_better: tuple[str, ...] = described("Names of the models whose accuracy_interval does not lie wholly above it.")


class ModelFigures(Struct):
    """One model on the images."""

    name: Name = described(
        "float, fake-quantized, FORMAT-PRECISION of an export, the program that an export is for, or a file's name."
    )
    format: Format
    precision: Precision
    engine: str = described("Name, version and provider of what ran it.")
    size_bytes: Positive
    sha256: Sha256 = described("Of the file.")
    accuracy: Fraction = described("Top-1.")
    accuracy_interval: Interval = described(
        "95 % interval, fractions: Wilson's; by folds a wider one, for the model that all images taught."
    )
    calibration_error: Fraction = described("Expected calibration error, 15 bins.")
    ms_per_image: NonNegative = described("Median milliseconds of a call with one image; see timing.")


class PairedFigures(Struct):
    """A candidate compared with a reference, image by image."""

    reference: str
    candidate: str
    n: Positive
    accuracy_reference: Fraction
    accuracy_candidate: Fraction
    drop: Points = described("Reference minus candidate, in percentage points.")
    drop_interval: PointsInterval = described("Tango's paired 95 % interval.")
    drop_upper: Points | None = older(
        "The largest drop that the images do not exclude: Tango's one-sided 95 % upper bound;", left_out=True
    )
    lost: Count = described("Images that the reference alone has right.")
    gained: Count = described("Images that the candidate alone has right.")
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
    """An image with two answers."""

    source: str
    true: str
    reference: str
    candidate: str


class ComparisonFigures(PairedFigures):
    """All that is measured of a candidate and a reference."""

    kind: Kind = described(
        "quantization: against the float model; conversion: an int8 file against the fake-quantized model, or a program's "
        "file against the int8 file that it was made from; alternative: int8 by the method that does not ship, against the float model; "
        "models: any two files; program: the test images as another program resizes and answers them, against the float model and the "
        "int8 file on edgecnn's own pixels; seen: a file of a model that all images taught, against its float model on some of them, by "
        "agreement and LSB alone."
    )
    mcnemar_p: Fraction = described("McNemar's exact test, two-sided.")
    agreement_upper: Fraction | None = older(
        "One-sided 95 % upper bound of agreement (Clopper and Pearson), to which a conversion is held;", left_out=True
    )
    per_class: Annotated[tuple[ClassDrop, ...], Limits(minItems=2)]
    confidence_drift: ConfidenceDrift = described("How far the softmax score of the reference's answer moves.")
    unit: Unit = described("What was compared: scores where a model holds softmax.")
    largest_difference: NonNegative = described("Of two outputs, in unit.")
    mean_lsb: NonNegative | None
    largest_lsb: Count | None = described(
        "Largest difference in codes of the candidate's output, of logits up to a constant for each image, which softmax takes out, "
        "unless kind is conversion; null where it is not quantized."
    )
    flips: tuple[LabelledFlip, ...] = described("Every image with two answers, by label.")


class Comparison(ComparisonFigures):
    """A candidate compared with a reference, and held to the limit of its kind."""

    limit: str = described("What the comparison was held to.")
    failed: tuple[Figure, ...] = described("The figures beyond their limit.")
    accepted: bool = older("Whether it passed although figures are beyond their limit, by accept_conversion;", False)
    passed: bool


class MatrixCell(Struct):
    """An engine compared with another."""

    name: str
    agreement: Fraction
    largest_lsb: Count | None


class MatrixRow(Struct):
    """The int8 model on one engine."""

    name: str = described("The engine, its version and provider.")
    accuracy: Fraction | None = described("null where it did not run.")
    against: tuple[MatrixCell, ...]
    note: str = described("Why it did not run, else empty.")


class BoardRow(Struct):
    """A model on an emulated board."""

    target: str
    cpu: str = described("QEMU's name for the processor.")
    release: str = described("Debian's, by its code name.")
    engine: str = described("Name, version and, if it ran, provider of what ran there.")
    model: str = described("The file in the bundle.")
    against: str = described("The engine of this machine whose outputs it was held against.")
    selftest: bool | None = described("Whether the self-test passed; null where it did not end by itself.")
    images: Count = described("How many were run there and here.")
    split: Literal["test", "golden"] = described("A sample of the test split, or the bundle's golden images.")
    accuracy: Fraction | None = described("Top-1 there; null without classes.")
    accuracy_here: Fraction | None = described("On the same images here.")
    agreement: Fraction | None = described("Share of the same top-1 answers.")
    rows_that_differ: Count | None = described("Images with any output that differs.")
    largest_difference: NonNegative | None = described("Of two raw outputs, in unit.")
    unit: RawUnit
    limit: NonNegative = described("Largest difference allowed, in unit.")
    error: str | None = described("What ended the process there; null where it ran to its end.")
    versions: Mapping[str, str] = described("Of the board's packages.")
    qemu: str = described("The emulator's version.")
    failed: tuple[BoardFigure, ...]
    passed: bool


class QatAgainstPtq(PairedFigures):
    """Quantization-aware training compared with post-training quantization, which is the reference, on the test split."""

    mcnemar_p_worse: Fraction = described("McNemar's exact test, one-sided: small where the candidate is worse.")


class Int8Choice(Int8Method):
    """How the int8 models were made."""

    qat_against_ptq: QatAgainstPtq | None = described(
        "Both on the test split, post-training quantization as the reference; null where one was not measured.",
        default=None,
    )


class Confidence(ScoreFigures):
    """What the temperature and the threshold, chosen on validation images, are worth on the test split."""

    model: str = described("The export that they were chosen with, whose answers these are.")
    temperature: Annotated[float, Limits(exclusiveMinimum=0)]
    not_fitted: str | None = older("Why the temperature is 1; null where it was fitted,", None)
    choice: Choice | None = older(
        "What the threshold was worth on the validation images that it was chosen on, and what that proves; "
        "null without a target,"
    )


class StrangerFigures(Struct):
    """What the decision "stranger" does on the test split if it is made; all images show the model's classes."""

    model: str = described("The export that its limit was chosen with, whose answers these are.")
    rate: Fraction = described("Share of known images that may be refused.")
    not_fitted: str | None = described("Why no limit was chosen, so that nothing is refused; null where one was.")
    known_images: Positive = described("Training images with which an image is compared.")
    validation_images: Positive = described("Images that the limit was chosen on.")
    n: Positive
    refused: Count = described("Images that are taken for strangers.")
    refused_wrong: Count = described("Those of them whose best class is not the true one.")
    refused_interval: Interval | None = older("Wilson's 95 % interval of their share; null where no limit was chosen,")
    decide: bool = older("Whether a device makes the decision unless it says otherwise;", False)


class Report(Struct):
    """The parity report: models on the same images, and the comparisons that the gate is held to."""

    schema: Literal["edgecnn.parity/1"]
    run: str | None = described("Name of the run folder; null where two files were compared.")
    data: Data
    input_ranges: tuple[ModelRange, ...] = described(
        "What each of two files was given; absent for a run.", default=(), left_out=True
    )
    doubts: tuple[str, ...] = described(
        "What makes the reference of two files doubtful; absent without doubts.", default=(), left_out=True
    )
    max_drop: float = described("The gate, in percentage points of accuracy.")
    confident: bool = described("Whether the upper end of the drop's interval had to be within max_drop.")
    min_agreement: Fraction | None = described("Least agreement; null for no limit.")
    accept_conversion: bool = older("Whether conversions beyond their limit passed;", False)
    passed: bool = described(
        "Whether every comparison and board passed and, with confident, no model is at chance level."
    )
    chance: Chance | None = older("The accuracy of always answering the most frequent class;", left_out=True)
    models: Annotated[tuple[ModelFigures, ...], Limits(minItems=1)]
    comparisons: Annotated[tuple[Comparison, ...], Limits(minItems=1)]
    int8: Int8Choice | None = older("How the int8 models were made; null where training did not choose,", None)
    matrix: tuple[MatrixRow, ...] = described(
        "The int8 model on each engine, against each other engine; empty where it was not requested."
    )
    boards: tuple[BoardRow, ...] = older("The exports on emulated boards; empty where none was requested,", ())
    confidence: Confidence | None = described(
        "What the temperature and threshold chosen on validation are worth here; null where two files were compared."
    )
    folds: tuple[FoldInfo, ...] = described(
        "The models by which accuracies, drops and scores are estimated, where all images taught the one that ships; else absent.",
        default=(),
        left_out=True,
    )
    seen_images: Positive | None = described(
        "Of these images, those on which the files that ship were compared; absent without folds.",
        default=None,
        left_out=True,
    )
    strangers: StrangerFigures | None = older("What the decision stranger does here; null where the model makes none,")
    timing: str = described("How ms_per_image was measured.")
    machine: str
    versions: Mapping[str, str]


class BoardsData(Struct):
    """The test split of which a bundle's boards ran a sample."""

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
        "The test split that the images are a sample of; null where there were golden images only."
    )
    boards: Annotated[tuple[BoardRow, ...], Limits(minItems=1)]
    passed: bool
    machine: str
    versions: Mapping[str, str]
